#if defined(KEYSIEVE_SIMD_INDEX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_INDEX_INL_H
#undef KEYSIEVE_SIMD_INDEX_INL_H
#else
#define KEYSIEVE_SIMD_INDEX_INL_H
#endif

#include <algorithm>
#include <cmath>

#include "kernels/simd/index_dot-inl.h"
#include "kernels/simd/vectors-inl.h"

// Index scoring, bitwise equal to reference/reference_index.cpp. The heads of all queries make rows of
// scores; as many rows as registers hold go over the keys together, twice: once for their scores (or
// exponentials, and those's sums), once for their weighted sum.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// The published shape's 6 heads go over fp32 keys once on AVX2 too: these are 9 MB a layer at 32,768
// positions, and reading them twice took a third longer (docs/performance.md).
template <IndexKeyType kType>
inline constexpr size_t kRowsAtOnce =
    kType == IndexKeyType::f32 || (HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86) ? 6 : 4;
inline constexpr size_t kMostRowsAtOnce = kRowsAtOnce<IndexKeyType::f32>;

// The scores of some heads of some queries, on their way to one score a key.
struct HeadRows {
  float* scores;                  // [rows, stride]
  size_t stride;                  // whole blocks
  float factor[kMostRowsAtOnce];  // what each row is multiplied with in the end
};

// The queries of one pass, a head each: as they are, or rounded. from [kRows][dim]
template <IndexKeyType kType, size_t kRows>
struct PassQueries {
  CodedQuery coded[kRows];  // 8 KB of stack
  float unit(size_t r) const { return coded[r].scale; }
  PassQueries(const float* const (&from)[kRows], size_t dim) {
    for (size_t r = 0; r < kRows; ++r) code_query<kType>(coded[r], from[r], dim);
  }
};
template <size_t kRows>
struct PassQueries<IndexKeyType::f32, kRows> {
  const float* q[kRows];  // [kRows][dim]
  float unit(size_t) const { return 1.0f; }
  PassQueries(const float* const (&from)[kRows], size_t) { std::copy_n(from, kRows, q); }
};

// How many slots each row of a pass scores, no less than the row before; from there to `end` rows are filled.
template <size_t kRows>
struct RowCounts {
  size_t of[kRows];
  size_t end;
};

struct ScoredKeys : IndexKeyView {
  bool cold;
  size_t block_bytes;
};

// Keys are asked for so far ahead: the hardware's own prefetching stops at the end of each 4 KB page, and
// reached half of what a core can read.
inline constexpr size_t kPrefetchBytes = 4096;

HWY_INLINE void prefetch_block(const ScoredKeys& keys, size_t slot) {
  const std::byte* at = keys.data + slot / kIndexBlock * keys.block_bytes + kPrefetchBytes;
  for (size_t line = 0; line < keys.block_bytes; line += kAlignment) prefetch_to_l2(at + line);
  prefetch_to_l2(keys.scales + slot * index_scale_bytes(keys.type) + kPrefetchBytes / 8);
}

template <IndexKeyType kType>
HWY_INLINE VF load_scales(const std::byte* scales, size_t slot) {
  if constexpr (kType == IndexKeyType::i8) {
    return hn::LoadU(F32(), reinterpret_cast<const float*>(scales) + slot);
  } else {
    return load_bfloat16(reinterpret_cast<const BFloat16*>(scales) + slot);
  }
}

