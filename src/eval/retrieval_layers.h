#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "eval/attention_mode.h"
#include "eval/needle_task.h"
#include "eval/partial_results.h"

namespace keysieve {

struct RetrievalLayersOptions {
  size_t context = 4096;  // tokens of prompt and answer together
  size_t trials = 3;
  NeedleForm form = NeedleForm::code;
  std::vector<std::string> haystacks;  // texts, used in turn; not empty
  uint64_t seed = 1;
  // Layers to be refined together, each a row; empty: each layer of the model by itself.
  std::vector<std::vector<size_t>> sets = {};
  PartialResults* partial = nullptr;  // what is done already, and where to put the rest
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(size_t done, size_t total)> on_progress = {};  // questions: trials x rows
};

// One way to choose what the question and the answer read.
struct RetrievalRow {
  enum class Kind : uint8_t { dense, none, all, layers };
  Kind kind = Kind::layers;
  std::vector<size_t> layers = {};  // Kind::layers: those refined
  size_t passed = 0;                // trials whose greedy answer names every code
  double code_nll = 0;              // mean over trials, of the codes' tokens in the task's own answer, nats
  std::vector<double> each = {};    // [trials] the same of each
  std::vector<bool> each_passed = {};  // [trials]
  // KL(dense || row) of the next token, nats: mean over trials, each the mean over the tokens of the task's
  // own answer. It tells rows apart on prompts whose answers tell nothing.
  double kl = 0;
  std::vector<double> each_kl = {};  // [trials]
  // Mean over trials of what code_nll is above the same trial's without refining, and its standard error (0
  // for one trial): trials differ by more than rows do.
  double over_none = 0;
  double over_none_error = 0;
};

std::string_view to_string(RetrievalRow::Kind kind);
std::string name_of(const RetrievalRow& row);  // "dense", "none", "all", or its layers: "10,11"

// Which layers have to choose by attention itself (SelectionPolicy::refine, docs/decisions/0028) for a needle
// to be found: each text is read once, as the setting has it, and its last 64 tokens, the question among
// them, and the answer once for each row from there: dense, with no layer refined, all of them, and the sets.
// Other layers choose by the indexer alone. nullopt: cancelled. Throws what make_needle_prompt and
// EvalSetting::sequence throw, Error{usage} for a setting without indexer, whose `refine` is not above its
// budget or whose cache is not full, for no trials or haystacks, an empty set and a layer the model has not;
// Error{mismatch} for a context longer than the model's.
std::optional<std::vector<RetrievalRow>> run_retrieval_layers(const EvalSetting& setting,
                                                              const RetrievalLayersOptions& options);

}  // namespace keysieve
