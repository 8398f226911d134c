#if defined(KEYSIEVE_SIMD_PLAIN_MATMUL_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_PLAIN_MATMUL_INL_H
#undef KEYSIEVE_SIMD_PLAIN_MATMUL_INL_H
#else
#define KEYSIEVE_SIMD_PLAIN_MATMUL_INL_H
#endif

#include <cstring>

#include "kernels/simd/activations.h"
#include "kernels/simd/packed_affine.h"
#include "kernels/simd/vectors-inl.h"

// Products with unquantised weights: fp32 activations, weights widened to fp32 in registers, fp32 sums.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

template <DType kType>
HWY_INLINE VF load_weight(const std::byte* panel, size_t index) {
  if constexpr (kType == DType::f32) {
    return hn::LoadU(F32(), reinterpret_cast<const float*>(panel) + index);
  } else if constexpr (kType == DType::f16) {
    return load_half(reinterpret_cast<const Half*>(panel) + index);
  } else {
    return load_bfloat16(reinterpret_cast<const BFloat16*>(panel) + index);
  }
}

// kTokens tokens x one panel of 16 rows. Four chains per output over column % 4 hide the latency of a
// multiply-add (4 cycles) when there is one token; their order does not depend on kTokens.
template <DType kType, size_t kTokens>
inline void plain_tile(const RowOutput& to, size_t first_token, const PackedPlain& w, size_t panel,
                       const float* x) {
  constexpr size_t kChains = 4;
  const std::byte* weights = w.panel(panel);
  const size_t columns = w.column_count;
  x += first_token * columns;
  VF acc[kTokens][kChains][kVectorsPerPanel];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t c = 0; c < kChains; ++c) {
      for (size_t i = 0; i < kVectorsPerPanel; ++i) acc[t][c][i] = hn::Zero(F32());
    }
  }
  size_t column = 0;
  for (; column + kChains <= columns; column += kChains) {
    for (size_t c = 0; c < kChains; ++c) {
      for (size_t i = 0; i < kVectorsPerPanel; ++i) {
        const VF weight = load_weight<kType>(weights, (column + c) * kPanelRows + i * kLanes);
        for (size_t t = 0; t < kTokens; ++t) {
          acc[t][c][i] = hn::MulAdd(weight, hn::Set(F32(), x[t * columns + column + c]), acc[t][c][i]);
        }
      }
    }
  }
  for (; column < columns; ++column) {
    for (size_t i = 0; i < kVectorsPerPanel; ++i) {
      const VF weight = load_weight<kType>(weights, column * kPanelRows + i * kLanes);
      for (size_t t = 0; t < kTokens; ++t) {
        acc[t][0][i] = hn::MulAdd(weight, hn::Set(F32(), x[t * columns + column]), acc[t][0][i]);
      }
    }
  }
  const size_t row = panel * kPanelRows;
  const size_t rows = std::min(kPanelRows, w.row_count - row);
  for (size_t t = 0; t < kTokens; ++t) {
    HWY_ALIGN float all[kPanelRows];
    for (size_t i = 0; i < kVectorsPerPanel; ++i) {
      const VF sum = hn::Add(hn::Add(acc[t][0][i], acc[t][1][i]), hn::Add(acc[t][2][i], acc[t][3][i]));
      hn::Store(sum, F32(), all + i * kLanes);
    }
    float* out = to.at(first_token + t, row);
    for (size_t i = 0; i < rows; ++i) out[i] = to.add ? out[i] + all[i] : all[i];
  }
}

template <DType kType>
inline void plain_panels(const RowOutput& to, const PackedPlain& w, size_t first_panel, size_t last_panel,
                         const float* x, size_t tokens) {
  // x 4 chains x 1, 2 or 4 vectors of the 32 or 16 registers
  constexpr size_t kTokens = kVectorsPerPanel == 1 ? 6 : kVectorsPerPanel == 2 ? 2 : 1;
  for (size_t panel = first_panel; panel < last_panel; ++panel) {
    size_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens) plain_tile<kType, kTokens>(to, t, w, panel, x);
    for (; t < tokens; ++t) plain_tile<kType, 1>(to, t, w, panel, x);
  }
}

// Rows 16 * first_panel .. 16 * last_panel - 1 of w x. x [tokens, columns].
inline void plain_matmul(const RowOutput& to, const PackedPlain& w, size_t first_panel, size_t last_panel,
                         const float* x, size_t tokens) {
  switch (w.dtype) {
    case DType::f16:
      return plain_panels<DType::f16>(to, w, first_panel, last_panel, x, tokens);
    case DType::bf16:
      return plain_panels<DType::bf16>(to, w, first_panel, last_panel, x, tokens);
    default:
      return plain_panels<DType::f32>(to, w, first_panel, last_panel, x, tokens);
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_PLAIN_MATMUL_INL_H
