#if defined(KEYSIEVE_SIMD_ROW_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_ROW_ATTENTION_INL_H
#undef KEYSIEVE_SIMD_ROW_ATTENTION_INL_H
#else
#define KEYSIEVE_SIMD_ROW_ATTENTION_INL_H
#endif

#include <algorithm>

#include "kernels/simd/vectors-inl.h"

// Attention of one query over rows that may lie anywhere: the query heads of one KV head, up to kPartKeys
// keys at a time. As many heads as registers hold, at most kMostHeads, take a block of rows together, in as
// many turns as there are heads for; the first turn widens each row and leaves it in L1 for the others. So a
// row is widened once and waited for once, beside the multiply-adds of that turn.
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

// Rows that all heads take before the next ones: 32 of 128 values are 16 KB in fp32 and stay in L1.
inline constexpr size_t kBlockRows = 32;

// Where a turn of heads has a block's rows from: a turn alone widens them, and so does the first of several,
// which keeps them for the later ones.
enum class Turn : uint8_t { alone, first, later };

// Rows that are stored in fp32 are as good as widened ones.
template <KvType kType>
inline constexpr bool kWidens = kType != KvType::f32;

// Elements d .. d + kLanes - 1 of a row: as stored, or as an earlier turn left it in `widened` [dim].
template <KvType kType, Turn kTurn>
HWY_INLINE VF load_in_turn(const std::byte* row, float* widened, size_t d) {
  if constexpr (kTurn == Turn::later) return hn::LoadU(F32(), widened + d);
  const VF values = load_kv<kType>(row, d);
  if constexpr (kTurn == Turn::first) hn::StoreU(values, F32(), widened + d);
  return values;
}

