#if defined(KEYSIEVE_SIMD_UNPACKED_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_UNPACKED_INL_H
#undef KEYSIEVE_SIMD_UNPACKED_INL_H
#else
#define KEYSIEVE_SIMD_UNPACKED_INL_H
#endif

#include <cstddef>
#include <cstdint>

#include "kernels/simd/packed_affine.h"
#include "kernels/simd/vectors-inl.h"

// The packed codes of affine weights, a step at a time, and panels of them unpacked to bytes.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

using VU8 = hn::Vec<hn::ScalableTag<uint8_t>>;

// What changes from matrix to matrix, fixed at compile time: code bits, columns per scale (16 for Q3_K and
// Q6_K, 64 for MLX's groups of 64 and of multiples of that, 32 for all others), whether the bias is
// -zero_point * scale, and whether codes are stored by their places in kNonlinearCodes. Products go by units
// of columns: a group of 32, or two of them where 64 columns share a scale, of the weights and of the
// activations. A unit of 16 columns per scale has two runs, whose dots are weighed and added before the
// activations' scale, which both share.
template <int kCodeBits, int kScaleColumns, bool kZeroPoint, bool kByPlace = false>
struct AffineKind {
  static constexpr int kBits = kCodeBits;
  static constexpr bool kNonlinear = kByPlace;
  static constexpr int kStoredBits = kNonlinear ? 4 : kBits;
  static constexpr size_t kCodeBytes = group_code_bytes(kStoredBits);  // of a group
  static constexpr bool kWide = kScaleColumns == 64;
  static constexpr size_t kUnitGroups = kWide ? 2 : 1;
  static constexpr int kRuns = kScaleColumns == 16 ? 2 : 1;  // of a unit
  static constexpr int kStepsPerRun = static_cast<int>(kUnitGroups * kSteps) / kRuns;
  static constexpr bool kHasZeroPoint = kZeroPoint;
};

// One step of one panel: 64 bytes in 1, 2 or 4 vectors.
struct StepCodes {
  VU8 v[kVectorsPerPanel];
};

HWY_INLINE VU8 load_bytes(const uint8_t* p) { return hn::LoadU(hn::ScalableTag<uint8_t>(), p); }

// Nibbles and bit fields of whole vectors; shifts run on 16-bit lanes, the mask drops what crossed a byte.
template <int kShift>
HWY_INLINE VU8 field(VU8 v, uint8_t mask) {
  const hn::ScalableTag<uint8_t> d8;
  const hn::ScalableTag<uint16_t> d16;
  if constexpr (kShift >= 0) {
    v = hn::BitCast(d8, hn::ShiftRight<kShift>(hn::BitCast(d16, v)));
  } else {
    v = hn::BitCast(d8, hn::ShiftLeft<-kShift>(hn::BitCast(d16, v)));
  }
  return hn::And(v, hn::Set(d8, mask));
}

// Asks for codes 4 KB on while some are unpacked: decode of SmolLM2-135M after 500 tokens goes from 277 to
// 295 tokens/s on AVX-512 (2 KB on; 4 KB is as good there), that of Qwen2.5-Coder-0.5B on AVX2 from 57 to
// some 80 (Zen 4; docs/decisions/0024-asking-l2.md, docs/performance.md).
HWY_INLINE void ask_ahead(const uint8_t* codes, size_t unit_bytes) {
  if constexpr (HWY_ARCH_X86) {
    constexpr size_t kAhead = 4096;
    for (size_t line = 0; line < unit_bytes; line += kAlignment) prefetch_to_l2(codes + kAhead + line);
  }
}

// The codes of step kStep of one group, as bytes. `group` points at Kind::kCodeBytes packed bytes.
template <class Kind, int kStep>
HWY_INLINE StepCodes unpack_step(const uint8_t* group) {
  constexpr int kBits = Kind::kStoredBits;
  StepCodes codes;
  for (size_t i = 0; i < kVectorsPerPanel; ++i) {
    const size_t at = i * kLanes * 4;
    if constexpr (kBits == 8) {
      codes.v[i] = load_bytes(group + kStep * kStepBytes + at);
    } else {
      const VU8 plane = load_bytes(group + kStep % 4 * kStepBytes + at);
      VU8 code = field < kStep<4 ? 0 : 4>(plane, 15);
      if constexpr (kBits == 5) {
        const VU8 high = load_bytes(group + 4 * kStepBytes + at);
        code = hn::Or(code, field<kStep - 4>(high, 16));  // bit kStep to bit 4
      } else if constexpr (kBits == 6) {
        const VU8 high = load_bytes(group + (4 + kStep / 4) * kStepBytes + at);
        code = hn::Or(code, field<2 * (kStep % 4) - 4>(high, 48));  // bits 2(kStep%4).. to bits 4, 5
      }
      if constexpr (Kind::kNonlinear) {
        const VU8 table = hn::LoadDup128(hn::ScalableTag<uint8_t>(), kNonlinearCodes.data());
        code = hn::TableLookupBytes(table, code);
      }
      codes.v[i] = code;
    }
  }
  return codes;
}

