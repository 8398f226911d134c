#if defined(KEYSIEVE_SIMD_INDEX_DOT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_INDEX_DOT_INL_H
#undef KEYSIEVE_SIMD_INDEX_DOT_INL_H
#else
#define KEYSIEVE_SIMD_INDEX_DOT_INL_H
#endif

#include <cmath>
#include <cstring>

#include "kernels/index_query.h"
#include "kernels/simd/vectors-inl.h"

// Dot products of int8 queries with the 16 keys of a block, exact in int32: the only part of index scoring
// that needs instructions of its own on each machine.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kBlockVectors = kIndexBlock / kLanes;

// One query head rounded to int8, read four dimensions at a time.
struct CodedQuery {
  int8_t codes[kMaxIndexDim + kLanes];  // padded with zeros to a multiple of 8
  int32_t offset;                       // takes back what unsigned key codes are too large by
  float scale;
};

// round_to_int8 bit for bit, with zeros up to a multiple of kLanes; `sum` of the codes.
HWY_INLINE float round_vectors(int8_t* codes, int32_t& sum, const float* values, size_t dim) {
  VF largest = hn::Zero(F32());
  for (size_t d = 0; d < dim; d += kLanes) {
    const VF value = load_first(values + d, dim - d);
    largest = hn::Max(hn::Abs(value), largest);  // a NaN gives the second operand
  }
  const float most = hn::GetLane(hn::MaxOfLanes(F32(), largest));
  const bool usable = most > 0.0f && std::isfinite(most);
  const VF inverse = hn::Set(F32(), usable ? 127.0f / most : 0.0f);
  VI sums = hn::Zero(I32());
  for (size_t d = 0; d < dim; d += kLanes) {
    const VF value = load_first(values + d, dim - d);
    const auto is_number = hn::Eq(value, value);
    const VF scaled = hn::IfThenElseZero(is_number, hn::Mul(value, inverse));
    VI rounded = hn::NearestInt(scaled);
    if (!usable) rounded = hn::Zero(I32());
    rounded = hn::Max(hn::Min(rounded, hn::Set(I32(), 127)), hn::Set(I32(), -127));
    const hn::Rebind<int8_t, I32> i8;
    hn::StoreU(hn::DemoteTo(i8, rounded), i8, codes + d);
    sums = hn::Add(sums, rounded);
  }
  sum = hn::GetLane(hn::SumOfLanes(I32(), sums));
  return usable ? most / 127.0f : 0.0f;
}

template <IndexKeyType kType>
inline void code_query(CodedQuery& query, const float* q, size_t dim) {
  int32_t sum = 0;
  query.scale = round_vectors(query.codes, sum, q, dim);
  std::memset(query.codes + dim, 0, 8);
  query.offset = (kType == IndexKeyType::i8 ? -128 : -120) * sum;
}

HWY_INLINE int32_t four_codes(const CodedQuery& query, size_t step) {
  int32_t four;
  std::memcpy(&four, query.codes + step * 4, 4);
  return four;
}

// A step is 4 dimensions of 16 keys. Keys come two steps at a time: 128 bytes of i8, 64 of i4.
template <IndexKeyType kType>
inline constexpr size_t kPairBytes = kType == IndexKeyType::i8 ? 128 : 64;

#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86

struct KeySteps {
  __m512i first, second;
};

// `single`: the block ends with the first step (i8 only).
template <IndexKeyType kType>
HWY_INLINE KeySteps load_steps(const uint8_t* at, bool single) {
  if constexpr (kType == IndexKeyType::i8) {
    return {_mm512_loadu_si512(at), single ? _mm512_setzero_si512() : _mm512_loadu_si512(at + 64)};
  } else {
    // A nibble in the upper half of its byte is 16 times its code.
    const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xf0));
    const __m512i both = _mm512_loadu_si512(at);
    return {_mm512_and_si512(_mm512_slli_epi16(both, 4), upper), _mm512_and_si512(both, upper)};
  }
}

// Two sums where there are few queries: a dot product takes 4 to 5 cycles to join its sum.
template <IndexKeyType kType, bool kTwoSums, size_t>
struct BlockDot {
  __m512i even, odd;

  HWY_INLINE void start(const CodedQuery& query) {
    even = _mm512_set1_epi32(query.offset);
    if constexpr (kTwoSums) odd = _mm512_setzero_si512();
  }
  HWY_INLINE void add(const KeySteps& keys, const CodedQuery& query, size_t step) {
    __m512i& second = kTwoSums ? odd : even;
    even = _mm512_dpbusd_epi32(even, keys.first, _mm512_set1_epi32(four_codes(query, step)));
    second = _mm512_dpbusd_epi32(second, keys.second, _mm512_set1_epi32(four_codes(query, step + 1)));
  }
  HWY_INLINE void finish(VI* sums) const { sums[0] = VI{kTwoSums ? _mm512_add_epi32(even, odd) : even}; }
};

#elif HWY_ARCH_ARM_A64

struct KeySteps {
  int8x16_t step[2][kBlockVectors];  // [steps][quarters of a block]
};