// scores [kHeads, kPartKeys] = scale * q . key of rows base .. base + kLanes - 1 of the part, q [kHeads,
// dim]; widened [kLanes, dim]. The rows' values, where there are any, are read next: they are asked for.
template <KvType kType, size_t kDim, size_t kHeads, Turn kTurn>
HWY_INLINE void vector_scores(float* scores, float* widened, const float* q, float scale,
                              const PartRows& rows, size_t base) {
  const size_t dim = dim_of<kDim>(rows);
  const size_t whole = dim / kLanes * kLanes;
  // Lines are asked for one at a time between the multiply-adds where a row is whole lines, not all of four
  // rows at once (docs/decisions/0024-asking-l2.md).
  constexpr size_t kLine = kAlignment / (kType == KvType::f32 ? 4 : 2);  // elements
  constexpr bool kSpread = kType != KvType::i8 && kDim != 0;
  VF quads[kHeads][kLanes / 4];
  for (size_t four = 0; four < kLanes / 4; ++four) {
    const size_t* offsets = rows.offsets + base + four * 4;
    float* const wide = widened + four * 4 * dim;
    const std::byte* key_rows[4];
    for (size_t j = 0; j < 4; ++j) {
      key_rows[j] = rows.keys + offsets[j];
      if constexpr (kTurn == Turn::later || kSpread) continue;
      prefetch_row<kType, kDim>(rows.keys + offsets[kRowsAhead + j], rows);
      if (rows.values != nullptr) prefetch_row<kType, kDim>(rows.values + offsets[j], rows);
    }
    VF sums[kHeads][4];
    for (auto& head : sums) std::fill(head, head + 4, hn::Zero(F32()));
    for (size_t d = 0; d < whole; d += kLanes) {
      VF qv[kHeads];
      for (size_t h = 0; h < kHeads; ++h) qv[h] = hn::LoadU(F32(), q + h * dim + d);
      for (size_t j = 0; j < 4; ++j) {
        if constexpr (kTurn != Turn::later && kSpread) {
          // Each of the four rows at another place of its line.
          if (d % kLine == j * std::max(kLine / 4, kLanes) % kLine) {
            const size_t at = d / kLine * kAlignment;
            prefetch_to_l2(rows.keys + offsets[kRowsAhead + j] + at);
            if (rows.values != nullptr) prefetch_to_l2(rows.values + offsets[j] + at);
          }
        }
        const VF key = load_in_turn<kType, kTurn>(key_rows[j], wide + j * dim, d);
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
    hn::StoreU(hn::Mul(dots, scales), F32(), scores + h * kPartKeys);
  }
}

// Scores of rows base .. base + kBlockRows - 1 of the part, as far as there are any; widened [kBlockRows,
// dim].
template <KvType kType, size_t kDim, size_t kHeads, Turn kTurn>
HWY_NOINLINE void block_scores(float* scores, float* widened, const float* q, float scale,
                               const PartRows& rows, size_t base) {
  const size_t count = std::min(kBlockRows, rows.count - base);
  for (size_t j = 0; j < count; j += kLanes) {
    vector_scores<kType, kDim, kHeads, kTurn>(scores + j, widened + j * dim_of<kDim>(rows), q, scale, rows,
                                              base + j);
  }
}

// Softmax numerators of kHeads rows of scores in place, zero past the last key; maximum and total [kHeads]
// are written. The lanes that fill up the last vector repeat the last key's score.
template <size_t kHeads>
HWY_NOINLINE void part_softmax(float* scores, size_t count, float* maximum, float* total) {
  VF largest[kHeads];
  VF sums[kHeads];
  for (size_t h = 0; h < kHeads; ++h) {
    VF top = hn::LoadU(F32(), scores + h * kPartKeys);
    for (size_t j = kLanes; j < count; j += kLanes) {
      top = hn::Max(top, hn::LoadU(F32(), scores + h * kPartKeys + j));
    }
    largest[h] = hn::MaxOfLanes(F32(), top);
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

// Adds weight * value of rows base .. base + count - 1 to out [kHeads, dim] at columns column .. column +
// kColumns * kLanes - 1, weights [kHeads, kPartKeys]; widened [kBlockRows, dim]. The rows past the last that
// fill up a vector have weight 0.
template <KvType kType, size_t kDim, size_t kHeads, size_t kColumns, Turn kTurn>
HWY_INLINE void value_columns(float* out, const float* weights, float* widened, const PartRows& rows,
                              size_t base, size_t count, size_t column) {
  const size_t dim = dim_of<kDim>(rows);
  VF acc[kHeads][kColumns];
  for (size_t h = 0; h < kHeads; ++h) {
    for (size_t c = 0; c < kColumns; ++c) acc[h][c] = hn::LoadU(F32(), out + h * dim + column + c * kLanes);
  }
  constexpr size_t kUnroll = 4;
  static_assert(kLanes % kUnroll == 0 && kBlockRows % kLanes == 0);
  for (size_t first = 0; first < count; first += kUnroll) {
    for (size_t j = first; j < first + kUnroll; ++j) {
      const std::byte* row = rows.values + rows.offsets[base + j];
      VF weight[kHeads];
      for (size_t h = 0; h < kHeads; ++h) weight[h] = hn::Set(F32(), weights[h * kPartKeys + base + j]);
      for (size_t c = 0; c < kColumns; ++c) {
        const VF value = load_in_turn<kType, kTurn>(row, widened + j * dim, column + c * kLanes);
        for (size_t h = 0; h < kHeads; ++h) acc[h][c] = hn::MulAdd(weight[h], value, acc[h][c]);
      }
    }
  }
  for (size_t h = 0; h < kHeads; ++h) {
    for (size_t c = 0; c < kColumns; ++c) {
      hn::StoreU(acc[h][c], F32(), out + h * dim + column + c * kLanes);
    }
  }
}

// Adds rows base .. base + kBlockRows - 1 of the part, as far as there are any, to out [kHeads, dim].
template <KvType kType, size_t kDim, size_t kHeads, Turn kTurn>
HWY_NOINLINE void add_values(float* out, const float* weights, float* widened, const PartRows& rows,
                             size_t base) {
  const size_t dim = dim_of<kDim>(rows);
  const size_t count = std::min(kBlockRows, rows.count - base);
  size_t d = 0;
  for (; d + 4 * kLanes <= dim; d += 4 * kLanes) {
    value_columns<kType, kDim, kHeads, 4, kTurn>(out, weights, widened, rows, base, count, d);
  }
  for (; d + kLanes <= dim; d += kLanes) {
    value_columns<kType, kDim, kHeads, 1, kTurn>(out, weights, widened, rows, base, count, d);
  }
  for (; d < dim; ++d) {
    for (size_t h = 0; h < kHeads; ++h) {
      float sum = out[h * dim + d];
      for (size_t j = base; j < base + count; ++j) {
        sum += weights[h * kPartKeys + j] * load_one<kType>(rows.values + rows.offsets[j], d);
      }
      out[h * dim + d] = sum;
    }
  }
}

// Values of i8 are codes: their rows' scales go into the weights [kHeads, kPartKeys].
template <size_t kDim, size_t kHeads>
HWY_NOINLINE void scale_weights(float* weights, const PartRows& rows) {
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

// What a worker computes one part in.
struct PartMemory {
  size_t* offsets;  // [kOffsetsPerPart]
  float* scores;    // [heads, kPartKeys], then the softmax's numerators
  float* widened;   // [kBlockRows, dim]

  static size_t bytes(size_t heads, size_t dim) {
    return kOffsetsPerPart * sizeof(size_t) + (heads * kPartKeys + kBlockRows * dim) * sizeof(float);
  }
  PartMemory(std::byte* memory, size_t heads)
      : offsets(reinterpret_cast<size_t*>(memory)),
        scores(reinterpret_cast<float*>(offsets + kOffsetsPerPart)),
        widened(scores + heads * kPartKeys) {}
};

// Calls run.operator()<kHeads, kTurn>(first head) for all heads of a group, in turns of as equal a size as
// kMostHeads allows: 7 heads are 4 + 3, and where there are several turns each has at least two. kKeep: the
// first of several keeps what it has widened; without it all are alone.
template <bool kKeep, class Run>
inline void in_turns(size_t heads, const Run& run) {
  const auto take = [&]<Turn kTurn>(size_t h, size_t now) {
    if constexpr (kMostHeads == 4) {
      if (now == 4) run.template operator()<kMostHeads, kTurn>(h);
    }
    if (now == 3) run.template operator()<3, kTurn>(h);
    if (now == 2) run.template operator()<2, kTurn>(h);
    if constexpr (kTurn == Turn::alone) {
      if (now == 1) run.template operator()<1, kTurn>(h);
    }
  };
  for (size_t h = 0; h < heads;) {
    const size_t turns = (heads - h + kMostHeads - 1) / kMostHeads;
    const size_t now = (heads - h + turns - 1) / turns;
    if (!kKeep || now == heads) {
      take.template operator()<Turn::alone>(h, now);
    } else if constexpr (kKeep) {
      if (h == 0) take.template operator()<Turn::first>(h, now);
      if (h > 0) take.template operator()<Turn::later>(h, now);
    }
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

// All heads of a group over one part, from scores to weighted values.
template <KvType kType, size_t kDim>
inline void attend_part(const PartResult& result, const PartMemory& memory, const float* q, size_t heads,
                        float scale, const PartRows& rows) {
  const size_t dim = dim_of<kDim>(rows);
  for (size_t j = 0; j < kRowsAhead; ++j) prefetch_row<kType, kDim>(rows.keys + rows.offsets[j], rows);
  for (size_t base = 0; base < rows.count; base += kBlockRows) {
    in_turns<kWidens<kType>>(heads, [&]<size_t kHeads, Turn kTurn>(size_t h) {
      block_scores<kType, kDim, kHeads, kTurn>(memory.scores + h * kPartKeys + base, memory.widened,
                                               q + h * dim, scale, rows, base);
    });
  }
  // No rows are read here, so no turn has anything to keep for another.
  in_turns<false>(heads, [&]<size_t kHeads, Turn>(size_t h) {
    float* scores = memory.scores + h * kPartKeys;
    part_softmax<kHeads>(scores, rows.count, result.maximum + h, result.total + h);
    if constexpr (kType == KvType::i8) scale_weights<kDim, kHeads>(scores, rows);
  });
  std::fill_n(result.out, heads * dim, 0.0f);
  for (size_t base = 0; base < rows.count; base += kBlockRows) {
    in_turns<kWidens<kType>>(heads, [&]<size_t kHeads, Turn kTurn>(size_t h) {
      add_values<kType, kDim, kHeads, kTurn>(result.out + h * dim, memory.scores + h * kPartKeys,
                                             memory.widened, rows, base);
    });
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_ROW_ATTENTION_INL_H
