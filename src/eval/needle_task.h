#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace keysieve {

enum class NeedleForm : uint8_t {
  code,   // "The secret code is NNNN.", the published indexer's own test
  words,  // told in one set of words, asked for in another
  pairs,  // one of eight keys with values, seven of them decoys
  two     // two codes half the text apart, both asked for
};
std::string_view to_string(NeedleForm form);

// What is hidden in the prose and what is asked about it.
struct NeedleTask {
  struct Plant {
    std::string sentence;
    double depth;  // 0 to 1
  };
  std::vector<Plant> plants;       // the first is the one that a trial's depth speaks of
  std::string question;            // after the prose
  std::string answer;              // as the model would put it: what teacher forcing feeds
  std::vector<std::string> codes;  // four digits each, in the order of `answer`
};

// `code` at `depth`; other codes, keys and depths are drawn from `seed`.
NeedleTask make_needle_task(NeedleForm form, const std::string& code, double depth, uint64_t seed);

// Tokens a greedy answer may take.
size_t needle_answer_tokens(NeedleForm form);

}  // namespace keysieve
