#if defined(KEYSIEVE_SIMD_INDEX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_INDEX_INL_H
#undef KEYSIEVE_SIMD_INDEX_INL_H
#else
#define KEYSIEVE_SIMD_INDEX_INL_H
#endif

#include <algorithm>
#include <cstring>

#include "kernels/index_query.h"
#include "kernels/simd/vectors-inl.h"

// Index scoring, bitwise equal to reference/reference_index.cpp.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kBlockVectors = kIndexBlock / kLanes;

// One query head rounded to int8, ready to be broadcast four dimensions at a time.
struct CodedQuery {
  int8_t codes[kMaxIndexDim];  // padded with zeros to a multiple of 4
  int32_t offset;              // -128 * sum of codes: undoes the +128 of stored keys
  float scale;
};

inline void code_query(CodedQuery& query, const float* q, size_t dim) {
  std::memset(query.codes + dim / 4 * 4, 0, 4);
  query.scale = round_to_int8(query.codes, q, dim);
  int32_t sum = 0;
  for (size_t d = 0; d < dim; ++d) sum += query.codes[d];
  query.offset = -128 * sum;
}

HWY_INLINE int32_t four_codes(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, 4);
  return four;
}

// Dot products of one coded query with the 16 keys of a block: int32, exact. dim4 = padded dim / 4.
HWY_INLINE void dot_block_i8(VI* sums, const uint8_t* block, const CodedQuery& query, size_t dim4) {
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  __m512i even = _mm512_set1_epi32(query.offset);
  __m512i odd = _mm512_setzero_si512();
  size_t d = 0;
  for (; d + 2 <= dim4; d += 2) {
    even = _mm512_dpbusd_epi32(even, _mm512_loadu_si512(block + d * 64),
                               _mm512_set1_epi32(four_codes(query.codes + d * 4)));
    odd = _mm512_dpbusd_epi32(odd, _mm512_loadu_si512(block + d * 64 + 64),
                              _mm512_set1_epi32(four_codes(query.codes + d * 4 + 4)));
  }
  if (d < dim4) {
    even = _mm512_dpbusd_epi32(even, _mm512_loadu_si512(block + d * 64),
                               _mm512_set1_epi32(four_codes(query.codes + d * 4)));
  }
  sums[0] = VI{_mm512_add_epi32(even, odd)};
#else
  // maddubs wants one unsigned side: |q| times (key with q's sign), at most 2 * 127 * 128 = 32,512 a pair.
  const __m256i sign_bit = _mm256_set1_epi8(static_cast<char>(0x80));
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (size_t d = 0; d < dim4; ++d) {
    const __m256i q = _mm256_set1_epi32(four_codes(query.codes + d * 4));
    const __m256i magnitude = _mm256_abs_epi8(q);
    for (int i = 0; i < 2; ++i) {
      const __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + d * 64 + i * 32));
      const __m256i key = _mm256_sign_epi8(_mm256_xor_si256(stored, sign_bit), q);
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, key), ones));
    }
  }
  sums[0] = VI{sum[0]};
  sums[1] = VI{sum[1]};
#endif
}

// out [heads, stride]: q[h] . key[s] for whole blocks of slots.
inline void dot_heads_i8(float* out, size_t stride, const IndexScoreArgs& args) {
  const size_t dim4 = padded_index_dim(args.keys.dim) / 4;
  const size_t block_bytes = dim4 * 64;
  const size_t blocks = (args.count + kIndexBlock - 1) / kIndexBlock;
  const auto* data = reinterpret_cast<const uint8_t*>(args.keys.data);
  constexpr size_t kHeads = 4;  // queries coded at a time: 4 KB of stack
  for (size_t first = 0; first < args.heads; first += kHeads) {
    const size_t heads = std::min(kHeads, args.heads - first);
    CodedQuery queries[kHeads];
    for (size_t h = 0; h < heads; ++h)
      code_query(queries[h], args.q + (first + h) * args.keys.dim, args.keys.dim);
    for (size_t b = 0; b < blocks; ++b) {
      VF key_scale[kBlockVectors];
      for (size_t i = 0; i < kBlockVectors; ++i) {
        key_scale[i] = hn::LoadU(F32(), args.keys.scales + b * kIndexBlock + i * kLanes);
      }
      for (size_t h = 0; h < heads; ++h) {
        VI sums[kBlockVectors];
        dot_block_i8(sums, data + b * block_bytes, queries[h], dim4);
        for (size_t i = 0; i < kBlockVectors; ++i) {
          const VF score =
              hn::Mul(hn::Mul(hn::ConvertTo(F32(), sums[i]), key_scale[i]), hn::Set(F32(), queries[h].scale));
          hn::StoreU(score, F32(), out + (first + h) * stride + b * kIndexBlock + i * kLanes);
        }
      }
    }
  }
}

