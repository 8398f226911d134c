#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/attention_mode.h"

namespace keysieve {

struct ReadingOptions {
  AttentionMode mode = AttentionMode::sparse;
  size_t queries = 8;  // the last ones of the text
  const std::atomic<bool>* cancel = nullptr;
};

// Of one layer. The shares are of the probability that full attention has under the run's own hidden states,
// mean over the queries and heads.
struct LayerReading {
  double captured = 0;  // on the positions read
  double best = 0;      // on the best positions at this budget, chosen freely for each query and set
  double recent = 0;    // on sinks and the most recent positions at this budget
  // [queries]: one digit (0-9, then a-z) a position up to the query's own, how many KV heads read it.
  std::vector<std::string> reads;
};

struct Reading {
  std::vector<size_t> queries;  // positions, ascending
  size_t heads = 1;             // KV heads
  std::vector<LayerReading> layers;
};

// Reads `tokens` and looks at the last `options.queries` of them. nullopt: cancelled. Throws Error{usage} for
// no queries or more than tokens, Error{unsupported} for models of more than 35 KV heads, and as
// EvalSetting::sequence.
std::optional<Reading> run_reading(const EvalSetting& setting, std::span<const int32_t> tokens,
                                   const ReadingOptions& options);

}  // namespace keysieve
