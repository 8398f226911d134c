#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "indexer/model_shape.h"
#include "kernels/index_keys.h"

namespace keysieve {

// Where an indexer's queries and keys come from.
//   seed    the layer's RMS-normed hidden state; ReLU heads weighted from the hidden state, ONE key shared by
//   all
//           heads, its own half-split RoPE (DeepSeek-V3.2's lightning indexer in small).
//   native  the layer's own q and k AFTER RoPE, mapped from head_dim to `dim` by a small matrix per KV group
//   (or
//           per head); one key per KV group, no RoPE of its own.
enum class IndexerShape { seed, native };

// Far above any real model's: what a file may claim.
inline constexpr size_t kMostIndexerLayers = 4096;

// One set of positions for the whole layer, or one for each KV head.
enum class SelectionScope { shared, per_group };

enum class IndexKeyChoice {
  automatic,
  f32,
  i8,
  i4
};  // automatic: f32 for `seed` (its exact rule), i8 for `native`

std::string_view to_string(IndexerShape shape);           // "seed", "native"
std::string_view to_string(SelectionScope scope);         // "shared", "per-group"
std::string_view to_string(IndexKeyChoice choice);        // "auto", "f32", "i8", "i4"
std::string_view to_string(IndexCombine combine);         // "relu_sum", "softmax_sum", "linear_sum"
SelectionScope parse_selection_scope(std::string_view);   // throws Error{usage}
IndexerShape parse_indexer_shape(std::string_view);       // "native", "lightning"; throws Error{usage}
IndexKeyChoice parse_index_key_choice(std::string_view);  // throws Error{usage}

// Everything run_config.json says about an indexer. Training settings in the file are ignored.
struct IndexerConfig {
  IndexerShape shape = IndexerShape::seed;
  size_t layers = 0;      // 0 in the seed's files: as many as the model has
  size_t hidden = 0;      // seed: width of the hidden state; native: 0
  size_t heads = 0;       // query heads of the indexer; native: the model's heads
  size_t key_heads = 1;   // keys stored per position; seed: 1, native: the model's kv_heads
  size_t head_dim = 0;    // native: input width of the maps; seed: 0
  size_t dim = 0;         // width of one indexer query or key (`proj_dim`)
  size_t rope_dim = 0;    // seed: the first rope_dim values of each head rotate; even, <= dim; 0: none
  double rope_theta = 0;  // 0: the model's
  IndexCombine combine = IndexCombine::relu_sum;
  bool map_per_head =
      false;              // native: q_proj is [heads, dim, head_dim] instead of [key_heads, dim, head_dim]
  bool has_bias = false;  // found in the weights, not in the JSON; native: of the keys only
  bool has_norm = false;  // seed: found in the weights, not in the JSON

  size_t budget = 2048;         // positions a query may read (`top_k`), sinks and recent included
  std::vector<size_t> budgets;  // [layers] or empty: `budget` everywhere; 0: the layer is dense
  size_t sinks = 0;             // always kept: positions < sinks
  size_t recent = 0;            // always kept: the last `recent` positions, the query's own included
  SelectionScope scope = SelectionScope::shared;
  size_t query_block = 1;             // neighbouring queries of a prompt that choose together
  size_t refine = 0;                  // positions that attention chooses among (SelectionPolicy::refine)
  size_t refine_prompt = 0;           // the same for the other queries of a prompt
  std::vector<size_t> refine_layers;  // ascending: the layers both hold for; empty: all
  IndexKeyChoice key_choice = IndexKeyChoice::automatic;
  std::string model;  // fingerprint of the model it was made for; empty: not compared

  // The storage type key_choice comes to.
  IndexKeyType key_type() const;

  // The start measured best for `model`: native, per-head queries at rank 32, softmaxes summed, 4 sinks, 64
  // recent, a set per KV head, int8 keys.
  static IndexerConfig native_for(const ModelShape& model, size_t dim = 32, size_t budget = 256);
};

// Reads run_config.json: the seed's (hidden_size, proj_dim, indexer_heads, rope_dim, top_k at top level or
// under `metadata`) or ours. Throws Error{file}, Error{format} (naming key and value) for missing, mistyped
// or absurd values and for sinks + recent > budget.
IndexerConfig read_indexer_config(const std::filesystem::path& path);
IndexerConfig parse_indexer_config(const Json& json, std::string_view subject);

// A superset of the seed's keys, see docs/decisions/0003.
Json to_json(const IndexerConfig& config);

// Throws Error{mismatch} where the indexer cannot belong to this model. `subject` is the indexer's path.
// Fills what the config leaves to the model (layers, rope_theta).
void bind_to_model(IndexerConfig& config, const ModelShape& model, std::string_view subject);

}  // namespace keysieve
