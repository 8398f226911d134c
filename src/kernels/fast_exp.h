#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace keysieve {

// exp(x) for x <= 0 as every kernel family computes it, operation for operation, so that index scores are
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

// e^x for x <= 0 as index scores use it, on all families alike: 2^t = 2^n * 2^r with t = x log2(e), n =
// round(t) and a cubic for 2^r (minimax in relative error on |r| <= 1/2: 7.5e-5, against 4e-3 of a key
// rounded to int8). 10 vector operations instead of the 17 of fast_exp. Below t = -126 the result is flushed
// to about 2^-126.
struct IndexExp {
  static constexpr float kLowest = -126.0f;
  static constexpr float kLog2E = 1.44269504088896341f;
  static constexpr float kC0 = 0.999928068f;
  static constexpr float kC1 = 0.693260991f;
  static constexpr float kC2 = 0.242611213f;
  static constexpr float kC3 = 0.055171684f;
};

// `shift` is -max * IndexExp::kLog2E: the result is e^(score - max).
inline float index_exp(float score, float shift) {
  float t = std::fma(score, IndexExp::kLog2E, shift);
  t = t < IndexExp::kLowest ? IndexExp::kLowest : t;
  const float n = std::nearbyint(t);
  const float r = t - n;
  float p = std::fma(IndexExp::kC3, r, IndexExp::kC2);
  p = std::fma(p, r, IndexExp::kC1);
  p = std::fma(p, r, IndexExp::kC0);
  // Adding n to the exponent field multiplies by 2^n; p is within 0.7 .. 1.42, so the field stays above 0.
  return std::bit_cast<float>(std::bit_cast<int32_t>(p) + static_cast<int32_t>(n) * (1 << 23));
}

}  // namespace keysieve
