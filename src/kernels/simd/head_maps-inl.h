#if defined(KEYSIEVE_SIMD_HEAD_MAPS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_HEAD_MAPS_INL_H
#undef KEYSIEVE_SIMD_HEAD_MAPS_INL_H
#else
#define KEYSIEVE_SIMD_HEAD_MAPS_INL_H
#endif

#include "kernels/simd/small_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// The last columns, fewer than a vector, of kRows rows; sums in the order of the scalar twin.
template <size_t kRows>
inline void map_last_columns(const SmallGemm& g, size_t row, size_t columns) {
  VF sum[kRows];
  for (VF& s : sum) s = hn::Zero(F32());
  for (size_t j = 0; j < g.depth; ++j) {
    const VF map = load_first(g.b + j * g.b_stride, columns);
    for (size_t r = 0; r < kRows; ++r) {
      sum[r] = hn::MulAdd(hn::Set(F32(), g.a[(row + r) * g.a_stride + j]), map, sum[r]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) store_first(sum[r], g.c + (row + r) * g.c_stride, columns);
}

// Rows that share a map are one small product: with few tokens the heads of a token, else one head of all
// tokens.
inline void map_heads_simd(const HeadMapArgs& args) {
  const size_t whole = args.dim / kLanes * kLanes;
  const auto product = [&](size_t token, size_t head, size_t rows, size_t heads_between) HWY_ATTR {
    const size_t first = token * args.heads + head;
    const float* map = args.maps + head / args.heads_per_map * args.head_dim * args.dim;
    const float* x = args.x + first * args.head_dim;
    float* out = args.out + first * args.dim;
    SmallGemm g{out,
                heads_between * args.dim,
                x,
                heads_between * args.head_dim,
                map,
                args.dim,
                rows,
                whole,
                args.head_dim,
                false};
    small_gemm(g);
    if (whole == args.dim) return;
    g.c += whole;
    g.b += whole;
    size_t row = 0;
    for (; row + 4 <= rows; row += 4) map_last_columns<4>(g, row, args.dim - whole);
    for (; row < rows; ++row) map_last_columns<1>(g, row, args.dim - whole);
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
