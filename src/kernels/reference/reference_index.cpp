#include "kernels/reference/reference_index.h"

#include <algorithm>
#include <cmath>

#include "kernels/fast_exp.h"
#include "kernels/index_query.h"

namespace keysieve::reference {
namespace {

// out[s] = q . key[s] for slots 0 .. count-1. q [dim].
void dot_f32(float* out, const float* q, const IndexKeyView& keys, size_t count) {
  const auto* data = reinterpret_cast<const float*>(keys.data);
  const size_t block_values = padded_index_dim(keys.dim) * kIndexBlock;
  for (size_t s = 0; s < count; ++s) {
    const float* block = data + s / kIndexBlock * block_values + s % kIndexBlock;
    float sum = 0.0f;
    for (size_t d = 0; d < keys.dim; ++d) sum = std::fma(q[d], block[d * kIndexBlock], sum);
    out[s] = sum;
  }
}

// The same with the query rounded to int8 too: exact in int32, then (float(dot) * key scale) * query scale.
void dot_i8(float* out, const float* q, const IndexKeyView& keys, size_t count) {
  int8_t codes[kMaxIndexDim];
  const float query_scale = round_to_int8(codes, q, keys.dim);
  int32_t code_sum = 0;
  for (size_t d = 0; d < keys.dim; ++d) code_sum += codes[d];
  const auto* data = reinterpret_cast<const uint8_t*>(keys.data);
  const size_t block_bytes = padded_index_dim(keys.dim) * kIndexBlock;
  for (size_t s = 0; s < count; ++s) {
    const uint8_t* block = data + s / kIndexBlock * block_bytes + s % kIndexBlock * 4;
    int32_t sum = -128 * code_sum;
    for (size_t d = 0; d < keys.dim; ++d) sum += codes[d] * block[d / 4 * kIndexBlock * 4 + d % 4];
    out[s] = static_cast<float>(sum) * keys.scales[s] * query_scale;
  }
}

// Turns scores [count] into e^(score - max) and returns their sum, added up lane by lane of 16 and then over
// lanes: the order a vector kernel uses.
float exponentials(float* scores, size_t count) {
  float largest = scores[0];
  for (size_t s = 1; s < count; ++s) largest = std::max(largest, scores[s]);
  const float shift = -(largest * IndexExp::kLog2E);
  float lanes[kIndexBlock] = {};
  for (size_t s = 0; s < count; ++s) {
    scores[s] = index_exp(scores[s], shift);
    lanes[s % kIndexBlock] += scores[s];
  }
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  return sum;
}

}  // namespace

void index_scores(const IndexScoreArgs& args, KernelScratch& scratch, int worker) {
  if (args.count == 0) return;
  if (!args.accumulate) std::fill_n(args.scores, args.count, 0.0f);
  auto* head_scores = reinterpret_cast<float*>(worker_scratch(scratch, worker, args.count * sizeof(float)));
  for (size_t h = 0; h < args.heads; ++h) {
    const float* q = args.q + h * args.keys.dim;
    if (args.keys.type == IndexKeyType::f32) {
      dot_f32(head_scores, q, args.keys, args.count);
    } else {
      dot_i8(head_scores, q, args.keys, args.count);
    }
    switch (args.combine) {
      case IndexCombine::relu_sum:
        for (size_t s = 0; s < args.count; ++s) {
          args.scores[s] = std::fma(args.head_weight[h], std::max(head_scores[s], 0.0f), args.scores[s]);
        }
        break;
      case IndexCombine::softmax_sum: {
        const float factor = 1.0f / exponentials(head_scores, args.count);
        for (size_t s = 0; s < args.count; ++s)
          args.scores[s] = std::fma(head_scores[s], factor, args.scores[s]);
        break;
      }
      case IndexCombine::linear_sum:
        for (size_t s = 0; s < args.count; ++s) args.scores[s] += head_scores[s];
        break;
    }
  }
}

}  // namespace keysieve::reference
