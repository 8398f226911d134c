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

constexpr size_t kPairs = 8;

std::string told(const std::string& key, const std::string& value) {
  return fmt::format("The value of key {} is {}.", key, value);
}

void ask_for(NeedleTask& task, const std::string& key, const std::string& value) {
  task.codes = {value};
  task.question = fmt::format("What is the value of key {}? Answer with the number.", key);
  task.answer = fmt::format("The value of key {} is {}", key, value);
}

NeedleTask keys(size_t asked, SplitMix& random) {
  NeedleTask task;
  std::vector<std::string> names, values;
  for (size_t i = 0; i < kPairs; ++i) {
    names.push_back(key_name(random, i));
    values.push_back(other_code(random, values));
    const double depth = (static_cast<double>(i) + 0.5) / static_cast<double>(kPairs);
    task.plants.push_back({told(names[i], values[i]), depth});
  }
  task.asked = asked;
  ask_for(task, names[asked], values[asked]);
  return task;
}

NeedleTask pairs(const std::string& code, double depth, SplitMix& random) {
  NeedleTask task;
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
    task.plants.push_back({told(name, values.back()), random.unit()});
  }
  task.plants.insert(task.plants.begin(), {told(key, code), depth});
  ask_for(task, key, code);
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
      return "two";
    case NeedleForm::keys:
      break;
  }
  return "keys";
}

size_t needle_questions(NeedleForm form) { return form == NeedleForm::keys ? kPairs : 1; }

NeedleTask make_needle_task(NeedleForm form, const std::string& code, double depth, uint64_t seed,
                            size_t question) {
  SplitMix random(seed);
  switch (form) {
    case NeedleForm::code:
      return {{{fmt::format("The secret code is {}.", code), depth}},
              0,
              "What is the secret code? Answer with the number.",
              "The secret code is " + code,
              {code}};
    case NeedleForm::words:
      return {{{fmt::format("To open the vault in the cellar, dial {}.", code), depth}},
              0,
              "Which number unlocks the safe below the house? Answer with the number.",
              "The number is " + code,
              {code}};
    case NeedleForm::pairs:
      return pairs(code, depth, random);
    case NeedleForm::keys:
      return keys(question, random);
    case NeedleForm::two:
      break;
  }
  const std::string second = other_code(random, {code});
  return {{{fmt::format("The first secret code is {}.", code), depth},
           {fmt::format("The second secret code is {}.", second), std::fmod(depth + 0.5, 1.0)}},
          0,
          "What are the first and the second secret code? Answer with both numbers.",
          fmt::format("The first secret code is {} and the second secret code is {}", code, second),
          {code, second}};
}

size_t needle_answer_tokens(NeedleForm form) { return form == NeedleForm::two ? 32 : 16; }

}  // namespace keysieve
