#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "keysieve/indexer.h"
#include "keysieve/model.h"

namespace keysieve {

enum class CacheKind : uint8_t {
  full,    // every key and value stays; attention still reads only the selected
  fixed,   // after the prompt each layer keeps exactly `budget` entries, for ever
  tiered,  // selected rows stay in RAM, the others in a cold store from which they can come back
};
enum class SelectionMode : uint8_t {
  from_indexer,  // as the indexer's file says
  shared,        // one set of positions per layer
  per_group,     // one set per KV head
};

// When a fixed cache is cut to its budget while a prompt is read.
enum class PruneRule : uint8_t {
  after_prompt,      // once, after the prompt: its memory grows with the prompt until then
  after_each_chunk,  // after each chunk of at most 512 tokens: its memory never exceeds budget + chunk rows
};

struct SessionOptions {
  std::optional<LightningIndexer> indexer;  // nullopt: dense attention
  size_t budget = 0;  // positions each query may read, sinks and recent included; 0: the indexer's own
  std::optional<size_t> sinks;  // first positions always read; nullopt: the indexer's own
  std::optional<size_t>
      recent;  // last positions always read, the query's own included; nullopt: the indexer's own
  SelectionMode selection = SelectionMode::from_indexer;
  // Layers that read sparsely, counted from 0; the others read everything, as those the indexer has nothing
  // for always do. Empty: all. What one layer's selection costs in quality shows so.
  std::vector<size_t> sparse_layers;
  // Neighbouring queries of a prompt that choose their positions together, from a position that is a multiple
  // of it on: faster, with one choice for all, whose keys AVX-512 BF16 reads once. At most kMostQueryBlock;
  // 0: the indexer's own (1 for seed indexers).
  static constexpr size_t kMostQueryBlock = 64;
  size_t query_block = 0;
  // In decode and for the last 64 queries of a prompt: of so many positions that the indexer scores best, the
  // model's own attention chooses those that are read. A rare key is found more surely, for as many keys read
  // beside. Up to the budget, and with a tiered cache, most of whose keys are not in place, the indexer alone
  // chooses. nullopt: the indexer's own.
  std::optional<size_t> refine;
  // The same for a prompt's queries before these (and for a text that `eval ppl` reads): reading is slower
  // and loses less at a small budget.
  std::optional<size_t> refine_prompt;
  // Layers that these two hold for, counted from 0; in the others the indexer alone chooses. Empty: the
  // indexer's own, all if it names none.
  std::vector<size_t> refine_layers;
  // A query with more candidates than the budget reads only the fewest positions that the indexer expects to
  // carry this share of its attention, at most the budget. 1: always the budget. Less needs a native indexer;
  // what a fixed cache keeps is not touched.
  double mass = 1;
  CacheKind cache = CacheKind::full;
  // tiered: a folder for the cold store, on a disk with room for every key and value of the context. Its file
  // has no name and ends with the session or the process. Empty: the store is in RAM.
  std::filesystem::path cold_store;
  // fixed: how many of the last queries of a prompt (or chunk) vote on what stays. 0: 32, as in SnapKV (arXiv
  // 2404.14469); for seed indexers 1, their published rule.
  size_t voters = 0;
  PruneRule prune = PruneRule::after_prompt;  // fixed
  size_t context = 0;                         // positions to reserve; 0: the model's
};

// Filters work in this order: repetition penalty, top-k, top-p, min-p, temperature, draw (llama.cpp's order).
struct SamplingOptions {
  float temperature = 0;         // 0: greedy, the other filters are then not used except the penalty
  size_t top_k = 0;              // the k most likely; 0: all
  float top_p = 1;               // the fewest most likely that reach this share; 1: all
  float min_p = 0;               // at least this share of the most likely one's probability; 0: all
  float repetition_penalty = 1;  // > 1 makes every token seen so far less likely (CTRL, arXiv 1909.05858)
  uint64_t seed = 0;             // equal seeds give equal texts, on every machine
};

struct GenerateOptions {
  size_t max_tokens = 256;
  SamplingOptions sampling;
  std::vector<std::string> stop;  // the text ends before the first of these
  bool ignore_end_tokens = false;
  const std::atomic<bool>* cancel =
      nullptr;  // set to true (from a signal handler, say): stops as soon as it can
  std::function<void(size_t done, size_t total)> on_prefill;  // prompt tokens processed, after each chunk
};

enum class StopReason : uint8_t {
  end_token,    // "end": the model said so
  stop_string,  // "stop"
  max_tokens,   // "length"
  context,      // "context": no position left
  interrupted,  // "interrupted": cancel or the callback
};
std::string_view to_string(StopReason reason);

struct PhaseStatistics {
  size_t tokens = 0;
  double seconds = 0;
  double positions_read = 0;   // by one query in one layer, mean over queries, layers and KV heads
  uint64_t kv_bytes_read = 0;  // keys and values of the positions read, summed over queries and layers
  // What must come from memory at least: weights, keys, values and index keys that a pass over the layers (a
  // token of an answer, up to 512 tokens of a prompt) reads, each counted once a pass.
  uint64_t memory_bytes_read = 0;
  uint64_t multiply_adds = 0;  // of weight products, attention and index scores
  double tokens_per_second() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};

struct MemoryStatistics {
  uint64_t weights_bytes = 0;
  uint64_t kv_hot_bytes = 0;    // keys and values in RAM
  uint64_t kv_cold_bytes = 0;   // in the cold store, those also in RAM included
  uint64_t kv_moved_bytes = 0;  // brought back from the cold store since the last clear()
  uint64_t index_bytes = 0;     // index keys
  uint64_t slot_map_bytes = 0;  // of a tiered cache: where hot rows lie
  uint64_t peak_rss_bytes = 0;
};

struct Statistics {
  PhaseStatistics prefill;
  PhaseStatistics decode;
  uint64_t kv_bytes_kept = 0;  // hot and cold, at the end
  MemoryStatistics memory;
};

struct GenerateResult {
  std::string text;                // without the stop string and the end token
  std::vector<int32_t> token_ids;  // all tokens drawn, an end token included
  size_t prompt_tokens = 0;
  size_t reused_tokens = 0;  // of the prompt, found in the cache from before
  StopReason stop_reason = StopReason::max_tokens;
  Statistics statistics;  // of this call
};

// One sequence: KV cache, index keys and counters.
class Session {
 public:
  // Throws Error{usage} for options out of range (a budget smaller than sinks + recent, a cache that needs an
  // indexer without one), Error{mismatch} for an indexer of another model, Error{unsupported},
  // Error{resource}.
  explicit Session(const LanguageModel& model, const SessionOptions& options = {});
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  // Called with each piece of text that can be shown: whole characters, nothing that may still become a stop
  // string. Return false to stop.
  using TextCallback = std::function<bool(std::string_view piece)>;

