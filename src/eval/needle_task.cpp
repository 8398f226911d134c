#include "eval/needle_task.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/split_mix.h"

namespace keysieve {
namespace {

// A code none of `taken` is.
std::string other_code(SplitMix& random, const std::vector<std::string>& taken) {
  for (;;) {
    std::string code = fmt::format("{}", 1000 + random.below(9000));
    if (std::find(taken.begin(), taken.end(), code) == taken.end()) return code;
  }
}

// Keys that prose does not hold and that tell themselves apart in the first letters.
std::string key_name(SplitMix& random, size_t index) {
  static constexpr std::string_view kStems[] = {"amber", "birch", "cobalt", "dune",
                                                "ember", "fjord", "garnet", "hazel"};
  return fmt::format("{}-{}", kStems[index % std::size(kStems)], 10 + random.below(90));
}

NeedleTask pairs(const std::string& code, double depth, SplitMix& random) {
  constexpr size_t kPairs = 8;
  NeedleTask task;
  task.codes = {code};
  std::vector<std::string> values{code};
  const size_t asked = random.below(kPairs);
  std::string key;
  for (size_t i = 0; i < kPairs; ++i) {
    const std::string name = key_name(random, i);
    if (i == asked) {
      key = name;
      continue;
    }
    values.push_back(other_code(random, values));
    task.plants.push_back({fmt::format("The value of key {} is {}.", name, values.back()), random.unit()});
  }
  task.plants.insert(task.plants.begin(), {fmt::format("The value of key {} is {}.", key, code), depth});
  task.question = fmt::format("What is the value of key {}? Answer with the number.", key);
  task.answer = fmt::format("The value of key {} is {}", key, code);
  return task;
}

}  // namespace

std::string_view to_string(NeedleForm form) {
  switch (form) {
    case NeedleForm::code:
      return "code";
    case NeedleForm::words:
      return "words";
    case NeedleForm::pairs:
      return "pairs";
    case NeedleForm::two:
      break;
  }
  return "two";
}

NeedleTask make_needle_task(NeedleForm form, const std::string& code, double depth, uint64_t seed) {
  SplitMix random(seed);
  switch (form) {
    case NeedleForm::code:
      return {{{fmt::format("The secret code is {}.", code), depth}},
              "What is the secret code? Answer with the number.",
              "The secret code is " + code,
              {code}};
    case NeedleForm::words:
      return {{{fmt::format("To open the vault in the cellar, dial {}.", code), depth}},
              "Which number unlocks the safe below the house? Answer with the number.",
              "The number is " + code,
              {code}};
    case NeedleForm::pairs:
      return pairs(code, depth, random);
    case NeedleForm::two:
      break;
  }
  const std::string second = other_code(random, {code});
  return {{{fmt::format("The first secret code is {}.", code), depth},
           {fmt::format("The second secret code is {}.", second), std::fmod(depth + 0.5, 1.0)}},
          "What are the first and the second secret code? Answer with both numbers.",
          fmt::format("The first secret code is {} and the second secret code is {}", code, second),
          {code, second}};
}

size_t needle_answer_tokens(NeedleForm form) { return form == NeedleForm::two ? 32 : 16; }

}  // namespace keysieve
