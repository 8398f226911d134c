#if defined(KEYSIEVE_SIMD_QUANTIZE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_QUANTIZE_INL_H
#undef KEYSIEVE_SIMD_QUANTIZE_INL_H
#else
#define KEYSIEVE_SIMD_QUANTIZE_INL_H
#endif

#include <algorithm>
#include <cmath>

#include "kernels/simd/activations.h"
#include "kernels/simd/packed_affine.h"
#include "kernels/simd/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// Where one token's rounded activations go; see ActivationView.
struct QuantizedToken {
  int8_t* codes;  // [columns]
  float* scales;  // [columns / 32], and so the others
  float* scaled_sums;
  int32_t* sums;
  int32_t* first_sums;
};

inline constexpr size_t kGroupVectors = kGroup / kLanes;

// The codes of one group from its values and 127 / max|x|. Leaves sums of its first and its last 16 codes in
// the lanes of the two vectors.
HWY_INLINE void round_group(int8_t* codes, const float* x, VF inverse, VF& first, VF& last) {
  const hn::Rebind<int8_t, F32> d8;
  VI total[2] = {hn::Zero(I32()), hn::Zero(I32())};
  for (size_t i = 0; i < kGroupVectors; ++i) {
    const VI code = hn::NearestInt(hn::Mul(hn::LoadU(F32(), x + i * kLanes), inverse));
    hn::StoreU(hn::DemoteTo(d8, code), d8, codes + i * kLanes);
    VI& half = total[i / (kGroupVectors / 2)];
    half = hn::Add(half, code);
  }
  first = hn::ConvertTo(F32(), total[0]);
  last = hn::ConvertTo(F32(), total[1]);
}

HWY_INLINE VF largest_magnitudes(const float* x) {
  VF largest = hn::Zero(F32());
  for (size_t i = 0; i < kGroupVectors; ++i) {
    largest = hn::Max(largest, hn::Abs(hn::LoadU(F32(), x + i * kLanes)));
  }
  return largest;
}

HWY_INLINE VF inverse_of(VF top) {
  return hn::IfThenElseZero(hn::Gt(top, hn::Zero(F32())), hn::Div(hn::Set(F32(), 127.0f), top));
}

// kLanes groups from group g: lane i of every vector of sums is group g + i's, so that maxima, divisions and
// sums of codes are done for all of them at once.
template <size_t kShared>
inline void quantize_groups(const QuantizedToken& out, const float* x, size_t g) {
  constexpr size_t kQuads = kLanes / 4;
  x += g * kGroup;
  int8_t* codes = out.codes + g * kGroup;
  VF quads[2][kQuads];
  for (size_t q = 0; q < kQuads; ++q) {
    VF largest[4];
    for (size_t i = 0; i < 4; ++i) largest[i] = largest_magnitudes(x + (q * 4 + i) * kGroup);
    quads[0][q] = quad_of(largest, Larger());
  }
  VF top = sum_of_quads(quads[0], Larger());
  if constexpr (kShared == 2) top = hn::Max(top, hn::Reverse2(F32(), top));
  HWY_ALIGN float inverse[kLanes];
  hn::Store(inverse_of(top), F32(), inverse);
  for (size_t q = 0; q < kQuads; ++q) {
    VF first[4], last[4];
    for (size_t i = 0; i < 4; ++i) {
      const size_t group = q * 4 + i;
      round_group(codes + group * kGroup, x + group * kGroup, hn::Set(F32(), inverse[group]), first[i],
                  last[i]);
    }
    quads[0][q] = quad_of(first);
    quads[1][q] = quad_of(last);
  }
  const VF scale = hn::Div(top, hn::Set(F32(), 127.0f));
  const VF first = sum_of_quads(quads[0]);
  const VF sum = hn::Add(first, sum_of_quads(quads[1]));
  hn::StoreU(scale, F32(), out.scales + g);
  hn::StoreU(hn::Mul(scale, sum), F32(), out.scaled_sums + g);
  hn::StoreU(hn::ConvertTo(I32(), sum), I32(), out.sums + g);
  hn::StoreU(hn::ConvertTo(I32(), first), I32(), out.first_sums + g);
}

// The largest magnitude of the kShared groups x [kShared * 32].
template <size_t kShared>
HWY_INLINE VF top_of_groups(const float* x) {
  VF largest = largest_magnitudes(x);
  for (size_t i = 1; i < kShared; ++i) largest = hn::Max(largest, largest_magnitudes(x + i * kGroup));
  return hn::MaxOfLanes(F32(), largest);
}

