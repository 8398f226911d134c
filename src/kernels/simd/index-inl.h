#if defined(KEYSIEVE_SIMD_INDEX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_INDEX_INL_H
#undef KEYSIEVE_SIMD_INDEX_INL_H
#else
#define KEYSIEVE_SIMD_INDEX_INL_H
#endif

#include <algorithm>
#include <cstring>

#include "kernels/index_query.h"
#include "kernels/score_order.h"
#include "kernels/simd/vectors-inl.h"

// Index scoring and top-k, bitwise equal to reference/reference_index.cpp.
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

// Turns scores [count] (room for whole blocks) into e^(score - max), zero past the end; returns their sum.
inline float exponentials(float* scores, size_t count) {
  const size_t padded = (count + kIndexBlock - 1) / kIndexBlock * kIndexBlock;
  for (size_t s = count; s < padded; ++s) scores[s] = -3e38f;  // contributes e^-87, then set to 0 below
  VF largest = hn::LoadU(F32(), scores);
  for (size_t s = kLanes; s < padded; s += kLanes) largest = hn::Max(largest, hn::LoadU(F32(), scores + s));
  const VF top = hn::MaxOfLanes(F32(), largest);
  VF lanes[kBlockVectors];
  std::fill(lanes, lanes + kBlockVectors, hn::Zero(F32()));
  const size_t whole = count / kIndexBlock * kIndexBlock;
  for (size_t s = 0; s < padded; s += kIndexBlock) {
    for (size_t i = 0; i < kBlockVectors; ++i) {
      float* at = scores + s + i * kLanes;
      VF e = exp_of(hn::Sub(hn::LoadU(F32(), at), top));
      if (s >= whole) {
        const size_t first = s + i * kLanes;
        e = hn::IfThenElseZero(hn::FirstN(F32(), count > first ? std::min(count - first, kLanes) : 0), e);
      }
      hn::StoreU(e, F32(), at);
      lanes[i] = hn::Add(lanes[i], e);
    }
  }
  HWY_ALIGN float sums[kIndexBlock];
  for (size_t i = 0; i < kBlockVectors; ++i) hn::Store(lanes[i], F32(), sums + i * kLanes);
  float sum = 0.0f;
  for (const float lane : sums) sum += lane;
  return sum;
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
    const bool add_to = args.accumulate || first > 0;
    for (size_t s = 0; s < args.count; s += kLanes) {
      VF sum = add_to ? hn::LoadU(F32(), args.scores + s) : hn::Zero(F32());
      for (size_t h = 0; h < heads; ++h) {
        VF score = hn::LoadU(F32(), head_scores + (first + h) * stride + s);
        if (args.combine == IndexCombine::relu_sum) score = hn::Max(score, hn::Zero(F32()));
        sum = hn::MulAdd(score, hn::Set(F32(), factors[h]), sum);
      }
      hn::StoreU(sum, F32(), args.scores + s);
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

// score_order for a vector.
HWY_INLINE hn::Vec<U32> order_of(VF scores) {
  const auto bits = hn::BitCast(U32(), hn::Add(scores, hn::Zero(F32())));
  const auto negative = hn::BitCast(U32(), hn::BroadcastSignBit(hn::BitCast(I32(), bits)));
  const auto order = hn::Xor(bits, hn::Or(negative, hn::Set(U32(), 0x80000000u)));
  return hn::IfThenElse(hn::RebindMask(U32(), hn::IsNaN(scores)), hn::Zero(U32()), order);
}

// Writes (order << 32 | index) of every score whose order is at least `floor`; returns how many.
inline size_t candidates_above(uint64_t* out, const float* scores, size_t count, uint32_t floor) {
  size_t found = 0;
  size_t s = 0;
  HWY_ALIGN uint32_t orders[kLanes];
  for (; s + kLanes <= count; s += kLanes) {
    const auto order = order_of(hn::LoadU(F32(), scores + s));
    const auto keep = hn::Not(hn::Lt(order, hn::Set(U32(), floor)));
    uint64_t bits = 0;
    hn::StoreMaskBits(U32(), keep, reinterpret_cast<uint8_t*>(&bits));
    if (bits == 0) continue;
    hn::Store(order, U32(), orders);
    for (; bits != 0; bits &= bits - 1) {
      const auto lane = static_cast<size_t>(std::countr_zero(bits));
      out[found++] = static_cast<uint64_t>(orders[lane]) << 32 | (s + lane);
    }
  }
  for (; s < count; ++s) {
    const uint32_t order = score_order(scores[s]);
    if (order >= floor) out[found++] = static_cast<uint64_t>(order) << 32 | s;
  }
  return found;
}

// A sampled guess of the k-th best order, a little low, so that few scores besides the best k lie above it.
inline uint32_t guess_floor(uint32_t* sample, const float* scores, size_t count, size_t k) {
  constexpr size_t kStride = 16;
  const size_t size = count / kStride;
  for (size_t i = 0; i < size; ++i) sample[i] = score_order(scores[i * kStride + (i * 7) % kStride]);
  // The sample's count above the true threshold is about k / 16 with deviation sqrt(k / 16): take 3
  // deviations more.
  const double expected = static_cast<double>(k) / static_cast<double>(kStride);
  const auto rank = static_cast<size_t>(expected + 3.0 * std::sqrt(expected) + 3.0);
  if (rank >= size) return 0;
  std::nth_element(sample, sample + rank, sample + size, std::greater<>());
  return sample[rank];
}

inline size_t top_k_simd(uint32_t* out, const float* scores, size_t count, size_t k, KernelScratch& scratch,
                         int worker) {
  if (k >= count) {
    for (size_t i = 0; i < count; ++i) out[i] = static_cast<uint32_t>(i);
    return count;
  }
  if (k == 0) return 0;
  auto* candidates =
      reinterpret_cast<uint64_t*>(worker_scratch(scratch, worker, 2 * count * sizeof(uint64_t)));
  uint64_t* sorted = candidates + count;
  const uint32_t floor = guess_floor(reinterpret_cast<uint32_t*>(sorted), scores, count, k);
  size_t found = candidates_above(candidates, scores, count, floor);
  if (found < k) found = candidates_above(candidates, scores, count, 0);
  std::copy_n(candidates, found, sorted);
  // Orders above, indices below: among equal scores the larger index is the larger number, as the rule wants.
  std::nth_element(sorted, sorted + (k - 1), sorted + found, std::greater<>());
  const uint64_t threshold = sorted[k - 1];
  size_t written = 0;
  for (size_t i = 0; i < found; ++i) {
    out[written] = static_cast<uint32_t>(candidates[i]);
    written += candidates[i] >= threshold ? 1 : 0;
    if (written == k) break;
  }
  return k;
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_INDEX_INL_H
