#pragma once

#include <cstddef>
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
  HeadMaps(std::span<const float> values, size_t maps, size_t dim, size_t head_dim);

  // out [tokens, maps * heads_per_map, dim], x [tokens, maps * heads_per_map, head_dim]
  void apply(float* out, const float* x, size_t tokens, size_t heads_per_map, KernelContext& context) const;
  size_t bytes() const { return transposed_.size() * sizeof(float); }

 private:
  size_t maps_ = 0;
  size_t dim_ = 0;
  size_t head_dim_ = 0;
  std::vector<float> transposed_;  // [maps, head_dim, dim]
};

}  // namespace keysieve