// i8 keys are signed again, so nothing is to be taken back; i4 keys stay 0 .. 15, a 16th of their codes.
template <IndexKeyType kType>
HWY_INLINE KeySteps load_steps(const uint8_t* at, bool single) {
  KeySteps keys;
  for (size_t i = 0; i < kBlockVectors; ++i) {
    const uint8x16_t first = vld1q_u8(at + i * 16);
    if constexpr (kType == IndexKeyType::i8) {
      const uint8x16_t sign_bit = vdupq_n_u8(0x80);
      keys.step[0][i] = vreinterpretq_s8_u8(veorq_u8(first, sign_bit));
      keys.step[1][i] =
          single ? vdupq_n_s8(0) : vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + 64 + i * 16), sign_bit));
    } else {
      keys.step[0][i] = vreinterpretq_s8_u8(vandq_u8(first, vdupq_n_u8(15)));
      keys.step[1][i] = vreinterpretq_s8_u8(vshrq_n_u8(first, 4));
    }
  }
  return keys;
}

template <IndexKeyType kType, bool, size_t>
struct BlockDot {
  int32x4_t sum[kBlockVectors];
  int32_t offset;

  HWY_INLINE void start(const CodedQuery& query) {
    for (int32x4_t& s : sum) s = vdupq_n_s32(0);
    offset = query.offset;
  }
  HWY_INLINE void add(const KeySteps& keys, const CodedQuery& query, size_t step) {
    const int8x16_t first = vreinterpretq_s8_s32(vdupq_n_s32(four_codes(query, step)));
    const int8x16_t second = vreinterpretq_s8_s32(vdupq_n_s32(four_codes(query, step + 1)));
    for (size_t i = 0; i < kBlockVectors; ++i) {
      sum[i] = vdotq_s32(vdotq_s32(sum[i], keys.step[0][i], first), keys.step[1][i], second);
    }
  }
  HWY_INLINE void finish(VI* sums) const {
    for (size_t i = 0; i < kBlockVectors; ++i) {
      sums[i] =
          VI(kType == IndexKeyType::i8 ? sum[i] : vaddq_s32(vshlq_n_s32(sum[i], 4), vdupq_n_s32(offset)));
    }
  }
};

#else

struct KeySteps {
  __m256i step[2][2];  // [steps][halves of a block]
};

template <IndexKeyType kType>
HWY_INLINE KeySteps load_steps(const uint8_t* at, bool single) {
  KeySteps keys;
  for (int half = 0; half < 2; ++half) {
    const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + half * 32));
    if constexpr (kType == IndexKeyType::i8) {
      const __m256i sign_bit = _mm256_set1_epi8(static_cast<char>(0x80));
      keys.step[0][half] = _mm256_xor_si256(first, sign_bit);
      keys.step[1][half] =
          single ? _mm256_setzero_si256()
                 : _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 64 + half * 32)),
                                    sign_bit);
    } else {
      const __m256i lower = _mm256_set1_epi8(15);
      keys.step[0][half] = _mm256_and_si256(first, lower);
      keys.step[1][half] = _mm256_and_si256(_mm256_srli_epi16(first, 4), lower);
    }
  }
  return keys;
}

// kSteps as block_scores has it.
template <IndexKeyType kType, bool, size_t kSteps>
struct BlockDot {
  // A step of i4 adds at most 2 * 15 * 127 = 3,810, so 8 of them fit int16 and are widened once: keys of 24
  // dimensions take 14 multiplications in place of 18.
  static constexpr bool kNarrow = kType == IndexKeyType::i4 && kSteps != 0 && kSteps <= 8;
  __m256i sum[2];  // 8 x int32, or with kNarrow 16 x int16
  int32_t offset;

  HWY_INLINE void start(const CodedQuery& query) {
    // i8 keys are signed again here (see load_steps), so nothing is to be taken back.
    offset = kType == IndexKeyType::i8 ? 0 : query.offset;
    sum[0] = sum[1] = kNarrow ? _mm256_setzero_si256() : _mm256_set1_epi32(offset);
  }
  HWY_INLINE void add(const KeySteps& keys, const CodedQuery& query, size_t step) {
    const __m256i first = _mm256_set1_epi32(four_codes(query, step));
    const __m256i second = _mm256_set1_epi32(four_codes(query, step + 1));
    for (int half = 0; half < 2; ++half) {
      if constexpr (kType == IndexKeyType::i8) {
        // maddubs wants one unsigned side: |q| times (key with q's sign), at most 2 * 127 * 128 = 32,512.
        const __m256i ones = _mm256_set1_epi16(1);
        const __m256i a =
            _mm256_maddubs_epi16(_mm256_abs_epi8(first), _mm256_sign_epi8(keys.step[0][half], first));
        const __m256i b =
            _mm256_maddubs_epi16(_mm256_abs_epi8(second), _mm256_sign_epi8(keys.step[1][half], second));
        sum[half] = _mm256_add_epi32(sum[half], _mm256_madd_epi16(a, ones));
        sum[half] = _mm256_add_epi32(sum[half], _mm256_madd_epi16(b, ones));
      } else {
        const __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(keys.step[0][half], first),
                                              _mm256_maddubs_epi16(keys.step[1][half], second));
        sum[half] = kNarrow ? _mm256_add_epi16(sum[half], both) : _mm256_add_epi32(sum[half], widened(both));
      }
    }
  }
  HWY_INLINE void finish(VI* sums) const {
    for (int half = 0; half < 2; ++half) {
      sums[half] = VI{kNarrow ? _mm256_add_epi32(widened(sum[half]), _mm256_set1_epi32(offset)) : sum[half]};
    }
  }

 private:
  // Sums of neighbours, times the 16 that a code is short of.
  HWY_INLINE static __m256i widened(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(16)); }
};

#endif

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_INDEX_DOT_INL_H
