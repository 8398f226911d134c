#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "eval/attention_mode.h"
#include "eval/needle_task.h"

namespace keysieve {

struct RetrievalLayersOptions {
  size_t context = 4096;  // tokens of prompt and answer together
  size_t trials = 3;
  NeedleForm form = NeedleForm::code;
  std::vector<std::string> haystacks;  // texts, used in turn; not empty
  uint64_t seed = 1;
  // Layers to be refined together, each a row; empty: each layer of the model by itself.
  std::vector<std::vector<size_t>> sets = {};
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
};

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
