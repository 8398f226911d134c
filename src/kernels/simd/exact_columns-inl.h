#if defined(KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H
#undef KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H
#else
#define KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/simd/activations.h"
#include "kernels/simd/packed_affine.h"
#include "kernels/simd/unpacked-inl.h"
#include "kernels/simd/vectors-inl.h"

// Products of the activations that were not rounded (docs/decisions/0018): single columns of the weights.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// The codes of one column (of a group's 32) for kLanes of a panel's rows, from `row` on.
template <class Kind>
HWY_INLINE VI column_codes(const uint8_t* group, size_t column, size_t row) {
  constexpr int kBits = Kind::kStoredBits;
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
  if constexpr (Kind::kNonlinear) {
    static constexpr std::array<int32_t, 16> kTable = [] {
      std::array<int32_t, 16> table{};
      for (size_t i = 0; i < table.size(); ++i) table[i] = kNonlinearCodes[i];
      return table;
    }();
    codes = hn::GatherIndex(I32(), kTable.data(), codes);
  }
  return codes;
}

// Columns of panels straight from their packed codes, for decode.
template <class Kind>
class PackedColumns {
 public:
  struct Column {
    const uint8_t* codes;  // of its group in the first panel, and so the others
    size_t index;          // within the group
    size_t scales_at;      // its scales (and biases) of the first panel [16]
  };

  PackedColumns(const PackedAffine& weight, size_t first_panel)
      : codes_(weight.panel_codes(first_panel)),
        scales_(weight.panel_scales(first_panel)),
        biases_(weight.panel_biases(first_panel)),
        code_stride_(weight.groups() * Kind::kCodeBytes),
        scale_stride_(weight.scale_groups() * kPanelRows),
        scale_columns_(static_cast<uint32_t>(weight.format.group)),
        zero_(hn::Set(I32(), weight.format.zero_point.value_or(0))) {}

  HWY_INLINE Column column(uint32_t index) const {
    const uint32_t group = index / kGroup;
    // A division takes as long as the rest of a column's work.
    const size_t at = (scale_columns_ == kGroup ? group : index / scale_columns_) * kPanelRows;
    return {codes_ + group * Kind::kCodeBytes, index % kGroup, at};
  }

  HWY_INLINE VF weights(const Column& c, size_t panel, size_t row) const {
    const VI code = column_codes<Kind>(c.codes + panel * code_stride_, c.index, row);
    const size_t at = c.scales_at + panel * scale_stride_ + row;
    const VF scale = load_half(scales_ + at);
    if constexpr (Kind::kHasZeroPoint) return hn::Mul(hn::ConvertTo(F32(), hn::Sub(code, zero_)), scale);
    return hn::MulAdd(hn::ConvertTo(F32(), code), scale, load_half(biases_ + at));
  }

 private:
  const uint8_t* codes_;
  const Half* scales_;
  const Half* biases_;  // null with a zero point
  size_t code_stride_;  // between panels
  size_t scale_stride_;
  uint32_t scale_columns_;
  VI zero_;
};

// Columns of panels that were unpacked for prefill. The same operations: a token's result does not depend on
// how many came with it.
template <class Kind, size_t kPanels>
class UnpackedColumns {
 public:
  using Layout = Unpacked<Kind, kPanels>;
  struct Column {
    const std::byte* codes;  // of its step in the first panel
    const std::byte* scales;
    const std::byte* biases;
    int shift;  // of its byte in a row's four
  };

  UnpackedColumns(const PackedAffine& weight, const std::byte* unpacked)
      : unpacked_(unpacked), zero_(hn::Set(I32(), weight.format.zero_point.value_or(0))) {}

  HWY_INLINE Column column(uint32_t index) const {
    constexpr size_t kUnitColumns = Kind::kUnitGroups * kGroup;
    const std::byte* unit = unpacked_ + index / kUnitColumns * Layout::kUnitBytes;
    const size_t step = index % kUnitColumns / 4;
    return {unit + Layout::code_at(step, 0),
            unit + Layout::scale_at(step / static_cast<size_t>(Kind::kStepsPerRun), 0),
            unit + Layout::bias_at(0), static_cast<int>(index % 4 * 8)};
  }

  HWY_INLINE VF weights(const Column& c, size_t panel, size_t row) const {
    const auto* words = reinterpret_cast<const uint32_t*>(c.codes + panel * kStepBytes + row * 4);
    const VI code = hn::BitCast(
        I32(), hn::And(hn::ShiftRightSame(hn::LoadU(U32(), words), c.shift), hn::Set(U32(), 255)));
    const VF scale = vector_of(c.scales, panel, row);
    if constexpr (Kind::kHasZeroPoint) return hn::Mul(hn::ConvertTo(F32(), hn::Sub(code, zero_)), scale);
    return hn::MulAdd(hn::ConvertTo(F32(), code), scale, vector_of(c.biases, panel, row));
  }

 private:
  static HWY_INLINE VF vector_of(const std::byte* vectors, size_t panel, size_t row) {
    return hn::LoadU(F32(), reinterpret_cast<const float*>(vectors + panel * Layout::kVectorBytes) + row);
  }

  const std::byte* unpacked_;
  VI zero_;
};

// Prefill adds exact columns after so many tokens' tiles, decode after so many panels: while results and
// codes are still in the nearest caches, and rarely enough that finding a column costs little.
inline constexpr size_t kExactTokens = 24;
inline constexpr size_t kExactPanels = 8;

// A quantised product, and of its weight what storing takes.
struct AffineOutput {
  RowOutput to;
  float unit;
  size_t rows;
};

// Adds value * column to the results of tokens [first_token, end_token) for neighbouring panels, the first of
// which `columns` starts at, two values at a time: so many a token has. Apart from the tiles and never
// inlined there: its loop slowed them even with nothing to add.
template <class Columns>
HWY_NOINLINE void add_exact(const AffineOutput& output, size_t first_panel, size_t panels,
                            const Columns& columns, const ActivationView& x, size_t first_token,
                            size_t end_token) {
  const size_t first_row = first_panel * kPanelRows;
  for (size_t n = 0; n < x.exact; n += 2) {
    for (size_t t = first_token; t < end_token; ++t) {
      const size_t at = t * x.exact + n;
      const auto column0 = columns.column(x.exact_columns[at]);
      const auto column1 = columns.column(x.exact_columns[at + 1]);
      const VF value0 = hn::Set(F32(), x.exact_values[at] * output.unit);
      const VF value1 = hn::Set(F32(), x.exact_values[at + 1] * output.unit);
      const auto add = [&](float* sums, size_t panel) HWY_ATTR {
        for (size_t row = 0; row < kPanelRows; row += kLanes) {
          const VF sum =
              hn::MulAdd(value0, columns.weights(column0, panel, row), hn::LoadU(F32(), sums + row));
          hn::StoreU(hn::MulAdd(value1, columns.weights(column1, panel, row), sum), F32(), sums + row);
        }
      };
      float* out = output.to.at(t, first_row);
      const size_t whole = std::min(panels, (output.rows - first_row) / kPanelRows);
      for (size_t panel = 0; panel < whole; ++panel) add(out + panel * kPanelRows, panel);
      if (whole == panels) continue;
      float rest[kPanelRows] = {};  // the last panel of a matrix whose row count is no multiple of 16
      out += whole * kPanelRows;
      const size_t rows = output.rows - first_row - whole * kPanelRows;
      std::copy_n(out, rows, rest);
      add(rest, whole);
      std::copy_n(rest, rows, out);
    }
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_EXACT_COLUMNS_INL_H
