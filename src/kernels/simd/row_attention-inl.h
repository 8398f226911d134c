#if defined(KEYSIEVE_SIMD_ROW_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_ROW_ATTENTION_INL_H
#undef KEYSIEVE_SIMD_ROW_ATTENTION_INL_H
#else
#define KEYSIEVE_SIMD_ROW_ATTENTION_INL_H
#endif

#include <algorithm>

#include "kernels/simd/vectors-inl.h"

// Attention of one query over rows that may lie anywhere: the query heads of one KV head, up to kPartKeys
// keys at a time. Nothing is copied; each row is widened as it is read, once for up to kMostHeads query heads
// (on Zen 5 that costs 6% beside the multiply-adds of 3 heads, so wider sharing would gain little).
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kPartKeys = 256;
// Heads x 4 sums, the heads' queries or weights and a row's vector stay in registers: 32 of AVX-512 and
// NEON, 16 of AVX2.
inline constexpr size_t kMostHeads = kManyRegisters ? 4 : 3;
// Selected rows lie anywhere, which no hardware prefetcher foresees: keys are asked for this many rows ahead
// (96 to 256 are alike), and the value of a key while its score is computed, a whole part before it is used.
// What waits for memory is then always a full queue of lines.
inline constexpr size_t kRowsAhead = 96;

// The rows of one part, as offsets into the keys and values of their KV head.
struct PartRows {
  const std::byte* keys;    // [capacity, dim], slot 0 of the KV head
  const std::byte* values;  // [capacity, dim]
  const size_t* offsets;    // [count rounded up to kLanes, + kRowsAhead] bytes, the last one repeated
  size_t count;             // 1 .. kPartKeys
  size_t dim;
};

inline constexpr size_t kOffsetsPerPart = kPartKeys + kRowsAhead;

// head_dim as a constant where it was compiled for (kDim), else (kDim 0) as the part says.
template <size_t kDim>
HWY_INLINE size_t dim_of(const PartRows& rows) {
  return kDim != 0 ? kDim : rows.dim;
}

// Asks for the cache lines of a row.
template <KvType kType, size_t kDim>
HWY_INLINE void prefetch_row(const std::byte* row, const PartRows& rows) {
  const size_t bytes = kv_row_bytes(kType, dim_of<kDim>(rows));
  for (size_t at = 0; at < bytes; at += kAlignment) prefetch_to_l2(row + at);
  // Rows of i8 do not begin on a line: the scale is on the next one.
  if constexpr (kType == KvType::i8) prefetch_to_l2(row + bytes - 1);
}

// scores [kHeads, kPartKeys] at keys base .. base + kLanes - 1 = scale * q . key, q [kHeads, dim]; raises
// top [kHeads] to the largest of each lane. kValues: the rows' values are read next, so they are asked for.
template <KvType kType, size_t kDim, size_t kHeads, bool kValues = true>
HWY_INLINE void block_scores(float* scores, VF* top, const float* q, float scale, const PartRows& rows,
                             size_t base) {
  const size_t dim = dim_of<kDim>(rows);
  const size_t whole = dim / kLanes * kLanes;
  VF quads[kHeads][kLanes / 4];
  for (size_t four = 0; four < kLanes / 4; ++four) {
    const size_t* offsets = rows.offsets + base + four * 4;
    const std::byte* key_rows[4];
    for (size_t j = 0; j < 4; ++j) {
      key_rows[j] = rows.keys + offsets[j];
      prefetch_row<kType, kDim>(rows.keys + offsets[kRowsAhead + j], rows);
      if constexpr (kValues) prefetch_row<kType, kDim>(rows.values + offsets[j], rows);
    }
    VF sums[kHeads][4];
    for (auto& head : sums) std::fill(head, head + 4, hn::Zero(F32()));
    for (size_t d = 0; d < whole; d += kLanes) {
      VF qv[kHeads];
      for (size_t h = 0; h < kHeads; ++h) qv[h] = hn::LoadU(F32(), q + h * dim + d);
      for (size_t j = 0; j < 4; ++j) {
        const VF key = load_kv<kType>(key_rows[j], d);
        for (size_t h = 0; h < kHeads; ++h) {
          sums[h][j] = d == 0 ? hn::Mul(qv[h], key) : hn::MulAdd(qv[h], key, sums[h][j]);
        }
      }
    }
    for (size_t h = 0; h < kHeads; ++h) quads[h][four] = quad_of(sums[h]);
  }
  VF scales = hn::Set(F32(), scale);
  if constexpr (kType == KvType::i8) {
    HWY_ALIGN float of_rows[kLanes];
    for (size_t j = 0; j < kLanes; ++j) of_rows[j] = kv_scale(rows.keys + rows.offsets[base + j], dim);
    scales = hn::Mul(scales, hn::Load(F32(), of_rows));
  }
  for (size_t h = 0; h < kHeads; ++h) {
    VF dots = sum_of_quads(quads[h]);
    if (whole < dim) {
      HWY_ALIGN float rest[kLanes];
      for (size_t j = 0; j < kLanes; ++j) {
        const std::byte* row = rows.keys + rows.offsets[base + j];
        rest[j] = 0.0f;
        for (size_t d = whole; d < dim; ++d) rest[j] += q[h * dim + d] * load_one<kType>(row, d);
      }
      dots = hn::Add(dots, hn::Load(F32(), rest));
    }
    dots = hn::Mul(dots, scales);
    top[h] = hn::Max(top[h], dots);
    hn::StoreU(dots, F32(), scores + h * kPartKeys + base);
  }
}

