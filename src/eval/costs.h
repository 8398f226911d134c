#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "eval/attention_mode.h"
#include "eval/partial_results.h"

namespace keysieve {

struct LatencyOptions {
  std::vector<size_t> contexts{4096};
  std::vector<AttentionMode> modes;
  size_t decode_tokens = 32;          // the last of each context
  PartialResults* partial = nullptr;  // what is done already, and where to put the rest
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(size_t done, size_t total)> on_progress = {};  // runs: contexts x modes
};

struct LatencyRow {
  size_t context = 0;
  size_t budget = 0;  // 0: dense
  AttentionMode mode = AttentionMode::dense;
  double prefill_seconds = 0;
  double decode_seconds = 0;
  double prefill_tokens_per_second = 0;
  double decode_tokens_per_second = 0;
  double decode_positions_read = 0;  // by one query in one layer
};

// Times the prompt and then greedy decoding at the end of each context. `tokens` must hold the longest
// context. One run each; compare runs of one call, on a machine that does nothing else. nullopt: cancelled.
// Rows that partial results hold were timed when they were made.
// Throws Error{mismatch} for too few tokens or a context longer than the model's, Error{usage} for a context
// not longer than decode_tokens, and as EvalSetting::require.
std::optional<std::vector<LatencyRow>> run_latency(const EvalSetting& setting,
                                                   std::span<const int32_t> tokens,
                                                   const LatencyOptions& options);

struct MemoryRow {
  size_t context = 0;
  uint64_t dense_kv_bytes = 0;   // a full cache of so many tokens
  uint64_t sparse_kv_bytes = 0;  // a cache that keeps `budget` of them
  uint64_t sparse_index_bytes = 0;
  double saved_percent = 0;             // keys and values alone
  double saved_percent_with_index = 0;  // index keys counted as well
};

// Bytes of the caches for `shape` (capacity is ignored). Asked of the allocator itself for 64 tokens and
// multiplied, which is exact as long as rows have one size: nothing of the context's size is allocated.
std::vector<MemoryRow> memory_table(const CacheShape& shape, size_t budget, std::span<const size_t> contexts);

// What a session of this setting stores: the model's rows and the indexer's keys.
CacheShape cache_shape(const EvalSetting& setting);
// Qwen3-8B with fp16 rows and the published all-sparse indexer's one f32 key of 69 values: 147,456 B of keys
// and values a token.
CacheShape qwen3_8b_shape();

}  // namespace keysieve
