#if defined(KEYSIEVE_SIMD_QUANTIZE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_QUANTIZE_INL_H
#undef KEYSIEVE_SIMD_QUANTIZE_INL_H
#else
#define KEYSIEVE_SIMD_QUANTIZE_INL_H
#endif

#include "kernels/simd/activations.h"
#include "kernels/simd/packed_affine.h"
#include "kernels/simd/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// Rounds one token's x [columns] to int8 by groups of 32: scale = max|x| / 127, code = round(x * 127 /
// max|x|). codes [columns], scales [columns / 32], sums [columns / 16].
inline void quantize_token(int8_t* codes, float* scales, int32_t* sums, const float* x, size_t columns) {
  constexpr size_t kVectors = kGroup / kLanes;  // 2 or 4
  const hn::Rebind<int8_t, F32> d8;
  for (size_t g = 0; g < columns / kGroup; ++g) {
    VF v[kVectors];
    VF largest = hn::Zero(F32());
    for (size_t i = 0; i < kVectors; ++i) {
      v[i] = hn::LoadU(F32(), x + g * kGroup + i * kLanes);
      largest = hn::Max(largest, hn::Abs(v[i]));
    }
    const float top = hn::GetLane(hn::MaxOfLanes(F32(), largest));
    scales[g] = top / 127.0f;
    const VF inverse = hn::Set(F32(), top > 0.0f ? 127.0f / top : 0.0f);
    VI total[2] = {hn::Zero(I32()), hn::Zero(I32())};
    for (size_t i = 0; i < kVectors; ++i) {
      const VI code = hn::NearestInt(hn::Mul(v[i], inverse));
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + g * kGroup + i * kLanes);
      VI& half = total[i / (kVectors / 2)];
      half = hn::Add(half, code);
    }
    sums[2 * g] = hn::GetLane(hn::SumOfLanes(I32(), total[0]));
    sums[2 * g + 1] = hn::GetLane(hn::SumOfLanes(I32(), total[1]));
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_QUANTIZE_INL_H
