#include "train/teacher.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/split_mix.h"
#include "kernels/index_query.h"
#include "train/losses.h"

namespace keysieve {

ScoringKeys::ScoringKeys(const float* keys, size_t stride, size_t tokens, size_t dim, IndexKeyType type)
    : type_(type),
      dim_(dim),
      data_(index_key_bytes(type, dim, tokens)),
      scales_(score_stride(tokens) * index_scale_bytes(type)) {
  std::memset(data_.data(), 0, data_.size());
  std::memset(scales_.data(), 0, scales_.size());
  for (size_t t = 0; t < tokens; ++t) {
    store_index_key(data_.data(), scales_.data(), type, dim, t, keys + t * stride);
  }
}

void ScoringKeys::logits(float* out, const float* q, size_t count, KernelContext& context, int worker) const {
  context.kernels.index_scores({.scores = out,
                                .q = q,
                                .head_weight = nullptr,
                                .heads = 1,
                                .count = count,
                                .keys = view(),
                                .combine = IndexCombine::linear_sum,
                                .cold = false,
                                .accumulate = false},
                               context.scratch, worker);
}

Teacher::Teacher(const LayerView& view, const ModelShape& shape, float sharpness)
    : view_(view),
      heads_(shape.heads),
      heads_per_group_(shape.heads / shape.kv_heads),
      head_dim_(shape.head_dim),
      scale_(sharpness / std::sqrt(static_cast<float>(shape.head_dim))) {
  for (size_t g = 0; g < shape.kv_heads; ++g) {
    keys_.emplace_back(view.k + g * head_dim_, shape.kv_heads * head_dim_, view.tokens, head_dim_,
                       IndexKeyType::f32);
  }
}

void Teacher::attention(float* out, size_t query, size_t head, KernelContext& context, int worker) const {
  std::array<float, kMaxIndexDim> q;
  const float* source = view_.q + (query * heads_ + head) * head_dim_;
  for (size_t d = 0; d < head_dim_; ++d) q[d] = source[d] * scale_;
  keys_[head / heads_per_group_].logits(out, q.data(), query + 1, context, worker);
  softmax(out, query + 1);
}

std::vector<uint32_t> sample_queries(size_t tokens, size_t count, size_t budget,
                                     std::span<const uint32_t> marked, uint64_t seed) {
  SplitMix random(seed);
  const size_t first = std::min(budget, tokens / 2);
  std::vector<uint32_t> candidates;
  for (const uint32_t position : marked) {
    if (position >= first && position < tokens) candidates.push_back(position);
  }
  std::vector<uint32_t> queries;
  const size_t wanted = std::min(candidates.size(), count / 2);
  for (size_t i = 0; i < wanted; ++i) {  // one from each of equal stretches of the list
    const size_t begin = i * candidates.size() / wanted;
    const size_t end = (i + 1) * candidates.size() / wanted;
    queries.push_back(candidates[begin + random.below(end - begin)]);
  }
  const size_t room = tokens - first;
  const size_t others = std::min(count - wanted, room);
  for (size_t i = 0; i < others; ++i) {
    const size_t begin = first + i * room / others;
    const size_t end = first + (i + 1) * room / others;
    queries.push_back(static_cast<uint32_t>(begin + random.below(end - begin)));
  }
  std::sort(queries.begin(), queries.end());
  queries.erase(std::unique(queries.begin(), queries.end()), queries.end());
  return queries;
}

}  // namespace keysieve
