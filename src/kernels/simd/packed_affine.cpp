#include "kernels/simd/packed_affine.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

namespace keysieve::simd {
namespace {

// Reads the 16 rows of one panel; rows past the end are left zero.
struct PanelRows {
  PanelRows(size_t columns, size_t scale_groups)
      : codes(kPanelRows * columns), scales(kPanelRows * scale_groups), biases(kPanelRows * scale_groups) {}
  std::vector<uint8_t> codes;  // [16, columns]
  std::vector<float> scales;   // [16, scale_groups]
  std::vector<float> biases;   // [16, scale_groups]
};

size_t source_row(std::span<const uint32_t> row_order, size_t row) {
  return row_order.empty() ? row : row_order[row];
}

void pack_low_plane(uint8_t* out, const uint8_t* codes, size_t columns, size_t group) {
  for (size_t block = 0; block < kSteps / 2; ++block) {
    for (size_t row = 0; row < kPanelRows; ++row) {
      const uint8_t* from = codes + row * columns + group * kGroup + block * 4;
      for (size_t c = 0; c < 4; ++c) {
        const unsigned low = from[c] & 15u;
        const unsigned high = from[c + kGroup / 2] & 15u;
        out[block * kStepBytes + row * 4 + c] = static_cast<uint8_t>(low | high << 4);
      }
    }
  }
}

void pack_high_plane(uint8_t* out, const uint8_t* codes, size_t columns, size_t group, int bits) {
  const size_t width = static_cast<size_t>(bits) - 4;  // 1 or 2 bits a code
  const size_t steps_per_block = width == 1 ? 8 : 4;
  std::memset(out, 0, width * kStepBytes);
  for (size_t step = 0; step < kSteps; ++step) {
    uint8_t* block = out + step / steps_per_block * kStepBytes;
    for (size_t row = 0; row < kPanelRows; ++row) {
      const uint8_t* from = codes + row * columns + group * kGroup + step * 4;
      for (size_t c = 0; c < 4; ++c) {
        block[row * 4 + c] |= static_cast<uint8_t>((from[c] >> 4) << (width * (step % steps_per_block)));
      }
    }
  }
}

void pack_whole_codes(uint8_t* out, const uint8_t* codes, size_t columns, size_t group) {
  for (size_t step = 0; step < kSteps; ++step) {
    for (size_t row = 0; row < kPanelRows; ++row) {
      std::memcpy(out + step * kStepBytes + row * 4, codes + row * columns + group * kGroup + step * 4, 4);
    }
  }
}

// The power of two that brings the largest magnitude just under 2^15: smaller ones then lose nothing that
// matters, 2^-39 of the largest being the finest step fp16 has left.
float choose_unit(std::span<const float> scales, std::span<const float> biases) {
  float top = 0.0f;
  for (const float scale : scales) top = std::max(top, std::fabs(scale));
  for (const float bias : biases) top = std::max(top, std::fabs(bias));
  if (!(top > 0.0f) || !std::isfinite(top)) return 1.0f;
  return std::ldexp(1.0f, std::ilogb(top) - 14);
}

// Codes to their places in kNonlinearCodes.
void to_places(std::span<uint8_t> codes) {
  std::array<uint8_t, 256> places{};
  for (size_t i = 0; i < kNonlinearCodes.size(); ++i) places[kNonlinearCodes[i]] = static_cast<uint8_t>(i);
  for (uint8_t& code : codes) code = places[code];
}

// One panel's codes from [16, columns] into the planes of PackedAffine.
void pack_codes(uint8_t* out, const uint8_t* codes, size_t columns, int bits) {
  for (size_t g = 0; g < columns / kGroup; ++g, out += group_code_bytes(bits)) {
    if (bits == 8) {
      pack_whole_codes(out, codes, columns, g);
      continue;
    }
    pack_low_plane(out, codes, columns, g);
    if (bits > 4) pack_high_plane(out + kSteps / 2 * kStepBytes, codes, columns, g, bits);
  }
}

AlignedArray<Half> to_fp16(const AlignedArray<float>& values, float factor, Arena* arena) {
  AlignedArray<Half> halves(values.size(), arena);
  for (size_t i = 0; i < values.size(); ++i) halves[i] = to_half(values[i] * factor);
  return halves;
}

// Unmapping interrupts every core, to make it forget the pages. Panel by panel that took a third of the time
// to load, so a megabyte of the file goes at a time; what another thread still reads of it comes back by
// itself.
size_t panels_released_at_once(size_t panel_bytes) {
  constexpr size_t kBytes = size_t{1} << 20;
  return std::max<size_t>(1, kBytes / panel_bytes);
}

std::unique_ptr<PackedMatrix> pack_affine(const MatrixSource& source, std::span<const uint32_t> row_order,
                                          const Threads& threads, Arena* arena) {
  auto packed = std::make_unique<PackedAffine>();
  packed->row_count = source.rows();
  packed->column_count = source.columns();
  packed->format = *source.affine();
  const size_t columns = source.columns();
  const size_t groups = packed->groups();
  const size_t scale_groups = packed->scale_groups();
  const int bits = stored_bits(packed->format);
  const size_t code_bytes = group_code_bytes(bits);
  packed->codes = AlignedArray<uint8_t>(packed->panels() * groups * code_bytes, arena);
  // The f32 scales of one matrix live until its unit is known: at most 0.25 bytes a weight, for this matrix
  // only.
  AlignedArray<float> scales(packed->panels() * scale_groups * kPanelRows);
  AlignedArray<float> biases(packed->format.zero_point ? 0 : scales.size());
  const size_t panels_at_once = panels_released_at_once(groups * code_bytes);

  threads.run(packed->panels(), [&](size_t panel, int) {
    PanelRows rows(columns, scale_groups);
    const size_t first = panel * kPanelRows;
    const size_t count = std::min(kPanelRows, source.rows() - first);
    for (size_t r = 0; r < count; ++r) {
      source.read_codes(source_row(row_order, first + r), {rows.codes.data() + r * columns, columns},
                        {rows.scales.data() + r * scale_groups, scale_groups},
                        {rows.biases.data() + r * scale_groups, scale_groups});
    }
    if (packed->format.nonlinear) to_places(rows.codes);
    pack_codes(packed->codes.data() + panel * groups * code_bytes, rows.codes.data(), columns, bits);
    for (size_t g = 0; g < scale_groups; ++g) {
      for (size_t r = 0; r < kPanelRows; ++r) {
        const size_t at = (panel * scale_groups + g) * kPanelRows + r;
        scales[at] = rows.scales[r * scale_groups + g];
        if (biases.size() != 0) biases[at] = rows.biases[r * scale_groups + g];
      }
    }
    if (row_order.empty() && (panel + 1) % panels_at_once == 0) {
      const size_t begin = (panel + 1 - panels_at_once) * kPanelRows;
      source.release(begin, first + count - begin);
    }
  });
  packed->unit = choose_unit(scales.span(), biases.span());
  packed->scales = to_fp16(scales, 1.0f / packed->unit, arena);
  if (biases.size() != 0) packed->biases = to_fp16(biases, 1.0f / packed->unit, arena);
  source.release(0, source.rows());
  return packed;
}

std::unique_ptr<PackedMatrix> pack_plain(const MatrixSource& source, std::span<const uint32_t> row_order,
                                         const Threads& threads, Arena* arena) {
  auto packed = std::make_unique<PackedPlain>();
  packed->row_count = source.rows();
  packed->column_count = source.columns();
  packed->dtype = source.affine() ? DType::f32 : source.plain_dtype();
  const size_t columns = source.columns();
  const size_t value_bytes = packed->value_bytes();
  packed->values = AlignedArray<std::byte>(packed->panels() * columns * kPanelRows * value_bytes, arena);
  threads.run(packed->panels(), [&](size_t panel, int) {
    std::vector<float> values(columns);
    std::byte* out = packed->values.data() + panel * columns * kPanelRows * value_bytes;
    for (size_t r = 0; r < kPanelRows; ++r) {
      const size_t row = panel * kPanelRows + r;
      if (row < source.rows()) {
        source.read_values(source_row(row_order, row), values);
      } else {
        std::fill(values.begin(), values.end(), 0.0f);
      }
      for (size_t c = 0; c < columns; ++c) {
        std::byte* at = out + (c * kPanelRows + r) * value_bytes;
        // bf16 and f16 came from the file as such, so these conversions are exact.
        if (packed->dtype == DType::f32) {
          std::memcpy(at, &values[c], sizeof(float));
        } else {
          const uint16_t bits =
              packed->dtype == DType::f16 ? to_half(values[c]).bits : to_bfloat16(values[c]).bits;
          std::memcpy(at, &bits, sizeof(bits));
        }
      }
    }
  });
  source.release(0, source.rows());
  return packed;
}

// The combinations the kernels are compiled for; any other is kept as fp32.
bool can_pack_affine(const MatrixSource& source) {
  const std::optional<AffineFormat> format = source.affine();
  if (!format || source.columns() % kGroup != 0) return false;
  if (format->nonlinear && (format->bits != 8 || format->group != 32 || !format->zero_point)) return false;
  const bool by_sixteen = format->group == 16 && format->zero_point;
  if (format->bits == 6 && format->zero_point) return by_sixteen;
  if (format->bits == 4 && by_sixteen) return true;
  return format->group >= static_cast<int>(kGroup) && format->group % static_cast<int>(kGroup) == 0;
}

}  // namespace

std::unique_ptr<PackedMatrix> pack_matrix(const MatrixSource& source, std::span<const uint32_t> row_order,
                                          const Threads& threads, Arena* arena) {
  if (can_pack_affine(source)) return pack_affine(source, row_order, threads, arena);
  return pack_plain(source, row_order, threads, arena);
}

}  // namespace keysieve::simd
