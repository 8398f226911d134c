#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/attention_mode.h"
#include "eval/partial_results.h"

namespace keysieve {

// A word problem of GSM8K (arXiv 2110.14168): the answer ends with "#### NUMBER".
struct WordProblem {
  std::string question;
  std::string answer;
};

// One JSON object with "question" and "answer" a line; empty lines are skipped. Throws Error{format} naming
// `subject` and the line for anything else, and for an answer without a number after ####.
std::vector<WordProblem> parse_word_problems(std::string_view text, const std::string& subject);

// The number that an answer gives: the one after the last "####", else after the last "The answer is", else
// the last number there is. Without thousands' commas and currency signs; nullopt: there is none.
std::optional<double> extract_answer(std::string_view text);

// Worked examples, then the question: "Question: ...\nAnswer: ..." each. The examples' <<48/2=24>> notes for
// a calculator are left out.
std::string word_problem_prompt(std::span<const WordProblem> shots, const WordProblem& problem);

struct WordProblemOptions {
  AttentionMode mode = AttentionMode::dense;
  std::vector<WordProblem> shots;
  std::vector<WordProblem> problems;
  size_t max_tokens = 256;  // of an answer
  PartialResults* partial = nullptr;
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(size_t done, size_t total)> on_progress = {};
};

struct WordProblemResult {
  size_t total = 0;
  size_t correct = 0;
  std::array<double, 2> wilson95{0, 1};
  size_t over_budget = 0;      // problems whose prompt and answer were longer than the budget
  size_t cut_short = 0;        // answers that max_tokens or the context ended
  double sequence_tokens = 0;  // prompt and answer, mean
};

// Answers greedily, up to an end token, an empty line or the next "Question:". What a prompt shares with the
// one before is not read again, unless the cache has dropped some of it. nullopt: cancelled. Throws
// Error{usage} for no problems, Error{mismatch} for a prompt longer than the context, and as
// EvalSetting::sequence.
std::optional<WordProblemResult> run_word_problems(const EvalSetting& setting,
                                                   const WordProblemOptions& options);

}  // namespace keysieve