  // Continues `prompt` (ids of the whole sequence, not what is new). What the cache holds of it is reused: a
  // prompt that begins with the tokens of the last call is processed from where it differs; a cache that has
  // dropped positions (fixed) is started anew unless the prompt extends it. Throws Error{mismatch} with the
  // numbers for a prompt that leaves no room in the context, Error{usage} for an empty one or for ids outside
  // the vocabulary.
  GenerateResult generate(std::span<const int32_t> prompt, const GenerateOptions& options = {},
                          const TextCallback& on_text = {});

  // Appends tokens to the sequence; afterwards last_logits() is [vocabulary]. Returns false where `cancel`
  // stopped it (the sequence then holds the chunks already done). Throws as generate().
  bool prefill(std::span<const int32_t> tokens, const std::atomic<bool>* cancel = nullptr);
  std::span<const float> last_logits() const;

  // One row [vocabulary] per token, in order, of a fresh sequence (clear() first and last).
  using LogitsCallback = std::function<void(size_t position, std::span<const float> row)>;
  // `selection`: if given, filled with what was read: [layer][query][group] -> ascending positions; one group
  // where attention is dense or the selection is shared, else one for each KV head. Returns false where
  // `cancel` stopped it. Throws as generate().
  using SelectionRecord = std::vector<std::vector<std::vector<std::vector<uint32_t>>>>;
  bool logits(std::span<const int32_t> tokens, const LogitsCallback& on_row,
              SelectionRecord* selection = nullptr, const std::atomic<bool>* cancel = nullptr);

  // The same into files: float32 .npy [tokens, vocabulary], and JSON [layer][query] -> positions (per-group
  // selections: [layer][query][group] -> positions) unless the path is empty. The files appear whole or not
  // at all. `on_rows` (may be empty) hears how many rows are done. Throws Error{file} too. Returns false
  // where `cancel` stopped it.
  bool write_logits(std::span<const int32_t> tokens, const std::filesystem::path& npy,
                    const std::filesystem::path& selection = {}, const std::atomic<bool>* cancel = nullptr,
                    const std::function<void(size_t done, size_t total)>& on_rows = {});

  // The sequence in a file: tokens, keys, values, index keys, last logits. The file appears whole or not at
  // all. Throws Error{file}, a full disk included.
  void save(const std::filesystem::path& file) const;
  // Takes a saved sequence in place of this one; what follows is as if nothing had happened in between.
  // Throws Error{mismatch} for another model or indexer, other precision of keys, a fixed cache of other
  // budgets or none, or more tokens than the context has; a full and a tiered cache load each other's.
  // Error{file}, Error{format} for damaged files, Error{unsupported} for other versions. After an exception
  // the sequence is empty.
  void load(const std::filesystem::path& file);
  std::span<const int32_t> tokens() const;  // of the sequence, one for each position

  void clear();                   // forgets the sequence and its statistics; the memory is given back
  size_t length() const;          // tokens in the sequence
  size_t capacity() const;        // tokens it can hold
  size_t budget() const;          // in use; 0: dense
  Statistics statistics() const;  // since the last clear()

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace keysieve
