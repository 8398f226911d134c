#include "indexer/head_maps.h"

#include <algorithm>

#include "core/memory.h"
#include "indexer/float_matrix.h"

namespace keysieve {
namespace {

// Up to this many tokens a plain loop is faster than the packed product: 9 heads of 64 -> 32 are 18,432
// multiply-adds a token, a few microseconds, about what starting and joining the threads of one product
// costs.
constexpr size_t kFewTokens = 4;
// Tokens one task gathers or scatters: 64 tokens of 9 heads of 64 floats are 147 KB, well inside an L2 cache.
constexpr size_t kTile = 64;

}  // namespace

HeadMaps::HeadMaps(std::span<const float> values, size_t maps, size_t dim, size_t head_dim,
                   const Kernels& kernels, const Threads& threads)
    : dim_(dim), head_dim_(head_dim), transposed_(values.size()) {
  for (size_t m = 0; m < maps; ++m) {
    const std::span<const float> map = values.subspan(m * dim * head_dim, dim * head_dim);
    packed_.push_back(kernels.pack(FloatMatrix(map, dim, DType::f32), {}, threads));
    float* transposed = transposed_.data() + m * dim * head_dim;
    for (size_t i = 0; i < dim; ++i) {
      for (size_t j = 0; j < head_dim; ++j) transposed[j * dim + i] = map[i * head_dim + j];
    }
  }
}

size_t HeadMaps::bytes() const {
  size_t total = transposed_.size() * sizeof(float);
  for (const auto& map : packed_) total += map->bytes();
  return total;
}

void HeadMaps::apply_rows(float* out, const float* x, size_t tokens, size_t heads_per_map) const {
  const size_t heads = packed_.size() * heads_per_map;
  for (size_t row = 0; row < tokens * heads; ++row) {
    const float* map = transposed_.data() + row % heads / heads_per_map * dim_ * head_dim_;
    float* result = out + row * dim_;
    std::fill_n(result, dim_, 0.0f);
    for (size_t j = 0; j < head_dim_; ++j) {
      const float value = x[row * head_dim_ + j];
      for (size_t i = 0; i < dim_; ++i) result[i] += value * map[j * dim_ + i];
    }
  }
}

void HeadMaps::apply(float* out, const float* x, size_t tokens, size_t heads_per_map,
                     KernelContext& context) const {
  if (tokens <= kFewTokens) return apply_rows(out, x, tokens, heads_per_map);
  // The heads of one map are brought together so that each map is one product over [tokens * heads_per_map]
  // rows.
  const size_t maps = packed_.size();
  const size_t rows = tokens * heads_per_map;
  AlignedArray<float> gathered(maps * rows * head_dim_);  // [maps, tokens, heads_per_map, head_dim]
  AlignedArray<float> mapped(maps * rows * dim_);         // [maps, tokens, heads_per_map, dim]
  const auto each_row = [&](const auto& visit) {
    context.threads.run((tokens + kTile - 1) / kTile, [&](size_t tile, int) {
      for (size_t t = tile * kTile; t < std::min(tokens, (tile + 1) * kTile); ++t) {
        for (size_t m = 0; m < maps; ++m) visit(t * maps + m, m * tokens + t);
      }
    });
  };
  const size_t x_run = heads_per_map * head_dim_;
  const size_t out_run = heads_per_map * dim_;
  each_row([&](size_t by_token, size_t by_map) {
    std::copy_n(x + by_token * x_run, x_run, gathered.data() + by_map * x_run);
  });
  for (size_t m = 0; m < maps; ++m) {
    const MatmulJob job{mapped.data() + m * rows * dim_, dim_, packed_[m].get()};
    context.kernels.matmul({&job, 1}, gathered.data() + m * rows * head_dim_, rows, context.scratch,
                           context.threads);
  }
  each_row([&](size_t by_token, size_t by_map) {
    std::copy_n(mapped.data() + by_map * out_run, out_run, out + by_token * out_run);
  });
}

}  // namespace keysieve
