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
  const size_t block_values = padded_index_dim(keys.type, keys.dim) * kIndexBlock;
  for (size_t s = 0; s < count; ++s) {
    const float* block = data + s / kIndexBlock * block_values + s % kIndexBlock;
    float sum = 0.0f;
    for (size_t d = 0; d < keys.dim; ++d) sum = std::fma(q[d], block[d * kIndexBlock], sum);
    out[s] = sum;
  }
}

// The same in units of the returned scale, with the query rounded to int8 too: exact in int32.
float dot_codes(float* out, const float* q, const IndexKeyView& keys, size_t count) {
  int8_t codes[kMaxIndexDim];
  const float query_scale = round_to_int8(codes, q, keys.dim);
  for (size_t s = 0; s < count; ++s) {
    int32_t sum = 0;
    for (size_t d = 0; d < keys.dim; ++d) sum += codes[d] * index_key_code(keys, s, d);
    out[s] = static_cast<float>(sum) * index_key_scale(keys, s);
  }
  return query_scale;
}

// Turns raw scores [count] of unit `unit` into e^(unit (raw - a score near the largest)) and returns their
// sum, added up lane by lane of 16 and then over lanes: the order a vector kernel uses.
float exponentials(float* scores, size_t count, float unit, bool rounded_keys) {
  float top = *std::max_element(scores, scores + std::min(count, kIndexBlock));
  const float largest = *std::max_element(scores, scores + count);
  if (!index_exp_reaches(top, largest, unit)) top = largest;
  const float factor = unit * IndexExp::kScale;
  const float shift = index_exp_shift(top, factor);
  float lanes[kIndexBlock] = {};
  for (size_t s = 0; s < count; ++s) {
    scores[s] = rounded_keys ? index_exp(scores[s], factor, shift) : fast_exp(scores[s] - top);
    lanes[s % kIndexBlock] += scores[s];
  }
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  return sum;
}

}  // namespace

void map_heads(const HeadMapArgs& args) {
  for (size_t row = 0; row < args.tokens * args.heads; ++row) {
    const float* map = args.maps + row % args.heads / args.heads_per_map * args.head_dim * args.dim;
    float* out = args.out + row * args.dim;
    std::fill_n(out, args.dim, 0.0f);
    for (size_t j = 0; j < args.head_dim; ++j) {
      for (size_t i = 0; i < args.dim; ++i) {
        out[i] = std::fma(args.x[row * args.head_dim + j], map[j * args.dim + i], out[i]);
      }
    }
  }
}

void index_scores(const IndexScoreArgs& args, KernelScratch& scratch, int worker) {
  if (args.count == 0) return;
  if (args.queries > 1) {
    IndexScoreArgs one = args;
    if (!args.accumulate) std::fill_n(args.scores, args.count + args.queries - 1, 0.0f);
    one.accumulate = true;
    one.queries = 1;
    for (; one.count < args.count + args.queries; ++one.count, one.q += args.query_stride) {
      index_scores(one, scratch, worker);
    }
    return;
  }
  if (!args.accumulate) std::fill_n(args.scores, args.count, 0.0f);
  auto* raw = reinterpret_cast<float*>(worker_scratch(scratch, worker, args.count * sizeof(float)));
  for (size_t h = 0; h < args.heads; ++h) {
    const float* q = args.q + h * args.keys.dim;
    float factor = 1.0f;  // of the raw scores
    if (args.keys.type == IndexKeyType::f32) {
      dot_f32(raw, q, args.keys, args.count);
    } else {
      factor = dot_codes(raw, q, args.keys, args.count);
    }
    if (args.combine == IndexCombine::relu_sum) {
      factor *= args.head_weight[h];
      for (size_t s = 0; s < args.count; ++s) raw[s] = std::max(raw[s], 0.0f);
    } else if (args.combine == IndexCombine::softmax_sum) {
      factor = 1.0f / exponentials(raw, args.count, factor, args.keys.type != IndexKeyType::f32);
    }
    for (size_t s = 0; s < args.count; ++s) args.scores[s] = std::fma(raw[s], factor, args.scores[s]);
  }
}

void add_softmax(float* out, float* scores, size_t count, bool accumulate) {
  if (count == 0) return;
  const float top = *std::max_element(scores, scores + count);
  float lanes[kIndexBlock] = {};
  for (size_t s = 0; s < count; ++s) {
    scores[s] = fast_exp(scores[s] - top);
    lanes[s % kIndexBlock] += scores[s];
  }
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  const float factor = 1.0f / sum;
  for (size_t s = 0; s < count; ++s) out[s] = std::fma(scores[s], factor, accumulate ? out[s] : 0.0f);
}

}  // namespace keysieve::reference
