#include "keysieve/text_codec.h"

#include <fstream>

#include "fixture.h"

namespace keysieve {
namespace {

using testing::expect_error;
using testing::TinyModel;
using testing::TinyWorld;

TextCodec tiny() { return TextCodec::load(TinyWorld::get().model.string()); }

TEST(TextCodec, BytesGoThereAndBack) {
  const TextCodec text = tiny();
  EXPECT_EQ(text.vocabulary(), TinyModel::kVocabulary);
  EXPECT_EQ(text.encode("Hi!", false), (std::vector<int32_t>{'H', 'i', '!'}));
  const std::string mixed = "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\n\t end";
  EXPECT_EQ(text.decode(text.encode(mixed, false)), mixed);
  EXPECT_TRUE(text.encode("", false).empty());
}

TEST(TextCodec, ControlTokensAreParsedOnRequestOnly) {
  const TextCodec text = tiny();
  EXPECT_EQ(text.encode("<|im_end|>", true), (std::vector<int32_t>{TinyModel::kEnd}));
  EXPECT_EQ(text.encode("<|im_end|>", false).size(), 10u);
  const std::vector<int32_t> ids = {'a', TinyModel::kEnd};
  EXPECT_EQ(text.decode(ids, false), "a<|im_end|>");
  EXPECT_EQ(text.decode(ids, true), "a");
}

TEST(TextCodec, EndTokensComeFromTheFilesAndTheVocabulary) {
  EXPECT_THAT(tiny().end_tokens(), ::testing::ElementsAre(256, 258));
}

TEST(TextCodec, CutCharactersBecomeReplacementCharacters) {
  const std::vector<int32_t> ids = {0xe2, 0x82};
  EXPECT_EQ(tiny().decode(ids), "\xef\xbf\xbd");
}

TEST(TextCodec, UnknownIdsAreRefused) {
  const std::vector<int32_t> ids = {1, 259};
  expect_error(ErrorKind::usage, {"259"}, [&] { (void)tiny().decode(ids); });
}

TEST(TextCodec, ChatTemplate) {
  const std::vector<Message> messages = {{"system", "Be kind."}, {"user", "Hi"}};
  EXPECT_EQ(
      tiny().render_chat(messages),
      "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  ChatOptions options;
  options.add_generation_prompt = false;
  options.template_source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
  EXPECT_EQ(tiny().render_chat(messages, options), "[system]Be kind.[user]Hi");
  EXPECT_EQ(tiny().encode_chat(messages).front(), 257);
}

TEST(TextCodec, TemplateArguments) {
  EXPECT_EQ(TextCodec::template_from("chatml"), "chatml");
  const std::filesystem::path file = TinyWorld::get().folder / "my.jinja";
  std::ofstream(file) << "{{ messages[0].content }}";
  EXPECT_EQ(TextCodec::template_from(file.string()), "{{ messages[0].content }}");
  expect_error(ErrorKind::usage, {"nonsense", "chatml"}, [] { (void)TextCodec::template_from("nonsense"); });
}

TEST(TextCodec, AModelWithoutATemplateSaysSo) {
  const std::filesystem::path folder = TinyWorld::get().folder / "bare";
  testing::write_tiny_model(folder);
  std::filesystem::remove(folder / "chat_template.jinja");
  const TextCodec text = TextCodec::load(folder.string());
  const std::vector<Message> messages = {{"user", "Hi"}};
  expect_error(ErrorKind::unsupported, {"no chat template", "--raw", "chatml"},
               [&] { (void)text.render_chat(messages); });
  ChatOptions chatml;
  chatml.template_source = "chatml";
  EXPECT_THAT(text.render_chat(messages, chatml), ::testing::HasSubstr("<|im_start|>user\nHi<|im_end|>"));
}

TEST(TextCodec, ATemplateThatCannotRunLeavesTheRestAlone) {
  const std::filesystem::path folder = TinyWorld::get().folder / "odd";
  testing::write_tiny_model(folder);
  std::ofstream(folder / "chat_template.jinja") << "{% for %}";
  const TextCodec text = TextCodec::load(folder.string());
  EXPECT_EQ(text.encode("a", false).size(), 1u);
  const std::vector<Message> messages = {{"user", "Hi"}};
  EXPECT_THROW((void)text.render_chat(messages), Error);
}

TEST(TextCodec, AModelWithoutATokenizerStillComputesLogits) {
  const std::filesystem::path folder = TinyWorld::get().folder / "mute";
  testing::write_tiny_model(folder);
  std::filesystem::remove(folder / "tokenizer.json");
  const LanguageModel model = LanguageModel::load(folder.string(), {.threads = 1});
  expect_error(ErrorKind::file, {"no tokenizer.json"}, [&] { (void)model.text(); });
  Session session(model);
  const std::vector<int32_t> ids = {1, 2, 3};
  EXPECT_TRUE(session.prefill(ids));
  EXPECT_EQ(session.last_logits().size(), TinyModel::kVocabulary);
  EXPECT_THROW((void)session.generate(ids), Error);
}

TEST(TextCodec, ATokenizerThatDoesNotFitTheModelIsRefused) {
  const std::filesystem::path folder = TinyWorld::get().folder / "misfit";
  testing::write_tiny_model(folder);
  Json tokenizer = read_json_file(folder / "tokenizer.json");
  tokenizer["added_tokens"][2]["id"] = 300;
  std::ofstream(folder / "tokenizer.json") << tokenizer.dump();
  const LanguageModel model = LanguageModel::load(folder.string(), {.threads = 1});
  expect_error(ErrorKind::mismatch, {"259"}, [&] { (void)model.text(); });
}

}  // namespace
}  // namespace keysieve
