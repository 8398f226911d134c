#if defined(KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H
#undef KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H
#else
#define KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H
#endif

#include <algorithm>
#include <cmath>

#include "kernels/simd/activations.h"
#include "kernels/simd/packed_affine.h"
#include "kernels/simd/vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// The codes of one column (of a group's 32) for kLanes of a panel's rows, from `row` on.
template <int kBits>
HWY_INLINE VI column_codes(const uint8_t* group, size_t column, size_t row) {
  const auto block = [&](size_t index, size_t shift, uint32_t mask) HWY_ATTR {
    const auto* from = reinterpret_cast<const uint32_t*>(group + index * kStepBytes + row * 4);
    const auto words = hn::ShiftRightSame(hn::LoadU(U32(), from), static_cast<int>(column % 4 * 8 + shift));
    return hn::BitCast(I32(), hn::And(words, hn::Set(U32(), mask)));
  };
  const size_t step = column / 4;
  if constexpr (kBits == 8) return block(step, 0, 255);
  VI codes = block(step % 4, step < 4 ? 0 : 4, 15);
  if constexpr (kBits == 5) codes = hn::Or(codes, hn::ShiftLeft<4>(block(4, step, 1)));
  if constexpr (kBits == 6) {
    codes = hn::Or(codes, hn::ShiftLeft<4>(block(4 + step / 4, 2 * (step % 4), 3)));
  }
  return codes;
}

// The products of activations that were not rounded with columns of kPanels neighbouring panels. Large values
// sit in the same few columns in nearly all tokens, so columns once unpacked are kept. Apart from the tiles
// and never inlined there: its loop slowed them even with nothing to add (docs/decisions/0018).
template <class Kind, size_t kPanels>
class ExactColumns {
 public:
  ExactColumns(const PackedAffine& weight, size_t first_panel) : weight_(weight), first_panel_(first_panel) {
    std::fill_n(kept_, kKept, UINT32_MAX);
  }

  // Adds value * column to out [tokens, stride] for tokens [first_token, first_token + tokens), whose other
  // products have just been stored there.
  HWY_NOINLINE void add(float* out, size_t stride, const ActivationView& x, size_t first_token,
                        size_t tokens) {
    const size_t first_row = first_panel_ * kPanelRows;
    const size_t rows = std::min(kPanels * kPanelRows, weight_.row_count - first_row);
    for (size_t t = first_token; t < first_token + tokens; ++t) {
      float values[kMostExactValues];
      const float* columns[kMostExactValues];
      for (size_t n = 0; n < x.exact; ++n) {
        values[n] = x.exact_values[t * x.exact + n] * weight_.unit;
        columns[n] = weights_of(n, x.exact_columns[t * x.exact + n]);
      }
      float* to = out + t * stride + first_row;
      size_t row = 0;
      for (; row + kPanelRows <= rows; row += kPanelRows) {
        VF sum[kVectorsPerPanel];
        for (size_t i = 0; i < kVectorsPerPanel; ++i) sum[i] = hn::LoadU(F32(), to + row + i * kLanes);
        for (size_t n = 0; n < x.exact; ++n) {
          const VF value = hn::Set(F32(), values[n]);
          for (size_t i = 0; i < kVectorsPerPanel; ++i) {
            sum[i] = hn::MulAdd(value, hn::Load(F32(), columns[n] + row + i * kLanes), sum[i]);
          }
        }
        for (size_t i = 0; i < kVectorsPerPanel; ++i) hn::StoreU(sum[i], F32(), to + row + i * kLanes);
      }
      for (; row < rows; ++row) {
        for (size_t n = 0; n < x.exact; ++n) to[row] = std::fma(values[n], columns[n][row], to[row]);
      }
    }
  }

 private:
  static constexpr size_t kWays = 4;
  static constexpr size_t kKept = kMostExactValues * kWays;

  // [kPanels * 16], less the matrix's unit. Valid until another column is asked for as a token's n-th.
  const float* weights_of(size_t n, uint32_t column) {
    const size_t slot = n * kWays + column % kWays;
    float* weights = weights_[slot];
    if (kept_[slot] == column) return weights;
    kept_[slot] = column;
    const VI zero = hn::Set(I32(), weight_.format.zero_point.value_or(0));
    const size_t at = column / static_cast<uint32_t>(weight_.format.group) * kPanelRows;
    for (size_t p = 0; p < std::min(kPanels, weight_.panels() - first_panel_); ++p) {
      const uint8_t* group =
          weight_.panel_codes(first_panel_ + p) + column / kGroup * group_code_bytes(Kind::kBits);
      for (size_t row = 0; row < kPanelRows; row += kLanes) {
        VI code = column_codes<Kind::kBits>(group, column % kGroup, row);
        if constexpr (Kind::kHasZeroPoint) code = hn::Sub(code, zero);
        const size_t i = at + row;
        VF v = hn::Mul(hn::ConvertTo(F32(), code), load_half(weight_.panel_scales(first_panel_ + p) + i));
        if constexpr (!Kind::kHasZeroPoint) {
          v = hn::Add(v, load_half(weight_.panel_biases(first_panel_ + p) + i));
        }
        hn::Store(v, F32(), weights + p * kPanelRows + row);
      }
    }
    return weights;
  }

  const PackedAffine& weight_;
  size_t first_panel_;
  uint32_t kept_[kKept];
  HWY_ALIGN float weights_[kKept][kPanels * kPanelRows];
};

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H
