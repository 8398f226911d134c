#if defined(KEYSIEVE_SIMD_INDEX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_INDEX_INL_H
#undef KEYSIEVE_SIMD_INDEX_INL_H
#else
#define KEYSIEVE_SIMD_INDEX_INL_H
#endif

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/simd/index_dot-inl.h"
#include "kernels/simd/vectors-inl.h"

// Index scoring, bitwise equal to reference/reference_index.cpp. Up to 4 query heads go over the keys
// together, three times: raw scores and their maxima, exponentials and their sums, the weighted sum of heads.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kHeadsAtOnce = 4;

// The raw scores of some heads, on their way to one score a key.
struct HeadRows {
  float* scores;                // [heads, stride]
  size_t stride;                // whole blocks
  float largest[kHeadsAtOnce];  // of each row
  float factor[kHeadsAtOnce];   // what a row is multiplied with in the end
};

template <IndexKeyType kType>
HWY_INLINE VF load_scales(const std::byte* scales, size_t slot) {
  if constexpr (kType == IndexKeyType::i8) {
    return hn::LoadU(F32(), reinterpret_cast<const float*>(scales) + slot);
  } else {
    return load_bfloat16(reinterpret_cast<const BFloat16*>(scales) + slot);
  }
}

// Stores one vector of raw scores and keeps the largest. kTail: lanes from `valid` on are no keys and become
// -inf, which no maximum and no sum sees.
template <bool kTail>
HWY_INLINE void store_raw(float* at, VF raw, size_t valid, VF& largest) {
  if constexpr (kTail) raw = hn::IfThenElse(hn::FirstN(F32(), valid), raw, hn::Set(F32(), -INFINITY));
  hn::StoreU(raw, F32(), at);
  largest = hn::Max(largest, raw);
}

// Calls block(slot, tail) for whole blocks with a constant false, for a last part of one with true.
template <class Block>
HWY_INLINE void for_blocks(size_t count, const Block& block) {
  size_t slot = 0;
  for (; slot + kIndexBlock <= count; slot += kIndexBlock) block(slot, std::false_type());
  if (slot < count) block(slot, std::true_type());
}

// How many of `left` keys fall on vector i of a block.
HWY_INLINE size_t valid_lanes(size_t left, size_t i) {
  return left > i * kLanes ? std::min(left - i * kLanes, kLanes) : 0;
}

// kSteps 0: as many steps of 4 dimensions as the keys have, else known when compiled.
template <IndexKeyType kType, size_t kHeads, size_t kSteps>
inline void raw_scores_coded(HeadRows& rows, const IndexKeyView& keys, const CodedQuery* queries,
                             size_t count) {
  const size_t steps = kSteps != 0 ? kSteps : padded_index_dim(kType, keys.dim) / 4;
  const size_t key_bytes = index_key_bytes(kType, keys.dim, kIndexBlock) / kIndexBlock;
  const auto* data = reinterpret_cast<const uint8_t*>(keys.data);
  const std::byte* key_scales = keys.scales;
  float* scores = rows.scores;
  const size_t stride = rows.stride;
  VF largest[kHeads];
  std::fill(largest, largest + kHeads, hn::Set(F32(), -INFINITY));
  for_blocks(count, [&](size_t slot, auto tail) HWY_ATTR {
    const uint8_t* block = data + slot * key_bytes;
    BlockDot<kType> dots[kHeads];
    for (size_t h = 0; h < kHeads; ++h) dots[h].start(queries[h]);
    for (size_t step = 0; step < steps; step += 2) {
      const KeySteps pair = load_steps<kType>(block + step / 2 * kPairBytes<kType>, step + 1 == steps);
      for (size_t h = 0; h < kHeads; ++h) dots[h].add(pair, queries[h], step);
    }
    VF scales[kBlockVectors];
    for (size_t i = 0; i < kBlockVectors; ++i) scales[i] = load_scales<kType>(key_scales, slot + i * kLanes);
    for (size_t h = 0; h < kHeads; ++h) {
      VI sums[kBlockVectors];
      dots[h].finish(sums);
      for (size_t i = 0; i < kBlockVectors; ++i) {
        store_raw<tail.value>(scores + h * stride + slot + i * kLanes,
                              hn::Mul(hn::ConvertTo(F32(), sums[i]), scales[i]), valid_lanes(count - slot, i),
                              largest[h]);
      }
    }
  });
  for (size_t h = 0; h < kHeads; ++h) {
    rows.largest[h] = hn::GetLane(hn::MaxOfLanes(F32(), largest[h]));
    rows.factor[h] = queries[h].scale;
  }
}