// kPanels neighbouring panels unpacked for prefill, one record a unit, so that a tile walks one pointer:
// codes [8 or 16 steps, kPanels, 64 bytes], scales [kRuns, kPanels, 16 floats], biases [kPanels, 16 floats]
// (none with a zero point).
template <class Kind, size_t kPanels>
struct Unpacked {
  static constexpr size_t kScalesAt = Kind::kUnitGroups * kSteps * kPanels * kStepBytes;
  static constexpr size_t kVectorBytes = kPanelRows * sizeof(float);
  static constexpr size_t kBiasesAt = kScalesAt + Kind::kRuns * kPanels * kVectorBytes;
  static constexpr size_t kUnitBytes = kBiasesAt + (Kind::kHasZeroPoint ? 0 : kPanels * kVectorBytes);

  static constexpr size_t code_at(size_t step, size_t panel) { return (step * kPanels + panel) * kStepBytes; }
  static constexpr size_t scale_at(size_t run, size_t panel) {
    return kScalesAt + (run * kPanels + panel) * kVectorBytes;
  }
  static constexpr size_t bias_at(size_t panel) { return kBiasesAt + panel * kVectorBytes; }
};

// Step kStep of one group to `out`.
template <class Kind, int kStep>
HWY_INLINE void unpack_to(std::byte* out, const uint8_t* group) {
  const StepCodes step = unpack_step<Kind, kStep>(group);
  auto* to = reinterpret_cast<uint8_t*>(out);
  for (size_t i = 0; i < kVectorsPerPanel; ++i) {
    hn::StoreU(step.v[i], hn::ScalableTag<uint8_t>(), to + i * kLanes * 4);
  }
}

// One group's 8 steps, the first to `out`, each kPanels blocks past the one before.
template <class Kind, size_t kPanels>
HWY_INLINE void unpack_group(std::byte* out, const uint8_t* group) {
  constexpr size_t kNext = kPanels * kStepBytes;
  unpack_to<Kind, 0>(out, group);
  unpack_to<Kind, 1>(out + kNext, group);
  unpack_to<Kind, 2>(out + 2 * kNext, group);
  unpack_to<Kind, 3>(out + 3 * kNext, group);
  unpack_to<Kind, 4>(out + 4 * kNext, group);
  unpack_to<Kind, 5>(out + 5 * kNext, group);
  unpack_to<Kind, 6>(out + 6 * kNext, group);
  unpack_to<Kind, 7>(out + 7 * kNext, group);
}

// Widens 16 scales or biases.
HWY_INLINE void widen_to(std::byte* out, const Half* halves) {
  auto* to = reinterpret_cast<float*>(out);
  for (size_t i = 0; i < kPanelRows; i += kLanes) hn::StoreU(load_half(halves + i), F32(), to + i);
}

template <class Kind, size_t kPanels>
inline void unpack_panel(std::byte* out, const PackedAffine& w, size_t first_panel, size_t index) {
  using Layout = Unpacked<Kind, kPanels>;
  const uint8_t* codes = w.panel_codes(first_panel + index);
  const Half* scales = w.panel_scales(first_panel + index);
  const Half* biases = w.panel_biases(first_panel + index);
  const size_t scale_columns = static_cast<size_t>(w.format.group);
  for (size_t g = 0; g < w.groups(); g += Kind::kUnitGroups, out += Layout::kUnitBytes) {
    for (size_t i = 0; i < Kind::kUnitGroups; ++i, codes += Kind::kCodeBytes) {
      ask_ahead(codes, Kind::kCodeBytes);
      unpack_group<Kind, kPanels>(out + Layout::code_at(i * kSteps, index), codes);
    }
    for (size_t run = 0; run < Kind::kRuns; ++run) {
      const size_t at = (g * kGroup + run * (kGroup / Kind::kRuns)) / scale_columns * kPanelRows;
      widen_to(out + Layout::scale_at(run, index), scales + at);
      if constexpr (!Kind::kHasZeroPoint) widen_to(out + Layout::bias_at(index), biases + at);
    }
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_UNPACKED_INL_H
