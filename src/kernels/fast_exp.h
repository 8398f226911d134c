#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace keysieve {

// exp(x) for x <= 88 as every kernel family computes it, operation for operation, so that index scores are
// bitwise equal on all of them. x = n ln 2 + r with |r| <= ln(2)/2; e^r by a degree-5 Taylor polynomial with
// the last two coefficients refitted; relative error below 2.5e-7. Below -87 the result is flushed to e^-87
// = 1.6e-38.
struct FastExp {
  static constexpr float kLowest = -87.0f;
  static constexpr float kLog2E = 1.44269504088896341f;
  static constexpr float kLn2High = 0.693359375f;  // 9 significant bits: n * kLn2High is exact
  static constexpr float kLn2Low = -2.12194440e-4f;
  // Cephes' expf polynomial: e^r = 1 + r + r^2 * p(r).
  static constexpr float kP0 = 1.9875691500e-4f;
  static constexpr float kP1 = 1.3981999507e-3f;
  static constexpr float kP2 = 8.3334519073e-3f;
  static constexpr float kP3 = 4.1665795894e-2f;
  static constexpr float kP4 = 1.6666665459e-1f;
  static constexpr float kP5 = 5.0000001201e-1f;
};

inline float fast_exp(float x) {
  x = x < FastExp::kLowest ? FastExp::kLowest : x;
  const float n = std::nearbyint(x * FastExp::kLog2E);
  float r = std::fma(-n, FastExp::kLn2High, x);
  r = std::fma(-n, FastExp::kLn2Low, r);
  float p = FastExp::kP0;
  p = std::fma(p, r, FastExp::kP1);
  p = std::fma(p, r, FastExp::kP2);
  p = std::fma(p, r, FastExp::kP3);
  p = std::fma(p, r, FastExp::kP4);
  p = std::fma(p, r, FastExp::kP5);
  p = std::fma(p, r * r, r) + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

// e^x as scores of rounded index keys use it, on all families alike: x log2(e) + 127 in fixed point IS the
// bit pattern of about e^x (Schraudolph, "A fast, compact approximation of the exponential function", 1999):
// exact at powers of two, between them a straight line, at most 6.2% above. Order within a head is untouched,
// and 6% between heads is 0.06 in a score that a 4-bit key moves by more. 3 vector operations instead of 17.
struct IndexExp {
  static constexpr float kScale = 12102203.2f;   // log2(e) * 2^23
  static constexpr float kBias = 1065353216.0f;  // 127 * 2^23: the bits of 1.0f
  static constexpr float kReach = 50.0f;
};

// e^x for scores relative to `top`, which need not be their maximum: any score near it will do, because a sum
// of softmax numerators is finite and not lost for maxima within e^50 of 1. So the first 16 scores give `top`
// and one pass does; where this says no, a second pass with the true maximum does.
inline bool index_exp_reaches(float top, float largest, float unit) {
  return std::fabs((largest - top) * unit) <= IndexExp::kReach;
}

// e^(unit * (raw - top)), where `factor` is unit * IndexExp::kScale and `shift` is index_exp_shift(top,
// factor). Below e^-88 the result is 0, and so it is where raw is -inf or NaN; raw may not
// exceed top by more than kReach.
inline float index_exp_shift(float top, float factor) { return std::fma(-top, factor, IndexExp::kBias); }
inline float index_exp(float raw, float factor, float shift) {
  const float t = std::fma(raw, factor, shift);
  return std::bit_cast<float>(static_cast<int32_t>(t > 0.0f ? t : 0.0f));
}

}  // namespace keysieve