// The kShared groups from g on, which share a scale, from their values x [kShared * 32].
template <size_t kShared>
inline void quantize_group(const QuantizedToken& out, const float* x, size_t g) {
  const VF top = top_of_groups<kShared>(x);
  for (size_t end = g + kShared; g < end; ++g, x += kGroup) {
    VF first, last;
    round_group(out.codes + g * kGroup, x, inverse_of(top), first, last);
    const float first_sum = hn::GetLane(hn::SumOfLanes(F32(), first));
    const float sum = first_sum + hn::GetLane(hn::SumOfLanes(F32(), last));
    out.scales[g] = hn::GetLane(top) / 127.0f;
    out.scaled_sums[g] = out.scales[g] * sum;
    out.sums[g] = static_cast<int32_t>(sum);
    out.first_sums[g] = static_cast<int32_t>(first_sum);
  }
}

// Rounds one token's x [columns] to int8, kShared groups of 32 by one scale: scale = max|x| / 127, code =
// round(x * 127 / max|x|).
template <size_t kShared>
inline void quantize_token(const QuantizedToken& out, const float* x, size_t columns) {
  const size_t groups = columns / kGroup;
  if (groups < kLanes) {
    for (size_t g = 0; g < groups; g += kShared) quantize_group<kShared>(out, x + g * kGroup, g);
    return;
  }
  for (size_t g = 0; g + kLanes <= groups; g += kLanes) quantize_groups<kShared>(out, x, g);
  // The last groups together with some that are done already: the same results once more.
  if (groups % kLanes != 0) quantize_groups<kShared>(out, x, groups - kLanes);
}

// Where the largest magnitude of x [kShared * 32] is; 0 where one is no number.
template <size_t kShared>
inline size_t largest_of_groups(const float* x) {
  const VF top = top_of_groups<kShared>(x);
  for (size_t i = 0; i < kShared * kGroup; i += kLanes) {
    const auto found = hn::FindFirstTrue(F32(), hn::Eq(hn::Abs(hn::LoadU(F32(), x + i)), top));
    if (found >= 0) return i + static_cast<size_t>(found);
  }
  return 0;
}

// Which of the scales [groups] is largest, the first of them where several are.
inline size_t coarsest_group(const float* scales, size_t groups) {
  if (groups < kLanes) return static_cast<size_t>(std::max_element(scales, scales + groups) - scales);
  VF top = hn::LoadU(F32(), scales + groups - kLanes);
  for (size_t g = 0; g + kLanes <= groups; g += kLanes) top = hn::Max(top, hn::LoadU(F32(), scales + g));
  top = hn::MaxOfLanes(F32(), top);
  for (size_t g = 0; g + kLanes <= groups; g += kLanes) {
    const auto found = hn::FindFirstTrue(F32(), hn::Eq(hn::LoadU(F32(), scales + g), top));
    if (found >= 0) return g + static_cast<size_t>(found);
  }
  return static_cast<size_t>(std::max_element(scales + groups / kLanes * kLanes, scales + groups) - scales);
}

// Of a token that is rounded: takes the largest value out of what shares the coarsest scale and rounds the
// rest of that again, `exact` times (at most kShared * kMostExactValues). values and at [exact]: what was
// taken out, and its column; each two of them in the order of their columns.
template <size_t kShared>
inline void take_out_largest(const QuantizedToken& out, const float* x, size_t columns, size_t exact,
                             float* values, uint32_t* at) {
  constexpr size_t kColumns = kShared * kGroup;
  HWY_ALIGN float rest[kMostExactValues * kShared][kColumns];  // groups less what was taken out of them
  size_t group_of[kMostExactValues * kShared];
  size_t changed = 0;
  for (size_t n = 0; n < exact; ++n) {
    const size_t g = coarsest_group(out.scales, columns / kGroup) / kShared * kShared;
    const size_t known = static_cast<size_t>(std::find(group_of, group_of + changed, g) - group_of);
    float* group = rest[known];
    if (known == changed) {
      group_of[changed++] = g;
      std::copy_n(x + g * kGroup, kColumns, group);
    }
    const size_t largest = largest_of_groups<kShared>(group);
    values[n] = group[largest];
    at[n] = static_cast<uint32_t>(g * kGroup + largest);
    group[largest] = 0.0f;
    quantize_group<kShared>(out, group, g);
    if (n % 2 == 1 && at[n - 1] > at[n]) {
      std::swap(at[n - 1], at[n]);
      std::swap(values[n - 1], values[n]);
    }
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_QUANTIZE_INL_H