template <size_t kHeads>
inline void raw_scores_f32(HeadRows& rows, const IndexKeyView& keys, const float* q, size_t count) {
  const size_t dim = keys.dim;
  const size_t padded_dim = padded_index_dim(IndexKeyType::f32, dim);
  const auto* data = reinterpret_cast<const float*>(keys.data);
  VF largest[kHeads];
  std::fill(largest, largest + kHeads, hn::Set(F32(), -INFINITY));
  for_blocks(count, [&](size_t slot, auto tail) HWY_ATTR {
    const float* block = data + slot * padded_dim;
    VF sums[kHeads][kBlockVectors];
    for (auto& head : sums) std::fill(head, head + kBlockVectors, hn::Zero(F32()));
    for (size_t d = 0; d < dim; ++d) {
      for (size_t i = 0; i < kBlockVectors; ++i) {
        const VF key = hn::LoadU(F32(), block + d * kIndexBlock + i * kLanes);
        for (size_t h = 0; h < kHeads; ++h) {
          sums[h][i] = hn::MulAdd(hn::Set(F32(), q[h * dim + d]), key, sums[h][i]);
        }
      }
    }
    for (size_t h = 0; h < kHeads; ++h) {
      for (size_t i = 0; i < kBlockVectors; ++i) {
        store_raw<tail.value>(rows.scores + h * rows.stride + slot + i * kLanes, sums[h][i],
                              valid_lanes(count - slot, i), largest[h]);
      }
    }
  });
  for (size_t h = 0; h < kHeads; ++h) {
    rows.largest[h] = hn::GetLane(hn::MaxOfLanes(F32(), largest[h]));
    rows.factor[h] = 1.0f;
  }
}

template <IndexKeyType kType, size_t kHeads>
inline void raw_scores_of(HeadRows& rows, const IndexKeyView& keys, const float* q, size_t count) {
  if constexpr (kType == IndexKeyType::f32) {
    raw_scores_f32<kHeads>(rows, keys, q, count);
  } else {
    CodedQuery queries[kHeads];  // 4 KB of stack
    for (size_t h = 0; h < kHeads; ++h) code_query<kType>(queries[h], q + h * keys.dim, keys.dim);
    if (keys.dim == 32) return raw_scores_coded<kType, kHeads, 8>(rows, keys, queries, count);
    raw_scores_coded<kType, kHeads, 0>(rows, keys, queries, count);
  }
}

// A float in the range of int32 to its whole part. Highway's own conversion spends 2 more operations on
// values out of range.
HWY_INLINE VI whole_part(VF v) {
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  return VI{_mm512_cvttps_epi32(v.raw)};
#elif HWY_ARCH_X86
  return VI{_mm256_cvttps_epi32(v.raw)};
#else
  return hn::ConvertTo(I32(), v);
#endif
}

