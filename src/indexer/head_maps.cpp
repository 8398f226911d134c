#include "indexer/head_maps.h"

#include <algorithm>

namespace keysieve {
namespace {

// Tokens of one task: 9 heads of 64 -> 32 are 18,432 multiply-adds a token, so 32 tokens are some ten
// microseconds, several times what handing a task over costs.
constexpr size_t kTile = 32;

}  // namespace

HeadMaps::HeadMaps(std::span<const float> values, size_t maps, size_t dim, size_t head_dim)
    : maps_(maps), dim_(dim), head_dim_(head_dim), transposed_(values.size()) {
  for (size_t m = 0; m < maps; ++m) {
    const float* map = values.data() + m * dim * head_dim;
    float* transposed = transposed_.data() + m * dim * head_dim;
    for (size_t i = 0; i < dim; ++i) {
      for (size_t j = 0; j < head_dim; ++j) transposed[j * dim + i] = map[i * head_dim + j];
    }
  }
}

void HeadMaps::apply(float* out, const float* x, size_t tokens, size_t heads_per_map,
                     KernelContext& context) const {
  const size_t heads = maps_ * heads_per_map;
  context.threads.run((tokens + kTile - 1) / kTile, [&](size_t tile, int) {
    const size_t first = tile * kTile;
    context.kernels.map_heads({.out = out + first * heads * dim_,
                               .x = x + first * heads * head_dim_,
                               .maps = transposed_.data(),
                               .tokens = std::min(kTile, tokens - first),
                               .heads = heads,
                               .heads_per_map = heads_per_map,
                               .head_dim = head_dim_,
                               .dim = dim_});
  });
}

}  // namespace keysieve
