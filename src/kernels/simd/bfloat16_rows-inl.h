#if defined(KEYSIEVE_SIMD_BFLOAT16_ROWS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_BFLOAT16_ROWS_INL_H
#undef KEYSIEVE_SIMD_BFLOAT16_ROWS_INL_H
#else
#define KEYSIEVE_SIMD_BFLOAT16_ROWS_INL_H
#endif

#include <algorithm>
#include <cstdint>

#include "kernels/simd/attention-inl.h"

// Stored keys and values rounded to bfloat16, for products in it (bfloat16_tile-inl.h).
#if HWY_TARGET == HWY_AVX3_DL
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
static_assert(true, "for the semicolon");
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kWords = 16;  // 32-bit words of a vector, each a pair of bfloat16 values
inline constexpr size_t kPair = 2;

// What all keys of a head have in common adds the same to every score of a row, so a softmax does not see it,
// but bfloat16 does: Qwen2.5-Coder-0.5B adds up to 211 to its keys, where a step is a whole 1. Any key will
// do as what is taken off; the fourth of a list is one of nearly every selection and no longer the first
// token, whose keys are like no others.
inline constexpr size_t kOriginPlace = 3;

// The keys a block of queries reads: the slots of `slots`, or 0 .. count - 1 where it is nullptr.
struct RowList {
  const KvView* kv;
  size_t kv_head;
  const uint32_t* slots;  // [count]
  size_t count;           // 1 or more

  size_t slot(size_t i) const { return slots == nullptr ? i : slots[i]; }
  size_t origin() const { return slot(std::min(kOriginPlace, count - 1)); }
};

// head_dim in whole vectors of pairs, known when compiled where kDim is.
template <size_t kDim>
inline constexpr size_t pad_dim(size_t head_dim) {
  return kDim != 0 ? kDim : (head_dim + 31) / 32 * 32;
}

// 16 values of a stored row from dimension d on, those past head_dim 0. kDim is head_dim where that is known
// when compiled, a multiple of 32.
template <KvType kType, size_t kDim>
HWY_INLINE __m512 load_16(const std::byte* row, size_t d, size_t head_dim) {
  if constexpr (kDim != 0) {
    const VF values = load_kv<kType>(row, d);
    return kType == KvType::i8 ? _mm512_mul_ps(values.raw, _mm512_set1_ps(kv_scale(row, kDim))) : values.raw;
  } else {
    const size_t left = head_dim - std::min(d, head_dim);
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1u << left) - 1);
    if constexpr (kType == KvType::f16) {
      return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, row + d * sizeof(Half)));
    } else {
      const __m512i codes = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, row + d));
      return _mm512_mul_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(kv_scale(row, head_dim)));
    }
  }
}

// The values of `first`, then those of `second`.
HWY_INLINE __m512i rounded(__m512 first, __m512 second) {
  return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

// Word i: value i of `first` below value i of `second`, both rounded.
HWY_INLINE __m512i pairs_of(__m512 first, __m512 second) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, rounded(first, second));
}

// out [padded_dim] = the key in fp32 that a list's other keys are rounded less.
template <KvType kType, size_t kDim>
HWY_INLINE void load_origin(float* out, const KvView& kv, size_t kv_head, size_t slot) {
  for (size_t d = 0; d < pad_dim<kDim>(kv.head_dim); d += 16) {
    _mm512_store_ps(out + d, load_16<kType, kDim>(kv.key_row(kv_head, slot), d, kv.head_dim));
  }
}

// to [padded_dim / 2] = one key less the origin [padded_dim].
template <KvType kType, size_t kDim>
HWY_INLINE void round_key(uint32_t* to, const std::byte* row, const float* origin, size_t head_dim) {
  for (size_t d = 0; d < pad_dim<kDim>(head_dim); d += 32) {
    const __m512 low = _mm512_sub_ps(load_16<kType, kDim>(row, d, head_dim), _mm512_load_ps(origin + d));
    const __m512 high =
        _mm512_sub_ps(load_16<kType, kDim>(row, d + 16, head_dim), _mm512_load_ps(origin + d + 16));
    _mm512_store_si512(to + d / kPair, rounded(low, high));
  }
}

// to [padded_dim] = two values side by side; without the second, with zeros.
template <KvType kType, size_t kDim>
HWY_INLINE void round_values(uint32_t* to, const std::byte* first, const std::byte* second, size_t head_dim) {
  for (size_t d = 0; d < pad_dim<kDim>(head_dim); d += 16) {
    const __m512 low = load_16<kType, kDim>(first, d, head_dim);
    const __m512 high = second == nullptr ? _mm512_setzero_ps() : load_16<kType, kDim>(second, d, head_dim);
    _mm512_store_si512(to + d, pairs_of(low, high));
  }
}

// Rounds `count` keys and values from place `first` of the list on: keys [count, padded_dim / 2], values
// [count / 2 rounded up, padded_dim] pairs of keys.
template <KvType kType, size_t kDim>
inline void round_rows(uint32_t* keys, uint32_t* values, const RowList& from, const float* origin,
                       size_t first, size_t count) {
  const size_t dim = kDim != 0 ? kDim : from.kv->head_dim;
  const size_t padded = pad_dim<kDim>(dim);
  const size_t row_bytes = kv_row_bytes(kType, dim);
  const std::byte* key_rows = from.kv->key_row(from.kv_head, 0);
  const std::byte* value_rows = from.kv->value_row(from.kv_head, 0);
  for (size_t j = 0; j < count; j += kPair) {
    const size_t even = from.slot(first + j) * row_bytes;
    round_key<kType, kDim>(keys + j * padded / kPair, key_rows + even, origin, dim);
    const std::byte* second = nullptr;
    if (j + 1 < count) {
      const size_t odd = from.slot(first + j + 1) * row_bytes;
      round_key<kType, kDim>(keys + (j + 1) * padded / kPair, key_rows + odd, origin, dim);
      second = value_rows + odd;
    }
    round_values<kType, kDim>(values + j / kPair * padded, value_rows + even, second, dim);
  }
}

// Asks for the rows of a tile to come, a few between one stretch of sums and the next: selected rows lie
// anywhere, which no hardware prefetcher foresees, and asking for all at once waits for the few that a core
// can have on their way.
class RowsAhead {
 public:
  // Rows first .. first + count - 1 of the list, in `steps` steps.
  RowsAhead(const RowList& list, size_t first, size_t count, size_t steps)
      : list_(list),
        next_(first),
        end_(list.slots == nullptr ? first : first + count),
        step_((count + steps - 1) / steps),
        row_bytes_(kv_row_bytes(list.kv->type, list.kv->head_dim)) {}

  HWY_INLINE void step() {
    const size_t end = std::min(next_ + step_, end_);
    for (; next_ < end; ++next_) {
      const std::byte* key = list_.kv->key_row(list_.kv_head, list_.slots[next_]);
      const std::byte* value = list_.kv->value_row(list_.kv_head, list_.slots[next_]);
      for (size_t at = 0; at < row_bytes_; at += kAlignment) {
        prefetch_to_l2(key + at);
        prefetch_to_l2(value + at);
      }
    }
  }

 private:
  const RowList& list_;
  size_t next_;
  size_t end_;
  size_t step_;
  size_t row_bytes_;
};

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_POP_ATTRIBUTES
static_assert(true, "for the semicolon");
#endif  // HWY_AVX3_DL
#endif  // KEYSIEVE_SIMD_BFLOAT16_ROWS_INL_H
