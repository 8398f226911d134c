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

// Where one token's rounded activations go; see ActivationView.
struct QuantizedToken {
  int8_t* codes;  // [columns]
  float* scales;  // [columns / 32], and so the others
  float* scaled_sums;
  int32_t* sums;
  int32_t* first_sums;
};

// Rounds one token's x [columns] to int8 by groups of 32: scale = max|x| / 127, code = round(x * 127 /
// max|x|).
inline void quantize_token(const QuantizedToken& out, const float* x, size_t columns) {
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
    const float scale = top / 127.0f;
    const VF inverse = hn::Set(F32(), top > 0.0f ? 127.0f / top : 0.0f);
    VI total[2] = {hn::Zero(I32()), hn::Zero(I32())};
    for (size_t i = 0; i < kVectors; ++i) {
      const VI code = hn::NearestInt(hn::Mul(v[i], inverse));
      hn::StoreU(hn::DemoteTo(d8, code), d8, out.codes + g * kGroup + i * kLanes);
      VI& half = total[i / (kVectors / 2)];
      half = hn::Add(half, code);
    }
    const int32_t first = hn::GetLane(hn::SumOfLanes(I32(), total[0]));
    const int32_t sum = hn::GetLane(hn::SumOfLanes(I32(), hn::Add(total[0], total[1])));
    out.scales[g] = scale;
    out.scaled_sums[g] = scale * static_cast<float>(sum);
    out.sums[g] = sum;
    out.first_sums[g] = first;
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_QUANTIZE_INL_H