// Rows of raw scores to e^(unit (raw - largest)), zero past the end; their factors to 1 / sum.
template <size_t kHeads>
inline void exponentials(HeadRows& rows, size_t count) {
  VF factor[kHeads], shift[kHeads], sums[kHeads][kBlockVectors];
  for (size_t h = 0; h < kHeads; ++h) {
    const float scaled = rows.factor[h] * IndexExp::kScale;
    factor[h] = hn::Set(F32(), scaled);
    shift[h] = hn::Set(F32(), index_exp_shift(rows.largest[h], scaled));
    std::fill(sums[h], sums[h] + kBlockVectors, hn::Zero(F32()));
  }
  for (size_t slot = 0; slot < count; slot += kIndexBlock) {
    for (size_t h = 0; h < kHeads; ++h) {
      for (size_t i = 0; i < kBlockVectors; ++i) {
        float* at = rows.scores + h * rows.stride + slot + i * kLanes;
        // Max gives its second operand for a NaN.
        const VF t = hn::Max(hn::MulAdd(hn::LoadU(F32(), at), factor[h], shift[h]), hn::Zero(F32()));
        const VF e = hn::BitCast(F32(), whole_part(t));
        hn::StoreU(e, F32(), at);
        sums[h][i] = hn::Add(sums[h][i], e);
      }
    }
  }
  for (size_t h = 0; h < kHeads; ++h) {
    HWY_ALIGN float lanes[kIndexBlock];
    for (size_t i = 0; i < kBlockVectors; ++i) hn::Store(sums[h][i], F32(), lanes + i * kLanes);
    float sum = 0.0f;
    for (const float lane : lanes) sum += lane;
    rows.factor[h] = 1.0f / sum;
  }
}

// out [count rounded up to blocks] (+)= sum over heads, in their order, of factor * score.
template <size_t kHeads>
inline void add_rows(float* out, const HeadRows& rows, size_t count, bool relu, bool add_to) {
  VF factor[kHeads];
  for (size_t h = 0; h < kHeads; ++h) factor[h] = hn::Set(F32(), rows.factor[h]);
  const VF floor = relu ? hn::Zero(F32()) : hn::Set(F32(), -INFINITY);
  for (size_t slot = 0; slot < count; slot += kLanes) {
    VF sum = add_to ? hn::LoadU(F32(), out + slot) : hn::Zero(F32());
    for (size_t h = 0; h < kHeads; ++h) {
      const VF score = hn::Max(hn::LoadU(F32(), rows.scores + h * rows.stride + slot), floor);
      sum = hn::MulAdd(score, factor[h], sum);
    }
    hn::StoreU(sum, F32(), out + slot);
  }
}

template <IndexKeyType kType, size_t kHeads>
inline void score_heads(const IndexScoreArgs& args, HeadRows rows, size_t first) {
  raw_scores_of<kType, kHeads>(rows, args.keys, args.q + first * args.keys.dim, args.count);
  if (args.combine == IndexCombine::softmax_sum) exponentials<kHeads>(rows, args.count);
  const bool relu = args.combine == IndexCombine::relu_sum;
  for (size_t h = 0; relu && h < kHeads; ++h) rows.factor[h] *= args.head_weight[first + h];
  add_rows<kHeads>(args.scores, rows, args.count, relu, args.accumulate || first > 0);
}

template <IndexKeyType kType>
inline void score_all_heads(const IndexScoreArgs& args, const HeadRows& rows) {
  for (size_t first = 0; first < args.heads; first += kHeadsAtOnce) {
    switch (std::min(kHeadsAtOnce, args.heads - first)) {
      case 1:
        score_heads<kType, 1>(args, rows, first);
        break;
      case 2:
        score_heads<kType, 2>(args, rows, first);
        break;
      case 3:
        score_heads<kType, 3>(args, rows, first);
        break;
      default:
        score_heads<kType, 4>(args, rows, first);
        break;
    }
  }
}

inline void index_scores_simd(const IndexScoreArgs& args, KernelScratch& scratch, int worker) {
  if (args.count == 0) return;
  const size_t stride = (args.count + kIndexBlock - 1) / kIndexBlock * kIndexBlock;
  HeadRows rows{};
  rows.scores =
      reinterpret_cast<float*>(worker_scratch(scratch, worker, kHeadsAtOnce * stride * sizeof(float)));
  rows.stride = stride;
  switch (args.keys.type) {
    case IndexKeyType::f32:
      return score_all_heads<IndexKeyType::f32>(args, rows);
    case IndexKeyType::i8:
      return score_all_heads<IndexKeyType::i8>(args, rows);
    case IndexKeyType::i4:
      return score_all_heads<IndexKeyType::i4>(args, rows);
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_INDEX_INL_H