// raw [kRows, kBlockVectors]: scores of one block of keys in units of queries.unit(h). kSteps 0: as many
// steps of 4 dimensions as the keys have, else known when compiled (coded keys only).
template <IndexKeyType kType, size_t kRows, size_t kSteps>
HWY_INLINE void block_scores(VF (*raw)[kBlockVectors], const PassQueries<kType, kRows>& queries,
                             const ScoredKeys& keys, size_t slot) {
  if constexpr (kType == IndexKeyType::f32) {
    const size_t padded_dim = padded_index_dim(kType, keys.dim);
    const float* block = reinterpret_cast<const float*>(keys.data) + slot * padded_dim;
    for (size_t h = 0; h < kRows; ++h) std::fill(raw[h], raw[h] + kBlockVectors, hn::Zero(F32()));
    for (size_t d = 0; d < keys.dim; ++d) {
      // A line for a line, not all of a block at once (docs/decisions/0024-asking-l2.md).
      if (keys.cold) prefetch_to_l2(block + d * kIndexBlock + kPrefetchBytes / sizeof(float));
      VF key[kBlockVectors];
      for (size_t i = 0; i < kBlockVectors; ++i)
        key[i] = hn::LoadU(F32(), block + d * kIndexBlock + i * kLanes);
      for (size_t h = 0; h < kRows; ++h) {
        const VF q = hn::Set(F32(), queries.q[h][d]);
        for (size_t i = 0; i < kBlockVectors; ++i) raw[h][i] = hn::MulAdd(q, key[i], raw[h][i]);
      }
    }
  } else {
    const size_t steps = kSteps != 0 ? kSteps : padded_index_dim(kType, keys.dim) / 4;
    const auto* block =
        reinterpret_cast<const uint8_t*>(keys.data) + slot / kIndexBlock * steps * (kPairBytes<kType> / 2);
    BlockDot<kType, (kRows < 4), kSteps> dots[kRows];
    for (size_t h = 0; h < kRows; ++h) dots[h].start(queries.coded[h]);
    for (size_t step = 0; step < steps; step += 2) {
      const KeySteps pair = load_steps<kType>(block + step / 2 * kPairBytes<kType>, step + 1 == steps);
      for (size_t h = 0; h < kRows; ++h) dots[h].add(pair, queries.coded[h], step);
    }
    VF scales[kBlockVectors];
    for (size_t i = 0; i < kBlockVectors; ++i) scales[i] = load_scales<kType>(keys.scales, slot + i * kLanes);
    for (size_t h = 0; h < kRows; ++h) {
      VI sums[kBlockVectors];
      dots[h].finish(sums);
      for (size_t i = 0; i < kBlockVectors; ++i) {
        raw[h][i] = hn::Mul(hn::ConvertTo(F32(), sums[i]), scales[i]);
      }
    }
  }
}

