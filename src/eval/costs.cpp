#include "eval/costs.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "cache/full_cache.h"
#include "core/cancel.h"
#include "eval/scoring.h"
#include "keysieve/error.h"
#include "model/forward.h"

namespace keysieve {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check(const EvalSetting& setting, std::span<const int32_t> tokens, const LatencyOptions& options) {
  for (const AttentionMode mode : options.modes) setting.require(mode);
  if (options.decode_tokens == 0) throw Error(ErrorKind::usage, "decode tokens", "0", "at least 1");
  const size_t limit = setting.model()->config().context;
  for (const size_t context : options.contexts) {
    if (context <= options.decode_tokens) {
      throw Error(ErrorKind::usage, "latency context", fmt::format("{} tokens", context),
                  fmt::format("more than the {} to decode", options.decode_tokens));
    }
    if (context > limit) {
      throw Error(ErrorKind::mismatch, "latency context", fmt::format("{} tokens", context),
                  fmt::format("at most {}, the model's context", limit), "change --contexts");
    }
    if (context - options.decode_tokens > tokens.size()) {
      throw Error(ErrorKind::mismatch, "latency text", fmt::format("{} tokens", tokens.size()),
                  fmt::format("{}", context - options.decode_tokens), "give a longer --text");
    }
  }
}

LatencyRow measure(SequenceState state, std::span<const int32_t> prompt, const LatencyOptions& options,
                   bool& cancelled) {
  // Reserves every buffer at its full size before the clock starts.
  forward(state, prompt.first(1));
  state.clear();
  LatencyRow row;
  const auto keep_going = [&](size_t) {
    cancelled = is_cancelled(options.cancel);
    return !cancelled;
  };
  const Clock::time_point start = Clock::now();
  prefill(state, prompt, {}, keep_going);
  row.prefill_seconds = seconds_since(start);
  if (cancelled) return row;
  const WorkCounters before = state.work();
  const Clock::time_point decode_start = Clock::now();
  for (size_t i = 0; i < options.decode_tokens && keep_going(i); ++i) {
    const int32_t next = greedy_choice(state.last_logits());
    forward(state, {&next, 1});
  }
  row.decode_seconds = seconds_since(decode_start);
  const uint64_t queries = state.work().queries - before.queries;
  row.decode_positions_read = static_cast<double>(state.work().positions_read - before.positions_read) /
                              static_cast<double>(std::max<uint64_t>(queries, 1));
  return row;
}

// Timed in an earlier run of the same question.
bool known_row(const LatencyOptions& options, const std::string& key, LatencyRow& row) {
  const Json* known = options.partial ? options.partial->find(key) : nullptr;
  if (known == nullptr) return false;
  const auto value = [&](const char* name) {
    if (known->is_object() && known->contains(name) && known->at(name).is_number())
      return known->at(name).get<double>();
    throw Error(ErrorKind::format, "partial results", fmt::format("\"{}\" without {}", key, name),
                "a number");
  };
  row.prefill_seconds = value("prefill_seconds");
  row.decode_seconds = value("decode_seconds");
  row.decode_positions_read = value("decode_positions_read");
  return true;
}

double saved(uint64_t dense, uint64_t sparse) {
  return 100 * (1 - static_cast<double>(sparse) / static_cast<double>(dense));
}

}  // namespace

std::optional<std::vector<LatencyRow>> run_latency(const EvalSetting& setting,
                                                   std::span<const int32_t> tokens,
                                                   const LatencyOptions& options) {
  check(setting, tokens, options);
  std::vector<LatencyRow> rows;
  for (const size_t context : options.contexts) {
    for (const AttentionMode mode : options.modes) {
      const auto prompt = tokens.first(context - options.decode_tokens);
      LatencyRow row;
      const std::string key = fmt::format("{} {} {}", context, to_string(mode), setting.budget(mode));
      if (!known_row(options, key, row)) {
        bool cancelled = false;
        row = measure(setting.sequence(mode, context), prompt, options, cancelled);
        if (cancelled) return std::nullopt;
        if (options.partial) {
          options.partial->put(key, {{"prefill_seconds", row.prefill_seconds},
                                     {"decode_seconds", row.decode_seconds},
                                     {"decode_positions_read", row.decode_positions_read}});
        }
      }
      row.context = context;
      row.budget = setting.budget(mode);
      row.mode = mode;
      row.prefill_tokens_per_second = static_cast<double>(prompt.size()) / row.prefill_seconds;
      row.decode_tokens_per_second = static_cast<double>(options.decode_tokens) / row.decode_seconds;
      rows.push_back(row);
      if (options.on_progress)
        options.on_progress(rows.size(), options.contexts.size() * options.modes.size());
    }
  }
  return rows;
}

std::vector<MemoryRow> memory_table(const CacheShape& shape, size_t budget,
                                    std::span<const size_t> contexts) {
  constexpr size_t kProbe = 64;  // four whole blocks of index keys
  CacheShape probe = shape;
  probe.layers = 1;
  probe.capacity = kProbe;
  FullCache cache(probe, make_kernels("reference"));
  const std::vector<float> rows(kProbe * shape.kv_heads * shape.head_dim, 0.0f);
  const std::vector<float> keys(kProbe * shape.index_heads * shape.index_dim, 0.0f);
  std::vector<int32_t> positions(kProbe);
  for (size_t i = 0; i < kProbe; ++i) positions[i] = static_cast<int32_t>(i);
  cache.append(0, {rows.data(), rows.data(), keys.empty() ? nullptr : keys.data(), positions.data(), kProbe});
  const CacheBytes bytes = cache.bytes();
  std::vector<MemoryRow> table;
  for (const size_t context : contexts) {
    const size_t kept = std::min(context, budget);
    MemoryRow row;
    row.context = context;
    row.dense_kv_bytes = bytes.hot * shape.layers * context / kProbe;
    row.sparse_kv_bytes = bytes.hot * shape.layers * kept / kProbe;
    row.sparse_index_bytes = bytes.index * shape.layers * kept / kProbe;
    row.saved_percent = saved(row.dense_kv_bytes, row.sparse_kv_bytes);
    row.saved_percent_with_index = saved(row.dense_kv_bytes, row.sparse_kv_bytes + row.sparse_index_bytes);
    table.push_back(row);
  }
  return table;
}

CacheShape cache_shape(const EvalSetting& setting) {
  const AttentionMode mode =
      setting.can(AttentionMode::sparse) ? AttentionMode::sparse : AttentionMode::dense;
  return setting.sequence(mode, 64).cache().shape();
}

CacheShape qwen3_8b_shape() {
  CacheShape shape;
  shape.layers = 36;
  shape.kv_heads = 8;
  shape.head_dim = 128;
  shape.kv_type = KvType::f16;
  shape.index_heads = 1;
  shape.index_dim = 69;
  shape.index_type = IndexKeyType::f32;
  return shape;
}

}  // namespace keysieve
