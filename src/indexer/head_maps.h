#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "indexer/layer_query.h"
#include "kernels/kernels.h"

namespace keysieve {

// Small matrices applied head by head: out[t, h] = map[h / heads_per_map] * x[t, h]. What the native shape
// does to queries and keys.
class HeadMaps {
 public:
  HeadMaps() = default;
  // values [maps, dim, head_dim]
  HeadMaps(std::span<const float> values, size_t maps, size_t dim, size_t head_dim, const Kernels& kernels,
           const Threads& threads);

  // out [tokens, maps * heads_per_map, dim], x [tokens, maps * heads_per_map, head_dim]
  void apply(float* out, const float* x, size_t tokens, size_t heads_per_map, KernelContext& context) const;
  size_t bytes() const;

 private:
  void apply_rows(float* out, const float* x, size_t tokens, size_t heads_per_map) const;

  size_t dim_ = 0;
  size_t head_dim_ = 0;
  std::vector<std::unique_ptr<PackedMatrix>> packed_;  // [maps], each [dim, head_dim]
  std::vector<float> transposed_;                      // [maps, head_dim, dim]
};

}  // namespace keysieve