// Calls sink(slot, raw) for every block; lanes past a row's count are no keys and hold `past`.
template <IndexKeyType kType, size_t kRows, size_t kSteps, class Sink>
HWY_INLINE void for_blocks(const PassQueries<kType, kRows>& queries, const ScoredKeys& keys,
                           const RowCounts<kRows>& counts, float past, const Sink& sink) {
  VF raw[kRows][kBlockVectors];
  size_t slot = 0;
  for (; slot + kIndexBlock <= counts.of[0]; slot += kIndexBlock) {
    if constexpr (kType != IndexKeyType::f32) {
      if (keys.cold) prefetch_block(keys, slot);
    }
    block_scores<kType, kRows, kSteps>(raw, queries, keys, slot);
    sink(slot, raw);
  }
  for (; slot < counts.end; slot += kIndexBlock) {
    block_scores<kType, kRows, kSteps>(raw, queries, keys, slot);
    for (size_t h = 0; h < kRows; ++h) {
      const size_t left = counts.of[h] - std::min(slot, counts.of[h]);
      for (size_t i = 0; i < kBlockVectors; ++i) {
        const auto valid = hn::FirstN(F32(), left - std::min(left, i * kLanes));
        raw[h][i] = hn::IfThenElse(valid, raw[h][i], hn::Set(F32(), past));
      }
    }
    sink(slot, raw);
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

template <size_t kRows>
HWY_INLINE void largest_lanes(float* out, const VF (*largest)[kBlockVectors]) {
  for (size_t h = 0; h < kRows; ++h) {
    VF top = largest[h][0];
    for (size_t i = 1; i < kBlockVectors; ++i) top = hn::Max(top, largest[h][i]);
    out[h] = hn::GetLane(hn::MaxOfLanes(F32(), top));
  }
}

// Rows of e^(unit (raw - top[h])) and their sums in the order of the scalar twin: exact to fp32 for f32 keys,
// else as rough as rounded keys allow (IndexExp). Leaves the largest raw score of each row in `largest`.
template <IndexKeyType kType, size_t kRows, size_t kSteps>
inline void exponentials(HeadRows& rows, float* largest, const PassQueries<kType, kRows>& queries,
                         const ScoredKeys& keys, const RowCounts<kRows>& counts, const float* top) {
  VF factor[kRows], shift[kRows], sums[kRows][kBlockVectors], highest[kRows][kBlockVectors];
  for (size_t h = 0; h < kRows; ++h) {
    const float scaled = queries.unit(h) * IndexExp::kScale;
    factor[h] = hn::Set(F32(), scaled);
    shift[h] = hn::Set(F32(), index_exp_shift(top[h], scaled));
    std::fill(sums[h], sums[h] + kBlockVectors, hn::Zero(F32()));
    std::fill(highest[h], highest[h] + kBlockVectors, hn::Set(F32(), -INFINITY));
  }
  float* scores = rows.scores;
  const size_t stride = rows.stride;
  for_blocks<kType, kRows, kSteps>(
      queries, keys, counts, -INFINITY, [&](size_t slot, const VF(*raw)[kBlockVectors]) HWY_ATTR {
        for (size_t h = 0; h < kRows; ++h) {
          for (size_t i = 0; i < kBlockVectors; ++i) {
            highest[h][i] = hn::Max(highest[h][i], raw[h][i]);
            VF e;
            if constexpr (kType == IndexKeyType::f32) {
              e = exp_of(hn::Sub(raw[h][i], hn::Set(F32(), top[h])));
            } else {
              // Max gives its second operand for a NaN.
              const VF t = hn::Max(hn::MulAdd(raw[h][i], factor[h], shift[h]), hn::Zero(F32()));
              e = hn::BitCast(F32(), whole_part(t));
            }
            hn::StoreU(e, F32(), scores + h * stride + slot + i * kLanes);
            sums[h][i] = hn::Add(sums[h][i], e);
          }
        }
      });
  largest_lanes<kRows>(largest, highest);
  for (size_t h = 0; h < kRows; ++h) {
    HWY_ALIGN float lanes[kIndexBlock];
    for (size_t i = 0; i < kBlockVectors; ++i) hn::Store(sums[h][i], F32(), lanes + i * kLanes);
    float sum = 0.0f;
    for (const float lane : lanes) sum += lane;
    rows.factor[h] = 1.0f / sum;
  }
}

// Rows of exponentials with the factors that make each a softmax.
template <IndexKeyType kType, size_t kRows, size_t kSteps>
inline void softmax_rows(HeadRows& rows, const PassQueries<kType, kRows>& queries, const ScoredKeys& keys,
                         const RowCounts<kRows>& counts) {
  float top[kRows], largest[kRows];
  RowCounts<kRows> first_block{{}, kIndexBlock};
  for (size_t h = 0; h < kRows; ++h) first_block.of[h] = std::min(counts.of[h], kIndexBlock);
  VF first[kRows][kBlockVectors];
  for_blocks<kType, kRows, kSteps>(queries, keys, first_block, -INFINITY,
                                   [&](size_t, const VF(*raw)[kBlockVectors]) HWY_ATTR {
                                     for (size_t h = 0; h < kRows; ++h) {
                                       std::copy(raw[h], raw[h] + kBlockVectors, first[h]);
                                     }
                                   });
  largest_lanes<kRows>(top, first);
  exponentials<kType, kRows, kSteps>(rows, largest, queries, keys, counts, top);
  bool again = false;
  for (size_t h = 0; h < kRows; ++h) {
    if (index_exp_reaches(top[h], largest[h], queries.unit(h))) continue;
    top[h] = largest[h];
    again = true;
  }
  if (again) exponentials<kType, kRows, kSteps>(rows, largest, queries, keys, counts, top);
}

template <IndexKeyType kType, size_t kRows, size_t kSteps>
inline void raw_rows(HeadRows& rows, const PassQueries<kType, kRows>& queries, const ScoredKeys& keys,
                     const RowCounts<kRows>& counts) {
  for_blocks<kType, kRows, kSteps>(
      queries, keys, counts, 0.0f, [&](size_t slot, const VF(*raw)[kBlockVectors]) HWY_ATTR {
        for (size_t h = 0; h < kRows; ++h) {
          for (size_t i = 0; i < kBlockVectors; ++i) {
            hn::StoreU(raw[h][i], F32(), rows.scores + h * rows.stride + slot + i * kLanes);
          }
        }
      });
  for (size_t h = 0; h < kRows; ++h) rows.factor[h] = queries.unit(h);
}

// out [count rounded up to blocks] (+)= sum over heads, in their order, of factor * score.
template <size_t kRows, bool kRelu>
inline void add_rows(float* out, const HeadRows& rows, size_t count, bool add_to) {
  VF factor[kRows];
  for (size_t h = 0; h < kRows; ++h) factor[h] = hn::Set(F32(), rows.factor[h]);
  for (size_t slot = 0; slot < count; slot += kLanes) {
    VF sum = add_to ? hn::LoadU(F32(), out + slot) : hn::Zero(F32());
    for (size_t h = 0; h < kRows; ++h) {
      VF score = hn::LoadU(F32(), rows.scores + h * rows.stride + slot);
      if constexpr (kRelu) score = hn::Max(score, hn::Zero(F32()));
      sum = hn::MulAdd(score, factor[h], sum);
    }
    hn::StoreU(sum, F32(), out + slot);
  }
}

// Rows first .. first + kRows - 1 of the call's queries x heads.
template <IndexKeyType kType, size_t kRows, size_t kSteps>
inline void score_rows(const IndexScoreArgs& args, HeadRows& rows, size_t first) {
  const float* from[kRows];
  RowCounts<kRows> counts{{}, args.count + args.queries - 1};
  for (size_t h = 0; h < kRows; ++h) {
    const size_t query = (first + h) / args.heads, head = (first + h) % args.heads;
    from[h] = args.q + query * args.query_stride + head * args.keys.dim;
    counts.of[h] = args.count + query;
  }
  const PassQueries<kType, kRows> queries(from, args.keys.dim);
  const ScoredKeys keys{args.keys, args.cold, index_key_bytes(kType, args.keys.dim, kIndexBlock)};
  const bool add_to = args.accumulate || first > 0;
  if (args.combine == IndexCombine::softmax_sum) {
    softmax_rows<kType, kRows, kSteps>(rows, queries, keys, counts);
    return add_rows<kRows, false>(args.scores, rows, counts.end, add_to);
  }
  raw_rows<kType, kRows, kSteps>(rows, queries, keys, counts);
  if (args.combine == IndexCombine::linear_sum) {
    return add_rows<kRows, false>(args.scores, rows, counts.end, add_to);
  }
  for (size_t h = 0; h < kRows; ++h) rows.factor[h] *= args.head_weight[first + h];
  add_rows<kRows, true>(args.scores, rows, counts.end, add_to);
}

// `count` rows, at most kMost.
template <IndexKeyType kType, size_t kSteps, size_t kMost = kRowsAtOnce<kType>>
inline void score_some(const IndexScoreArgs& args, HeadRows& rows, size_t first, size_t count) {
  if constexpr (kMost > 1) {
    if (count < kMost) return score_some<kType, kSteps, kMost - 1>(args, rows, first, count);
  }
  score_rows<kType, kMost, kSteps>(args, rows, first);
}

template <IndexKeyType kType, size_t kSteps>
inline void score_all_heads(const IndexScoreArgs& args, HeadRows& rows) {
  const size_t all = args.queries * args.heads;
  const size_t passes = (all + kRowsAtOnce<kType> - 1) / kRowsAtOnce<kType>;  // as equal as can be
  for (size_t pass = 0; pass < passes; ++pass) {
    const size_t first = all * pass / passes;
    score_some<kType, kSteps>(args, rows, first, all * (pass + 1) / passes - first);
  }
}

// Ranks 24 and 32, of trained and of calibrated indexers, are worth code of their own.
template <IndexKeyType kType>
inline void score_coded(const IndexScoreArgs& args, HeadRows& rows) {
  if (args.keys.dim == 24) return score_all_heads<kType, 6>(args, rows);
  if (args.keys.dim == 32) return score_all_heads<kType, 8>(args, rows);
  score_all_heads<kType, 0>(args, rows);
}

inline void index_scores_simd(const IndexScoreArgs& args, KernelScratch& scratch, int worker) {
  if (args.count == 0) return;
  const size_t slots = args.count + args.queries - 1;
  const size_t stride = (slots + kIndexBlock - 1) / kIndexBlock * kIndexBlock;
  HeadRows rows{};
  rows.scores =
      reinterpret_cast<float*>(worker_scratch(scratch, worker, kMostRowsAtOnce * stride * sizeof(float)));
  rows.stride = stride;
  switch (args.keys.type) {
    case IndexKeyType::f32:
      return score_all_heads<IndexKeyType::f32, 0>(args, rows);
    case IndexKeyType::i8:
      return score_coded<IndexKeyType::i8>(args, rows);
    case IndexKeyType::i4:
      return score_coded<IndexKeyType::i4>(args, rows);
  }
}

// In the scalar twin's order: sums lane by lane of 16, the last values one by one.
inline void add_softmax_simd(float* out, float* scores, size_t count, bool accumulate) {
  if (count == 0) return;
  const size_t whole = count / kIndexBlock * kIndexBlock;
  VF highest[kBlockVectors], sums[kBlockVectors];
  std::fill(highest, highest + kBlockVectors, hn::Set(F32(), -INFINITY));
  std::fill(sums, sums + kBlockVectors, hn::Zero(F32()));
  for (size_t slot = 0; slot < whole; slot += kLanes) {
    VF& lane = highest[slot / kLanes % kBlockVectors];
    lane = hn::Max(lane, hn::LoadU(F32(), scores + slot));
  }
  float top;
  largest_lanes<1>(&top, &highest);
  for (size_t s = whole; s < count; ++s) top = std::max(top, scores[s]);
  for (size_t slot = 0; slot < whole; slot += kLanes) {
    const VF e = exp_of(hn::Sub(hn::LoadU(F32(), scores + slot), hn::Set(F32(), top)));
    hn::StoreU(e, F32(), scores + slot);
    VF& lane = sums[slot / kLanes % kBlockVectors];
    lane = hn::Add(lane, e);
  }
  HWY_ALIGN float lanes[kIndexBlock];
  for (size_t i = 0; i < kBlockVectors; ++i) hn::Store(sums[i], F32(), lanes + i * kLanes);
  for (size_t s = whole; s < count; ++s) {
    scores[s] = fast_exp(scores[s] - top);
    lanes[s - whole] += scores[s];
  }
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  const VF factor = hn::Set(F32(), 1.0f / sum);
  for (size_t slot = 0; slot < whole; slot += kLanes) {
    const VF before = accumulate ? hn::LoadU(F32(), out + slot) : hn::Zero(F32());
    hn::StoreU(hn::MulAdd(hn::LoadU(F32(), scores + slot), factor, before), F32(), out + slot);
  }
  for (size_t s = whole; s < count; ++s) out[s] = std::fma(scores[s], 1.0f / sum, accumulate ? out[s] : 0.0f);
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_INDEX_INL_H