inline void dot_heads_f32(float* out, size_t stride, const IndexScoreArgs& args) {
  const size_t dim = args.keys.dim;
  const size_t block_values = padded_index_dim(dim) * kIndexBlock;
  const size_t blocks = (args.count + kIndexBlock - 1) / kIndexBlock;
  constexpr size_t kHeads = 8 / kBlockVectors;  // chains of multiply-adds at a time
  for (size_t b = 0; b < blocks; ++b) {
    const float* block = reinterpret_cast<const float*>(args.keys.data) + b * block_values;
    for (size_t first = 0; first < args.heads; first += kHeads) {
      const size_t heads = std::min(kHeads, args.heads - first);
      VF sums[kHeads][kBlockVectors];
      for (auto& head : sums) std::fill(head, head + kBlockVectors, hn::Zero(F32()));
      for (size_t d = 0; d < dim; ++d) {
        for (size_t i = 0; i < kBlockVectors; ++i) {
          const VF key = hn::LoadU(F32(), block + d * kIndexBlock + i * kLanes);
          for (size_t h = 0; h < heads; ++h) {
            sums[h][i] = hn::MulAdd(hn::Set(F32(), args.q[(first + h) * dim + d]), key, sums[h][i]);
          }
        }
      }
      for (size_t h = 0; h < heads; ++h) {
        for (size_t i = 0; i < kBlockVectors; ++i) {
          hn::StoreU(sums[h][i], F32(), out + (first + h) * stride + b * kIndexBlock + i * kLanes);
        }
      }
    }
  }
}

// index_exp for a vector.
HWY_INLINE VF index_exp_of(VF score, VF shift) {
  const F32 d;
  VF t = hn::MulAdd(score, hn::Set(d, IndexExp::kLog2E), shift);
  t = hn::Max(t, hn::Set(d, IndexExp::kLowest));
  const VF n = hn::Round(t);
  const VF r = hn::Sub(t, n);
  VF p = hn::MulAdd(hn::Set(d, IndexExp::kC3), r, hn::Set(d, IndexExp::kC2));
  p = hn::MulAdd(p, r, hn::Set(d, IndexExp::kC1));
  p = hn::MulAdd(p, r, hn::Set(d, IndexExp::kC0));
  const VI power = hn::ShiftLeft<23>(hn::ConvertTo(I32(), n));
  return hn::BitCast(F32(), hn::Add(hn::BitCast(I32(), p), power));
}

// Turns scores [count] (room for whole blocks) into e^(score - max), zero past the end; returns their sum.
inline float exponentials(float* scores, size_t count) {
  const size_t whole = count / kIndexBlock * kIndexBlock;
  const size_t padded = (count + kIndexBlock - 1) / kIndexBlock * kIndexBlock;
  for (size_t s = count; s < padded; ++s) scores[s] = -3e38f;  // no maximum; set to zero below
  VF largest[kBlockVectors];
  for (size_t i = 0; i < kBlockVectors; ++i) largest[i] = hn::LoadU(F32(), scores + i * kLanes);
  for (size_t s = kIndexBlock; s < padded; s += kIndexBlock) {
    for (size_t i = 0; i < kBlockVectors; ++i) {
      largest[i] = hn::Max(largest[i], hn::LoadU(F32(), scores + s + i * kLanes));
    }
  }
  for (size_t i = 1; i < kBlockVectors; ++i) largest[0] = hn::Max(largest[0], largest[i]);
  const VF top = hn::MaxOfLanes(F32(), largest[0]);
  const VF shift = hn::Neg(hn::Mul(top, hn::Set(F32(), IndexExp::kLog2E)));
  VF lanes[kBlockVectors];
  std::fill(lanes, lanes + kBlockVectors, hn::Zero(F32()));
  const auto block = [&](size_t s, size_t valid) HWY_ATTR {
    for (size_t i = 0; i < kBlockVectors; ++i) {
      float* at = scores + s + i * kLanes;
      VF e = index_exp_of(hn::LoadU(F32(), at), shift);
      if (valid < kIndexBlock) {
        const size_t first = i * kLanes;
        e = hn::IfThenElseZero(hn::FirstN(F32(), valid > first ? std::min(valid - first, kLanes) : 0), e);
      }
      hn::StoreU(e, F32(), at);
      lanes[i] = hn::Add(lanes[i], e);
    }
  };
  for (size_t s = 0; s < whole; s += kIndexBlock) block(s, kIndexBlock);
  if (whole < padded) block(whole, count - whole);
  HWY_ALIGN float sums[kIndexBlock];
  for (size_t i = 0; i < kBlockVectors; ++i) hn::Store(lanes[i], F32(), sums + i * kLanes);
  float sum = 0.0f;
  for (const float lane : sums) sum += lane;
  return sum;
}

