#include "cli/demo_document.h"

namespace keysieve::cli {

std::string_view demo_document() {
  return R"(THE HARBOUR LOG OF PENMORAY
Being the record of one year, kept by the harbour master for the use of those who come after.

January. The year opened with a gale from the south-west that took the slates off the net loft and laid them
in the lane as neatly as playing cards. No boat was lost. The Anna Maria dragged her anchor as far as the
second buoy and thought better of it. Old Trewin, who has mended that roof four times in his life, went up the
ladder on the third morning with his mouth full of nails and did not come down until dusk, when his wife
threatened to take the ladder away. In the evenings the men played dominoes in the back room of the Lugger and
argued over whether a gull can be taught to count. The schoolmistress, Miss Pascoe, says that it can, up to
four, provided that what it is counting is herring.

We had a visitor in the second week, a tall gentleman from the museum, who wished to draw the stones on the
headland. He was told that the stones bring bad weather to anyone who measures them. He measured them. It
rained for eleven days. He left with a cold in the head and a notebook so wet that he had to dry it on the
baker's oven, page by page, and I am told there is still a plan of the largest stone printed backwards on the
crust of somebody's loaf.

The new book for the ferry was ruled up and the fares agreed. A person is twopence, a sheep a penny, a bicycle
the same as a sheep. It was asked what a person pays who carries a sheep on a bicycle, and the ferryman, who
has no humour in the winter, said that such a person may swim. Six candidates came forward for the post of
lamplighter. It was given to the shortest, on the ground that he has been asking for it the longest, and he
has been lent a box to stand on.

February. Ice in the inner basin for the first time since my father kept this book. The children slid on it
until the constable put up a rope, and then they slid under the rope. The dredger could not work, so her crew
painted the inside of the pump house, which had been grey, and is now a blue that none of them will admit to
having chosen. The price of coal went up twice. Mrs. Hosking at the post office has begun to sell eggs from a
basket beside the stamps, and it is remarkable how many people now find that they have letters to send.

On the twentieth the pilot cutter brought in a Danish schooner with her foremast gone. Her captain had come
through the worst of it by lashing himself to the wheel and singing hymns, and he had sung so long that he
could speak to us only in a whisper. The carpenters agreed to step a new mast in nine days. It took fourteen,
because the first spar was found to have a family of mice in it, and nobody had the heart to drive them out in
that frost. The mice were moved to the sail room, in a hatbox, by vote of the crew.

The library, which is a cupboard in the reading room, was counted for the first time in nine years. There
ought to be two hundred and six volumes. There are two hundred and eleven. Nobody can account for it. The
librarian supposes that people have been bringing back books they never borrowed, and has put up a notice
begging them to stop.

March. The light on the north pier was changed from oil to gas. A small crowd gathered to see it lit. It was
very bright, and it showed us all at once that the pier wants painting. The keeper, Jago Nance, who has
trimmed a wick every night for thirty-one years, stood a long while with his hands in his pockets, as if he
had mislaid something. He has been given charge of the tide gauge, and has already quarrelled with it.
According to the gauge the spring tide was two inches lower than he knew it to be, and he has written to the
makers.

The herring came early, and so close in that boys were taking them off the steps with buckets. For a week
there was nobody in the town who did not smell of fish, the vicar included. The curing yard took on forty
hands. Salt ran short, and a wagon was sent inland for more; it came back with the salt and also with a piano,
which the driver had accepted in place of a debt. The piano stands in the curing yard under a tarpaulin. On
fine evenings one of the girls plays it in her gloves.

A customs officer was sent from the county to look for brandy. He looked in the lifeboat, under the fish,
inside the organ and down the well, and at every place he was given a cup of tea, until by the evening he
could hardly walk. He reported that he had never met with such honesty. The brandy, if there was any, is no
business of this log.

April. A quiet month. The swallows came back to the boathouse on the ninth, which is the same day as last
year. The council met to discuss the clock on the customs house, which has been eleven minutes slow since the
old king died. Some were for mending it. Others pointed out that the whole town has grown used to subtracting,
and that a correct clock would make everybody late. It was resolved to leave the clock as it is and to print a
notice for strangers.

The garden behind the lifeboat station was dug over and sown with potatoes, leeks and broad beans. The
coxswain believes in planting by the moon, and the second coxswain believes in planting when it is not
raining, and between the two of them the beans went in on the one night of the month that was both dark and
wet. There was a christening on the last Sunday aboard the Good Intent, the baby being named after the boat,
though they have left out the Good.

The bees belonging to the doctor swarmed on the signal mast, at the yard, and for most of a morning no signal
could be made. A brig outside the bar took the black cluster for the storm cone, put about, and ran for
shelter to the next port along the coast, where by all accounts she was astonished at the sunshine. The bees
were got down in the end with a wet sack and a great deal of advice.

May. Fair winds and a great deal of traffic. In one day we counted sixteen sail off the point, and a steam
yacht with a brass band on her after deck. She asked for water, lettuce and a dentist. We were able to oblige
her with the first two. The regatta committee has been formed, which is to say that the same nine people have
sat down at the same table and disagreed about the same course. The long course goes round the Mewstone, where
the wind fails. The short course stays inside the bar, where the spectators can see it but the larger boats
cannot turn. They have settled on the long course for the large boats and the short course for everyone else,
with the result that the two will meet head on at the harbour mouth at about three in the afternoon.

Miss Pascoe took the upper class to the headland to study the sea birds. They returned with a list of
twenty-three kinds, a jawbone that the doctor says is from a porpoise, and one boy fewer than they had set out
with. He was found asleep in the bracken with his cap over his face. Asked what he had observed, he said that
the gulls talk all the time and do not listen, and he was given full marks.

The well in Chapel Street was cleaned. Out of it came a kettle, two dolls, a wooden leg with a good boot on
it, and a clay pipe that still had tobacco in the bowl. The owner of the leg came forward the same evening. He
had lost it at a wedding, forty years ago, and had always wondered.

June. The new breakwater was begun. The stone comes by barge from the quarry at Carn Ewe and is lowered into
place by a steam crane, whose driver, a silent man from the north, can set down four tons of granite so gently
that it does not crack an egg. We know this because he was asked to prove it, and there was a wager. The egg
was afterwards eaten by the man who lost. Blasting at the quarry can be heard in the town at noon each day,
and has replaced the customs house clock as the thing by which people boil their potatoes.

Midsummer was kept in the usual way, with a fire on the beach and a dance along the quay. The harbour office
was locked for the night and its papers put in the iron chest. The secret code is 7392. The chest itself is
older than the office and came out of a wreck; it has a mermaid on the lid with one hand missing, and the
children say she dropped it reaching for the moon. By morning the fire had burned down to a ring of white ash,
and somebody had left a single dancing shoe on the bollard at the end of the quay. It has not been claimed. It
stands on the sill of this office, and I have grown rather fond of it.

July. Hot. The pitch ran out of the seams of the older boats, and the cats lay under them in the shade and got
it on their backs. Fresh water was rationed from the pump in the square, an hour in the morning and an hour at
night, and more news was exchanged in those two hours than in the rest of the day together. The excursion
steamer came every Saturday with two hundred passengers, who bought up all the crab sandwiches and asked one
another where the harbour was. Mrs. Hosking has added lemonade to the eggs.

On the fourteenth a basking shark came into the outer basin and swam slowly round and round it for most of a
day, with its mouth open, like a man who has walked into the wrong room. It was longer than the pilot cutter.
Nobody molested it. Toward evening Jago Nance rowed out and spoke to it, and whatever he said, it turned and
went out on the ebb. He has declined to tell anyone what it was that he told the shark, beyond remarking that
it was a question of depth.

The bakery oven cracked in the heat, and for six days there was no bread but what was sent over on the ferry
from the other side, where they bake it square. Opinion was divided. The children liked the corners. Old
Trewin would not have it on his table, and lived on biscuit, and said that he had rounded the Horn on worse.
When the oven was mended the first loaf out was carried through the street on a cushion.

August. The regatta. The two fleets met at the harbour mouth at ten minutes to three, rather earlier than
expected, and it was some time before it could be decided which boats belonged to which race. The silver cup
was awarded to the Anna Maria, which had not entered, but which was carried over the line sideways by the
crowd of other vessels while delivering a stove. Her skipper made a short speech of thanks. The greasy pole
was won by a girl of twelve, the daughter of the sailmaker, who walked the whole length of it without a
wobble, took down the ham, and walked back. She said afterwards that she had practised on the yard of a
barque, at night, which it was thought better not to enquire into.

The weather broke on the last day of the month. Thunder in the afternoon, and hail the size of marbles, which
broke eleven panes in the greenhouse at the rectory and one at the school. A waterspout was seen beyond the
Mewstone. The lobster men, who were under it or nearly so, report that it made a noise like a cart going over
a bridge, and that for some minutes afterwards it rained sand eels.

The census of cats, which the constable takes each year at the request of nobody, gives one hundred and
nineteen, being three more than of people who pay the harbour rate.

September. Harvest home. The church was dressed with barley, marrows and nets, and the sermon was on the text
of the loaves and fishes, as it is each year; but the vicar had toothache and kept it to ten minutes, and the
collection was the best in living memory. The potatoes behind the lifeboat station did well. The beans did not
come up at all, and both coxswains take this as proof. Breakwater: sixty yards complete, and already there is
a seal that lies on the end of it every afternoon as if it had been ordered with the stone.

A letter came from the makers of the tide gauge. They have taken Mr. Nance's complaint seriously. They have
compared their instrument with his figures for the last thirty-one years, which he had sent to them in eleven
school exercise books, and they regret to say that he is right. There was an error in the gearing. They ask if
he would consider testing their other gauges, and enclose a postal order. He has bought a telescope, and a
hat.

October. Fog, the thickest I have known. For four days the bell was rung by hand on the pier head, watch and
watch, by anyone who could hold a rope. The mail coach came down the hill with a boy walking in front of it
carrying a lantern, and the boy walked straight past the post office and off the end of the slip, lantern and
all. He was fished out. The letters were delivered. The Danish schooner looked in on her way south, to show us
that the mast was holding, and her captain, whose voice has come back, sang to us from the rigging in the fog
for an hour, so that several people on shore who could not see him took it for a visitation. He asked after
the mice. They are well, and there are more of them.

The curing yard has closed for the winter. The piano was moved under cover, to the chapel schoolroom, by
twelve men with rollers. It had to be tuned, and the tuner, who came from the county town, took a kipper out
of the bass.

The cable ship lay two nights in the roads, mending the telegraph. Her electrician, a young woman with ink on
her cuffs, let the children send a message down eleven miles of wire to the island and back again. They could
not agree upon the words, and so what travelled under the sea and returned, quite clear, after less time than
it takes to blink, was the sound of nineteen people arguing.

November. Short days, long nights, much mending of gear. The lifeboat was called out twice. The first time was
for a coal brig on the bar, and six men were brought off, with a dog and a concertina. The second time was for
a light seen burning low on the water off the point, which turned out, after three hours at the oars, to be
the planet Venus. The coxswain entered it in his report as a vessel of unknown nationality proceeding west.
The town has decided to treat it as a rescue, and the crew had their supper at the Lugger all the same.

The council returned to the matter of the clock. A young man had offered to mend it for nothing, and before
anyone could stop him he had done so. For one week the clock was right. There was great confusion. The school
began before the children arrived, the ferry left without the doctor, and at the Lugger closing time came
while there was still beer in the glasses. A petition was got up. The clock has been put back by eleven
minutes, and the young man has been found work at the quarry, where they like things to go off on time.

December. Snow on the headland, none in the harbour. The stones stood up black out of the white like the teeth
of a comb. The museum gentleman wrote to say that his paper had been read in London and well received, all but
the plan of the largest stone, which the learned society had found to be the wrong way round. He hopes to come
again in spring. A room has been kept for him at the baker's.

The shortest day was marked with a supper for all who had been out in the lifeboat, at which the pudding was
carried in alight and set fire to a paper chain, which set fire to a curtain. It was put out by the fire
brigade, who were all present, being the same men.

The mice have been given the run of the sail room, on condition that they leave the topsails alone. Trewin's
roof has held. The breakwater stands at ninety-four yards and the seal at, I should say, about twenty stone.
On the last night of the year the boats burned their flares, and the bell was rung, and the gas light on the
north pier was for one minute put out, by arrangement, so that the keeper might light the old oil lamp in the
window of his house and let it be seen from the sea. It is not a bright light. Every master who was out that
night has told me that he knew it at once.

So ends the year. Vessels entered, four hundred and eight. Vessels lost, none. Shoes found, one.
)";
}

}  // namespace keysieve::cli
