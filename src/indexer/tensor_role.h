#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "formats/tensor_info.h"
#include "indexer/indexer_config.h"

namespace keysieve {

// What a tensor of an indexer file is.
enum class TensorRole : uint8_t { q, k, head_weight, q_bias, k_bias, q_norm, k_norm };
inline constexpr size_t kTensorRoles = 7;
std::string_view to_string(TensorRole role);  // "query projection", ...

// What a dotted name says of its place: `layers.3.indexer.heads.2.wq.weight`.
struct NamePlace {
  // The component after `layers` (or `layer`, `blocks`, `h`, `indexers`), or of a component such as
  // `layer_12`; else the first component that is a number.
  std::optional<size_t> layer;
  bool layer_by_word = false;  // not merely the first number
  std::optional<size_t> head;  // the next number after the layer's
  std::string_view rest;       // what follows the layer: it says which part this is
};
NamePlace place_in_name(std::string_view name);
// The layer number of a file named for one: `layer_12.safetensors`, `12/indexer.safetensors`; nullopt for
// shards (`-00001-of-00002`).
std::optional<size_t> layer_in_file_name(std::string_view name);

// Rows of a tensor and the part of the layer they are.
struct TensorPart {
  TensorRole role;
  size_t first = 0;  // row of the tensor; vectors count values
  size_t rows = 0;
  size_t at = 0;            // row of the part
  bool transposed = false;  // [columns, rows] in the file
};

// The parts of the layer that a seed tensor holds: one; several stacked, as a fused projection has them
// (queries, keys, head weights, in that order); or one head of the queries or head weights. Shapes decide;
// the name does only where shapes coincide (one head, or as many heads as dims), for heads, and between bias
// and norm. Any leading dimensions count as rows, and a matrix may be transposed. Throws Error{mismatch}
// where the name says one thing and the shape another, Error{unsupported} for a layer norm's bias,
// Error{format} for what fits nothing. All name the tensor.
std::vector<TensorPart> seed_parts(const TensorInfo& tensor, const NamePlace& place,
                                   const IndexerConfig& config);
// layers.{i}.indexer.q_proj [maps, dim, head_dim] and k_proj [key_heads, dim, head_dim], `.weight` allowed,
// and k_bias [key_heads, dim]: each whole.
std::vector<TensorPart> native_parts(const TensorInfo& tensor, const NamePlace& place,
                                     const IndexerConfig& config);

// Rows of a whole part; of bias and norm, values.
size_t rows_of(TensorRole role, const IndexerConfig& config);

// Tables that training frameworks save beside weights and that say nothing of their own: RoPE frequencies
// (run_config.json has them), step counters.
bool carries_no_weights(std::string_view name);

}  // namespace keysieve