// Softmax numerators of kHeads rows of scores in place, zero past the last key. top [kHeads] as block_scores
// left them; maximum and total [kHeads] are written.
template <size_t kHeads>
HWY_INLINE void part_softmax(float* scores, const VF* top, size_t count, float* maximum, float* total) {
  VF largest[kHeads];
  VF sums[kHeads];
  for (size_t h = 0; h < kHeads; ++h) {
    largest[h] = hn::MaxOfLanes(F32(), top[h]);
    maximum[h] = hn::GetLane(largest[h]);
    sums[h] = hn::Zero(F32());
  }
  // All heads side by side: one exponential alone would wait for its own 13 operations in a row.
  const size_t whole = count / kLanes * kLanes;
  for (size_t j = 0; j < whole; j += kLanes) {
    for (size_t h = 0; h < kHeads; ++h) {
      float* at = scores + h * kPartKeys + j;
      const VF e = exp_of(hn::Sub(hn::LoadU(F32(), at), largest[h]));
      hn::StoreU(e, F32(), at);
      sums[h] = hn::Add(sums[h], e);
    }
  }
  for (size_t h = 0; h < kHeads && whole < count; ++h) {
    float* at = scores + h * kPartKeys + whole;
    const VF e = hn::IfThenElseZero(hn::FirstN(F32(), count - whole),
                                    exp_of(hn::Sub(hn::LoadU(F32(), at), largest[h])));
    hn::StoreU(e, F32(), at);
    sums[h] = hn::Add(sums[h], e);
  }
  for (size_t h = 0; h < kHeads; ++h) total[h] = hn::GetLane(hn::SumOfLanes(F32(), sums[h]));
}

// out [kHeads, dim] at columns column .. column + kColumns * kLanes - 1 = sum of weight * value, weights
// [kHeads, kPartKeys]. The rows past the last that fill up a vector have weight 0.
template <KvType kType, size_t kDim, size_t kHeads, size_t kColumns>
HWY_INLINE void value_columns(float* out, const float* weights, const PartRows& rows, size_t column) {
  VF acc[kHeads][kColumns];
  for (auto& head : acc) std::fill(head, head + kColumns, hn::Zero(F32()));
  constexpr size_t kUnroll = 4;
  static_assert(kLanes % kUnroll == 0);
  for (size_t base = 0; base < rows.count; base += kUnroll) {
    for (size_t j = base; j < base + kUnroll; ++j) {
      const std::byte* row = rows.values + rows.offsets[j];
      VF weight[kHeads];
      for (size_t h = 0; h < kHeads; ++h) weight[h] = hn::Set(F32(), weights[h * kPartKeys + j]);
      for (size_t c = 0; c < kColumns; ++c) {
        const VF value = load_kv<kType>(row, column + c * kLanes);
        for (size_t h = 0; h < kHeads; ++h) acc[h][c] = hn::MulAdd(weight[h], value, acc[h][c]);
      }
    }
  }
  for (size_t h = 0; h < kHeads; ++h) {
    for (size_t c = 0; c < kColumns; ++c) {
      hn::StoreU(acc[h][c], F32(), out + h * dim_of<kDim>(rows) + column + c * kLanes);
    }
  }
}

