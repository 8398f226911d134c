#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "eval/attention_mode.h"
#include "eval/needle_task.h"
#include "eval/partial_results.h"

namespace keysieve {

enum class NeedleProtocol : uint8_t {
  in_prompt,  // the question stands in the prompt, so what is read and kept can follow it
  after,      // the question arrives when the document has been read (and a fixed cache has been cut)
};

struct NeedleOptions {
  std::vector<size_t> contexts{4096};  // tokens of prompt and answer together
  size_t trials = 20;
  std::vector<AttentionMode> modes;
  std::vector<size_t> budgets = {};   // every mode but dense runs at each of them; empty: the setting's
  PartialResults* partial = nullptr;  // what is done already, and where to put the rest
  NeedleProtocol protocol = NeedleProtocol::in_prompt;
  NeedleForm form = NeedleForm::code;
  std::vector<std::string> haystacks;  // texts, used in turn; not empty
  uint64_t seed = 1;
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(size_t done, size_t total)> on_progress =
      {};  // runs: contexts x trials x rows of a context
};

struct NeedleTrial {
  size_t context = 0;
  AttentionMode mode = AttentionMode::dense;
  size_t budget = 0;  // 0: dense
  double depth = 0;
  std::vector<std::string> codes;
  std::string answer;   // greedy, at most needle_answer_tokens(form) tokens
  bool passed = false;  // the answer names every code
  bool strict = false;  // in the task's own answer, every token of a code is the greedy choice
  // Mean negative log likelihood of the codes' tokens there, nats. nullopt, and `strict` false: a cache that
  // forgets cannot go back to the prompt's end.
  std::optional<double> code_nll;
  double prefill_seconds = 0;   // what the trial before has read of the same text took none
  size_t tokens_read = 0;       // of the prompt, but for that; 0: the trial was known already
  double positions_read = 0;    // by one query in one layer, mean over the prompt (the first one of its text)
  uint64_t peak_rss_bytes = 0;  // of this process so far in this row
};

struct NeedleRow {
  size_t context = 0;
  size_t budget = 0;  // 0: dense
  AttentionMode mode = AttentionMode::dense;
  size_t trials = 0;
  size_t passed = 0;
  size_t strict = 0;
  std::optional<size_t> passed_of_dense;  // passed among the trials that dense passed; none without dense
  std::optional<double> code_nll;         // mean over trials that all have one
  std::array<double, 2> wilson95{0, 1};   // of `passed`
  double prefill_seconds = 0;             // mean over trials
  double positions_read = 0;              // by one query in one layer, mean over the prompts
  uint64_t peak_rss_bytes = 0;  // highest of this process during the row, where the system can say so
};

struct NeedleResult {
  std::vector<NeedleRow> rows;      // [contexts, budgets, modes], dense once
  std::vector<NeedleTrial> trials;  // [rows, trials]
};

// nullopt: cancelled. Throws what make_needle_prompt and EvalSetting::sequence throw, Error{usage} for no
// modes, trials or haystacks, Error{mismatch} for a context longer than the model's.
std::optional<NeedleResult> run_needle(const EvalSetting& setting, const NeedleOptions& options);

// A likelihood as documents have it: null where there is none.
Json or_null(std::optional<double> value);

}  // namespace keysieve
