#include "train/retrieval.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

namespace keysieve {
namespace {

constexpr std::array<std::string_view, 24> kThings{
    "harbour", "bridge",  "library", "lighthouse",  "orchard", "mill",   "station", "chapel",
    "garden",  "foundry", "archive", "observatory", "market",  "tavern", "tower",   "school",
    "brewery", "canal",   "theatre", "workshop",    "quarry",  "museum", "stable",  "bakery"};
constexpr std::array<std::string_view, 16> kStems{"El",  "Mar", "Tor", "Wes", "Bran", "Ka",  "Ol",  "Sti",
                                                  "Ver", "Hal", "Dun", "Ro",  "Pel",  "Gas", "Lin", "Cor"};
constexpr std::array<std::string_view, 12> kEndings{"sin", "ton",  "vale", "by",   "mouth", "garde",
                                                    "low", "wick", "den",  "stad", "rona",  "mere"};
constexpr std::array<std::string_view, 16> kWords{
    "amber",   "copper", "violet",  "cedar",  "walnut",  "silver", "falcon", "otter",
    "lantern", "anchor", "thistle", "marble", "saffron", "heron",  "velvet", "cobalt"};

struct Fact {
  std::string statement;
  std::string question;  // up to the answer
  std::string answer;
};

template <size_t N>
std::string_view any_of(const std::array<std::string_view, N>& list, SplitMix& random) {
  return list[random.below(N)];
}

std::string any_value(SplitMix& random) {
  switch (random.below(3)) {
    case 0:
      return fmt::format("{}", 100 + random.below(99900));
    case 1:
      return fmt::format("{} {}", any_of(kWords, random), any_of(kWords, random));
    default:
      return fmt::format("{}-{}", any_of(kWords, random), 10 + random.below(90));
  }
}

Fact make_fact(SplitMix& random) {
  const std::string key =
      fmt::format("{} of {}{}", any_of(kThings, random), any_of(kStems, random), any_of(kEndings, random));
  const std::string value = any_value(random);
  switch (random.below(4)) {
    case 0:
      return {fmt::format(" The number kept for the {} is {}.", key, value),
              fmt::format("\nQ: Which number is kept for the {}?\nA:", key), " " + value};
    case 1:
      return {fmt::format(" For the {}, remember: {}.", key, value),
              fmt::format("\nWhat should be remembered for the {}? It is", key), " " + value};
    case 2:
      return {fmt::format("\n{} = {}\n", key, value), fmt::format("\n{} =", key), " " + value};
    default:
      return {fmt::format(" They called the {} by the word {}.", key, value),
              fmt::format(" And the word by which they called the {} was", key), " " + value};
  }
}

void append(std::vector<int32_t>& tokens, const std::vector<int32_t>& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
}

// Tokens that follow `at` are predicted by the queries before them.
void mark(std::vector<uint32_t>& marked, size_t at, size_t count) {
  for (size_t i = 0; i < count; ++i) marked.push_back(static_cast<uint32_t>(at + i - 1));
}

// The first place at or after `at` (within 60 tokens) where a sentence or line has ended.
size_t after_sentence(const std::vector<int32_t>& tokens, size_t at, const Tokenizer& tokenizer) {
  for (size_t i = std::max<size_t>(at, 1); i < std::min(tokens.size(), at + 60); ++i) {
    const std::string bytes = tokenizer.token_bytes(tokens[i - 1]);
    if (!bytes.empty() && (bytes.back() == '.' || bytes.back() == '\n')) return i;
  }
  return std::min(at, tokens.size());
}

TrainingSequence with_facts(const std::vector<int32_t>& prose, const Tokenizer& tokenizer, SplitMix& random) {
  const size_t count = 3 + random.below(6);
  std::vector<std::vector<int32_t>> statements;
  std::vector<std::pair<std::vector<int32_t>, std::vector<int32_t>>> questions;
  size_t extra = 0;
  for (size_t i = 0; i < count; ++i) {
    const Fact fact = make_fact(random);
    statements.push_back(tokenizer.encode(fact.statement, false));
    questions.emplace_back(tokenizer.encode(fact.question, false), tokenizer.encode(fact.answer, false));
    extra += statements.back().size() + questions.back().first.size() + questions.back().second.size();
  }
  if (extra * 2 > prose.size()) return {prose, {}};
  const size_t room = prose.size() - extra;
  std::vector<size_t> places(count);
  for (size_t& place : places) place = after_sentence(prose, random.below(room), tokenizer);
  std::sort(places.begin(), places.end());

  TrainingSequence result;
  size_t read = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t place = std::min(places[i], room);
    result.tokens.insert(result.tokens.end(), prose.begin() + static_cast<std::ptrdiff_t>(read),
                         prose.begin() + static_cast<std::ptrdiff_t>(place));
    append(result.tokens, statements[i]);
    read = place;
  }
  result.tokens.insert(result.tokens.end(), prose.begin() + static_cast<std::ptrdiff_t>(read),
                       prose.begin() + static_cast<std::ptrdiff_t>(room));
  for (size_t i = count; i > 1; --i) std::swap(questions[i - 1], questions[random.below(i)]);
  for (const auto& [question, answer] : questions) {
    append(result.tokens, question);
    mark(result.marked, result.tokens.size(), answer.size());
    append(result.tokens, answer);
  }
  return result;
}

TrainingSequence with_repeats(const std::vector<int32_t>& prose, SplitMix& random) {
  const size_t room = prose.size() * 3 / 4;
  TrainingSequence result{{prose.begin(), prose.begin() + static_cast<std::ptrdiff_t>(room)}, {}};
  while (result.tokens.size() < prose.size()) {
    const size_t length = std::min(48 + random.below(113), prose.size() - result.tokens.size());
    const size_t begin = random.below(room - length);
    const auto first = prose.begin() + static_cast<std::ptrdiff_t>(begin);
    constexpr size_t kCue = 6;  // tokens until it is clear that this was read before
    if (length > kCue) mark(result.marked, result.tokens.size() + kCue, length - kCue);
    result.tokens.insert(result.tokens.end(), first, first + static_cast<std::ptrdiff_t>(length));
  }
  return result;
}

}  // namespace

TrainingSequence with_retrieval(std::vector<int32_t> tokens, const Tokenizer& tokenizer, SplitMix random) {
  if (tokens.size() < 512) return {std::move(tokens), {}};
  return random.below(3) == 0 ? with_repeats(tokens, random) : with_facts(tokens, tokenizer, random);
}

}  // namespace keysieve
