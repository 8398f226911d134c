#if defined(KEYSIEVE_SIMD_HEAD_MAPS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_HEAD_MAPS_INL_H
#undef KEYSIEVE_SIMD_HEAD_MAPS_INL_H
#else
#define KEYSIEVE_SIMD_HEAD_MAPS_INL_H
#endif

#include <cmath>

#include "kernels/simd/small_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// Rows that share a map are one small product: with few tokens the heads of a token, else one head of all
// tokens.
inline void map_heads_simd(const HeadMapArgs& args) {
  const size_t whole = args.dim / kLanes * kLanes;
  const auto product = [&](size_t token, size_t head, size_t rows, size_t heads_between) HWY_ATTR {
    const size_t first = token * args.heads + head;
    const float* map = args.maps + head / args.heads_per_map * args.head_dim * args.dim;
    const float* x = args.x + first * args.head_dim;
    float* out = args.out + first * args.dim;
    small_gemm({out, heads_between * args.dim, x, heads_between * args.head_dim, map, args.dim, rows, whole,
                args.head_dim, false});
    for (size_t row = 0; whole < args.dim && row < rows; ++row) {
      for (size_t i = whole; i < args.dim; ++i) {
        float sum = 0.0f;
        for (size_t j = 0; j < args.head_dim; ++j) {
          sum = std::fma(x[row * heads_between * args.head_dim + j], map[j * args.dim + i], sum);
        }
        out[row * heads_between * args.dim + i] = sum;
      }
    }
  };
  if (args.tokens < args.heads_per_map) {
    for (size_t token = 0; token < args.tokens; ++token) {
      for (size_t head = 0; head < args.heads; head += args.heads_per_map) {
        product(token, head, args.heads_per_map, 1);
      }
    }
  } else {
    for (size_t head = 0; head < args.heads; ++head) product(0, head, args.tokens, args.heads);
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_HEAD_MAPS_INL_H
