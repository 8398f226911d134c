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
  two,    // two codes half the text apart, both asked for
  keys    // each of eight keys in turn: eight trials of one text, which is read once
};
inline constexpr NeedleForm kNeedleForms[] = {NeedleForm::code, NeedleForm::words, NeedleForm::pairs,
                                              NeedleForm::two, NeedleForm::keys};
std::string_view to_string(NeedleForm form);

// What is hidden in the prose and what is asked about it.
struct NeedleTask {
  struct Plant {
    std::string sentence;
    double depth;  // 0 to 1
  };
  std::vector<Plant> plants;
  size_t asked = 0;                // the plant that a trial's depth speaks of
  std::string question;            // after the prose
  std::string answer;              // as the model would put it: what teacher forcing feeds
  std::vector<std::string> codes;  // four digits each, in the order of `answer`
};

// Trials that share a text.
size_t needle_questions(NeedleForm form);

// `code` at `depth`; other codes, keys and depths are drawn from `seed`. With keys all of them are, and
// spread evenly; `question` < needle_questions(form) says which is asked for.
NeedleTask make_needle_task(NeedleForm form, const std::string& code, double depth, uint64_t seed,
                            size_t question = 0);

// Tokens a greedy answer may take.
size_t needle_answer_tokens(NeedleForm form);

}  // namespace keysieve
