#if defined(KEYSIEVE_SIMD_SMALL_GEMM_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_SMALL_GEMM_INL_H
#undef KEYSIEVE_SIMD_SMALL_GEMM_INL_H
#else
#define KEYSIEVE_SIMD_SMALL_GEMM_INL_H
#endif

#include "kernels/simd/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// c [rows, columns] (+)= a [rows, depth] b [depth, columns], all fp32 with row strides; columns a multiple of
// kLanes.
struct SmallGemm {
  float* c;
  size_t c_stride;
  const float* a;
  size_t a_stride;
  const float* b;
  size_t b_stride;
  size_t rows;
  size_t columns;
  size_t depth;
  bool accumulate;
};

// kRows x kVectors sums in registers: 6 x 4 of the 32 registers of AVX-512 and NEON, 6 x 2 of AVX2's 16.
inline constexpr size_t kGemmRows = 6;

template <size_t kRows, size_t kVectors>
HWY_INLINE void gemm_tile(const SmallGemm& g, size_t row, size_t column) {
  VF acc[kRows][kVectors];
  float* c = g.c + row * g.c_stride + column;
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) {
      acc[r][v] = g.accumulate ? hn::LoadU(F32(), c + r * g.c_stride + v * kLanes) : hn::Zero(F32());
    }
  }
  const float* a = g.a + row * g.a_stride;
  for (size_t k = 0; k < g.depth; ++k) {
    const float* b = g.b + k * g.b_stride + column;
    VF bv[kVectors];
    for (size_t v = 0; v < kVectors; ++v) bv[v] = hn::LoadU(F32(), b + v * kLanes);
    for (size_t r = 0; r < kRows; ++r) {
      const VF ar = hn::Set(F32(), a[r * g.a_stride + k]);
      for (size_t v = 0; v < kVectors; ++v) acc[r][v] = hn::MulAdd(ar, bv[v], acc[r][v]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) hn::StoreU(acc[r][v], F32(), c + r * g.c_stride + v * kLanes);
  }
}

template <size_t kVectors>
HWY_INLINE void gemm_columns(const SmallGemm& g, size_t column) {
  size_t row = 0;
  for (; row + kGemmRows <= g.rows; row += kGemmRows) gemm_tile<kGemmRows, kVectors>(g, row, column);
  for (; row + 3 <= g.rows; row += 3) gemm_tile<3, kVectors>(g, row, column);
  for (; row < g.rows; ++row) gemm_tile<1, kVectors>(g, row, column);
}

inline void small_gemm(const SmallGemm& g) {
  constexpr size_t kWide = kManyRegisters ? 4 : 2;
  size_t column = 0;
  for (; column + kWide * kLanes <= g.columns; column += kWide * kLanes) gemm_columns<kWide>(g, column);
  if constexpr (kWide == 4) {
    if (column + 3 * kLanes == g.columns) return gemm_columns<3>(g, column);
    if (column + 2 * kLanes == g.columns) return gemm_columns<2>(g, column);
  }
  for (; column < g.columns; column += kLanes) gemm_columns<1>(g, column);
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_SMALL_GEMM_INL_H