struct HeadRows {
  const float* scores;  // [heads, stride]
  size_t stride;
  const float* factors;  // [heads]
  bool relu;
};

// out [count] (+)= sum over heads, in their order, of factor * score. kHeads 0: `heads` of them, else known
// when compiled (the KV group sizes of SmolLM2, 3, and Qwen2.5-0.5B, 7).
template <size_t kHeads>
inline void add_heads(float* out, const HeadRows& rows, size_t heads, size_t count, bool add_to) {
  const size_t n = kHeads == 0 ? heads : kHeads;
  const VF floor = rows.relu ? hn::Zero(F32()) : hn::Set(F32(), -INFINITY);
  for (size_t s = 0; s < count; s += kLanes) {
    VF sum = add_to ? hn::LoadU(F32(), out + s) : hn::Zero(F32());
    for (size_t h = 0; h < n; ++h) {
      const VF score = hn::Max(hn::LoadU(F32(), rows.scores + h * rows.stride + s), floor);
      sum = hn::MulAdd(score, hn::Set(F32(), rows.factors[h]), sum);
    }
    hn::StoreU(sum, F32(), out + s);
  }
}

inline void combine_heads(const IndexScoreArgs& args, float* head_scores, size_t stride) {
  constexpr size_t kMaxHeads = 256;
  float factors[kMaxHeads];
  for (size_t first = 0; first < args.heads; first += kMaxHeads) {
    const size_t heads = std::min(kMaxHeads, args.heads - first);
    for (size_t h = 0; h < heads; ++h) {
      factors[h] = args.combine == IndexCombine::relu_sum ? args.head_weight[first + h]
                   : args.combine == IndexCombine::softmax_sum
                       ? 1.0f / exponentials(head_scores + (first + h) * stride, args.count)
                       : 1.0f;
    }
    const HeadRows rows{head_scores + first * stride, stride, factors,
                        args.combine == IndexCombine::relu_sum};
    const bool add_to = args.accumulate || first > 0;
    switch (heads) {
      case 1:
        add_heads<1>(args.scores, rows, heads, args.count, add_to);
        break;
      case 3:
        add_heads<3>(args.scores, rows, heads, args.count, add_to);
        break;
      case 7:
        add_heads<7>(args.scores, rows, heads, args.count, add_to);
        break;
      default:
        add_heads<0>(args.scores, rows, heads, args.count, add_to);
        break;
    }
  }
}

inline void index_scores_simd(const IndexScoreArgs& args, KernelScratch& scratch, int worker) {
  if (args.count == 0) return;
  const size_t stride = (args.count + kIndexBlock - 1) / kIndexBlock * kIndexBlock;
  auto* head_scores =
      reinterpret_cast<float*>(worker_scratch(scratch, worker, args.heads * stride * sizeof(float)));
  if (args.keys.type == IndexKeyType::i8) {
    dot_heads_i8(head_scores, stride, args);
  } else {
    dot_heads_f32(head_scores, stride, args);
  }
  combine_heads(args, head_scores, stride);
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_INDEX_INL_H
