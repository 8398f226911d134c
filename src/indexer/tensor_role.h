#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "formats/tensor_info.h"
#include "indexer/indexer_config.h"

namespace keysieve {

// What a tensor of an indexer file is.
enum class TensorRole : uint8_t { q, k, head_weight, q_bias, k_bias, q_norm, k_norm };
std::string_view to_string(TensorRole role);  // "query projection", ...

// The layer number in a dotted name: the component after `layers` (or `layer`, `blocks`, `h`), a component
// such as `layer_12`, else the first component that is a number. nullopt if there is none.
std::optional<size_t> layer_in_name(std::string_view name);

// The role by shape; the name decides only where shapes coincide (one head, or as many heads as dims) and
// between bias and norm. Throws Error{mismatch} where the name says one thing and the shape another,
// Error{unsupported} for a layer norm's bias, Error{format} for what fits nothing. All name the tensor.
TensorRole seed_role(const TensorInfo& tensor, const IndexerConfig& config);
// layers.{i}.indexer.q_proj [maps, dim, head_dim] and k_proj [key_heads, dim, head_dim], `.weight` allowed,
// and k_bias [key_heads, dim].
TensorRole native_role(const TensorInfo& tensor, const IndexerConfig& config);

}  // namespace keysieve