template <KvType kType, size_t kDim, size_t kHeads>
HWY_INLINE void part_values(float* out, const float* weights, const PartRows& rows) {
  const size_t dim = dim_of<kDim>(rows);
  size_t d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) value_columns<kType, kDim, kHeads, 4>(out, weights, rows, d);
  for (; d + kLanes <= dim; d += kLanes) value_columns<kType, kDim, kHeads, 1>(out, weights, rows, d);
  for (; d < dim; ++d) {
    for (size_t h = 0; h < kHeads; ++h) {
      float sum = 0.0f;
      for (size_t j = 0; j < rows.count; ++j) {
        sum += weights[h * kPartKeys + j] * load_one<kType>(rows.values + rows.offsets[j], d);
      }
      out[h * dim + d] = sum;
    }
  }
}

// Values of i8 are codes: their rows' scales go into the weights [kHeads, kPartKeys].
template <size_t kDim, size_t kHeads>
HWY_INLINE void scale_weights(float* weights, const PartRows& rows) {
  for (size_t base = 0; base < rows.count; base += kLanes) {
    HWY_ALIGN float of_rows[kLanes];
    for (size_t j = 0; j < kLanes; ++j) {
      of_rows[j] = kv_scale(rows.values + rows.offsets[base + j], dim_of<kDim>(rows));
    }
    const VF scales = hn::Load(F32(), of_rows);
    for (size_t h = 0; h < kHeads; ++h) {
      float* at = weights + h * kPartKeys + base;
      hn::StoreU(hn::Mul(hn::LoadU(F32(), at), scales), F32(), at);
    }
  }
}

// What one part leaves behind for each query head of its KV group.
struct PartResult {
  float* maximum;  // [heads_per_group]
  float* total;    // [heads_per_group]
  float* out;      // [heads_per_group, dim], not yet divided by the total
};

// kHeads query heads of one part from scores to weighted values. q [kHeads, dim]; scores: room for
// [kHeads, kPartKeys].
template <KvType kType, size_t kDim, size_t kHeads>
HWY_NOINLINE void attend_heads(const PartResult& result, float* scores, const float* q, float scale,
                               const PartRows& rows) {
  VF top[kHeads];
  std::fill(top, top + kHeads, hn::Set(F32(), -3e38f));
  for (size_t base = 0; base < rows.count; base += kLanes) {
    block_scores<kType, kDim, kHeads>(scores, top, q, scale, rows, base);
  }
  part_softmax<kHeads>(scores, top, rows.count, result.maximum, result.total);
  if constexpr (kType == KvType::i8) scale_weights<kDim, kHeads>(scores, rows);
  part_values<kType, kDim, kHeads>(result.out, scores, rows);
}

// Calls run.operator()<kHeads>(first head) for all heads of a group, in turns of as equal a size as
// kMostHeads allows: 7 heads are 4 + 3.
template <class Run>
inline void in_turns(size_t heads, const Run& run) {
  for (size_t h = 0; h < heads;) {
    const size_t turns = (heads - h + kMostHeads - 1) / kMostHeads;
    const size_t now = (heads - h + turns - 1) / turns;
    if constexpr (kMostHeads == 4) {
      if (now == 4) run.template operator()<kMostHeads>(h);
    }
    if (now == 3) run.template operator()<3>(h);
    if (now == 2) run.template operator()<2>(h);
    if (now == 1) run.template operator()<1>(h);
    h += now;
  }
}

// Calls run.operator()<kDim>() for the head sizes that most models have, 0 for the others.
template <class Run>
inline void with_head_dim(size_t head_dim, const Run& run) {
  if (head_dim == 64) return run.template operator()<64>();
  if (head_dim == 128) return run.template operator()<128>();
  run.template operator()<0>();
}

// All heads of a group over one part.
template <KvType kType, size_t kDim>
inline void attend_part(const PartResult& result, float* scores, const float* q, size_t heads, float scale,
                        const PartRows& rows) {
  const size_t dim = dim_of<kDim>(rows);
  for (size_t j = 0; j < kRowsAhead; ++j) prefetch_row<kType, kDim>(rows.keys + rows.offsets[j], rows);
  in_turns(heads, [&]<size_t kHeads>(size_t h) {
    const PartResult here{result.maximum + h, result.total + h, result.out + h * dim};
    attend_heads<kType, kDim, kHeads>(here, scores, q + h * dim, scale, rows);
  });
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_ROW_ATTENTION_INL_H
