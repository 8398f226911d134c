#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/memory.h"
#include "indexer/layer_query.h"
#include "indexer/model_shape.h"
#include "kernels/index_keys.h"

namespace keysieve {

// What the frozen model shows of one layer over one whole sequence that starts at position 0. Pointers belong
// to the caller.
struct LayerView {
  size_t layer;
  size_t tokens;
  const float* hidden;  // [tokens, hidden], after the layer's input norm; null unless the shape reads it
  const float* q;       // [tokens, heads, head_dim], after RoPE
  const float* k;       // [tokens, kv_heads, head_dim], after RoPE
};

// Keys of one key head in the layout the scoring kernels read, rounded as `type` says.
class ScoringKeys {
 public:
  // keys: token t's key is keys[t * stride] .. [t * stride + dim).
  ScoringKeys(const float* keys, size_t stride, size_t tokens, size_t dim, IndexKeyType type);

  // logits [count rounded up to 16] = q . key of slots 0 .. count-1. q [dim]. Calling thread, as `worker`.
  void logits(float* out, const float* q, size_t count, KernelContext& context, int worker) const;

 private:
  IndexKeyView view() const { return {data_.data(), scales_.data(), type_, dim_}; }
  IndexKeyType type_;
  size_t dim_;
  AlignedArray<std::byte> data_;
  AlignedArray<std::byte> scales_;
};

// Room for `keys` scores of one head: a multiple of 16.
inline size_t score_stride(size_t keys) { return (keys + kIndexBlock - 1) / kIndexBlock * kIndexBlock; }

// The model's own attention, computed again in fp32 for single queries: softmax(sharpness * logits).
class Teacher {
 public:
  Teacher(const LayerView& view, const ModelShape& shape, float sharpness = 1.0f);

  // out [keys]: attention of query `query` (candidates 0 .. query) in head `head`.
  void attention(float* out, size_t query, size_t head, KernelContext& context, int worker) const;

 private:
  LayerView view_;
  size_t heads_;
  size_t heads_per_group_;
  size_t head_dim_;
  float scale_;
  std::vector<ScoringKeys> keys_;  // [kv_heads]
};

// The queries a layer learns from in one sequence: `count` of them or as many as there are, ascending and
// without repetition. At most half come from `marked` (positions worth learning from, ascending); the others
// are drawn one from each of equal stretches of [first, tokens), where `first` is the first query with more
// candidates than `budget`, or the middle of a sequence shorter than two budgets: earlier ones read
// everything.
std::vector<uint32_t> sample_queries(size_t tokens, size_t count, size_t budget,
                                     std::span<const uint32_t> marked, uint64_t seed);

}  // namespace keysieve
