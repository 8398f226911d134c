#if defined(KEYSIEVE_SIMD_ELEMENTWISE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_ELEMENTWISE_INL_H
#undef KEYSIEVE_SIMD_ELEMENTWISE_INL_H
#else
#define KEYSIEVE_SIMD_ELEMENTWISE_INL_H
#endif

#include <cmath>

#include "kernels/simd/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

HWY_INLINE float sum_of_squares(const float* x, size_t count) {
  VF sums[4] = {hn::Zero(F32()), hn::Zero(F32()), hn::Zero(F32()), hn::Zero(F32())};
  size_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (size_t j = 0; j < 4; ++j) {
      const VF v = hn::LoadU(F32(), x + i + j * kLanes);
      sums[j] = hn::MulAdd(v, v, sums[j]);
    }
  }
  float sum =
      hn::GetLane(hn::SumOfLanes(F32(), hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]))));
  for (; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

inline void rms_norm_rows(float* out, const float* x, const float* weight, float eps, size_t rows,
                          size_t dim) {
  for (size_t r = 0; r < rows; ++r) {
    const float* in = x + r * dim;
    float* to = out + r * dim;
    const float factor = 1.0f / std::sqrt(sum_of_squares(in, dim) / static_cast<float>(dim) + eps);
    size_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) {
      const VF scaled = hn::Mul(hn::LoadU(F32(), in + i), hn::Set(F32(), factor));
      hn::StoreU(hn::Mul(scaled, hn::LoadU(F32(), weight + i)), F32(), to + i);
    }
    for (; i < dim; ++i) to[i] = in[i] * factor * weight[i];
  }
}

// Rotates one head by half-split pairs (i, i + pairs); cosine, sine [pairs].
HWY_INLINE void rotate_head(float* head, const float* cosine, const float* sine, size_t pairs) {
  size_t i = 0;
  for (; i + kLanes <= pairs; i += kLanes) {
    const VF a = hn::LoadU(F32(), head + i);
    const VF b = hn::LoadU(F32(), head + i + pairs);
    const VF c = hn::LoadU(F32(), cosine + i);
    const VF s = hn::LoadU(F32(), sine + i);
    hn::StoreU(hn::NegMulAdd(b, s, hn::Mul(a, c)), F32(), head + i);
    hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), F32(), head + i + pairs);
  }
  for (; i < pairs; ++i) {
    const float a = head[i];
    const float b = head[i + pairs];
    head[i] = a * cosine[i] - b * sine[i];
    head[i + pairs] = b * cosine[i] + a * sine[i];
  }
}

inline void swiglu_values(float* out, const float* gate, const float* up, size_t count) {
  const VF one = hn::Set(F32(), 1.0f);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VF g = hn::LoadU(F32(), gate + i);
    // silu(g) = g / (1 + e^-g), with the exponential always of a negative number: for g < 0, g e^g / (1 +
    // e^g).
    const VF e = exp_of(hn::Neg(hn::Abs(g)));
    const VF numerator = hn::IfThenElse(hn::Lt(g, hn::Zero(F32())), e, one);
    const VF silu = hn::Div(hn::Mul(g, numerator), hn::Add(one, e));
    hn::StoreU(hn::Mul(silu, hn::LoadU(F32(), up + i)), F32(), out + i);
  }
  for (; i < count; ++i) {
    const float e = fast_exp(-std::fabs(gate[i]));
    out[i] = gate[i] * (gate[i] < 0.0f ? e : 1.0f) / (1.0f + e) * up[i];
  }
}

inline void add_values(float* out, const float* x, size_t count) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(hn::Add(hn::LoadU(F32(), out + i), hn::LoadU(F32(), x + i)), F32(), out + i);
  }
  for (; i < count; ++i) out[i] += x[i];
}

inline void store_halves(Half* out, const float* x, size_t count) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_half(out + i, hn::LoadU(F32(), x + i));
  for (; i < count; ++i) out[i] = to_half(x[i]);
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_ELEMENTWISE_INL_H
