#if defined(KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H
#undef KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H
#else
#define KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H
#endif

#include <cstring>

#include "kernels/simd/activations.h"
#include "kernels/simd/packed_affine.h"
#include "kernels/simd/vectors-inl.h"

// Quantised matrix products: unsigned codes of 16 rows (a panel) times int8 activations, exact in int32
// within each group of 32 columns, then
//   out += activation_scale * scale * dot + activation_scale * sum(activations) * bias
// in fp32. A zero point in place of a bias costs no float work: the integer sum starts at
// -zero_point * sum(activations). Decode (up to 4 tokens) unpacks codes in registers as they stream from
// memory; prefill unpacks a panel once into bytes in L2 and runs all tokens over it. Both do the same
// operations in the same order for each output, so a token's result does not depend on how many came with it.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

using VU8 = hn::Vec<hn::ScalableTag<uint8_t>>;
inline constexpr size_t kDecodeTokens = 4;  // above this, unpacking to bytes first is cheaper

// One step of one panel: 64 bytes in 1 or 2 vectors.
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

// The codes of step kStep of one group, as bytes. `group` points at group_code_bytes(kBits) packed bytes.
template <int kBits, int kStep>
HWY_INLINE StepCodes unpack_step(const uint8_t* group) {
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
      codes.v[i] = code;
    }
  }
  return codes;
}

// Sums of u8 codes x s8 activations over a run of steps, 16 rows of int32.
struct PanelSums {
  VI v[kVectorsPerPanel];
};

#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
// AVX-512 VNNI: one instruction multiplies 64 pairs and adds them up by fours.
template <int kBits>
struct DotSum {
  VI sum;
  HWY_INLINE void start(VI from) { sum = from; }
  HWY_INLINE void step(const StepCodes& codes, int32_t activations) {
    sum = VI{_mm512_dpbusd_epi32(sum.raw, codes.v[0].raw, _mm512_set1_epi32(activations))};
  }
  HWY_INLINE PanelSums finish() const { return {{sum}}; }
};
#else
// AVX2: maddubs multiplies 32 pairs and adds neighbours in int16, which saturate at 32,767. With codes of b
// bits a step adds at most 2 * (2^b - 1) * 127, so 8 steps of 4-bit codes (30,480), 4 of 5-bit (31,496) and 2
// of 6-bit ones (32,004) may be summed in int16 before widening. 8-bit codes go as two nibbles.
template <int kBits>
struct DotSum {
  static constexpr int kSafeSteps = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
  __m256i narrow[2];
  __m256i narrow_high[2];
  __m256i wide[2];
  int pending;

  HWY_INLINE void start(VI from) {
    for (int i = 0; i < 2; ++i) {
      narrow[i] = _mm256_setzero_si256();
      narrow_high[i] = _mm256_setzero_si256();
      wide[i] = from.raw;
    }
    pending = 0;
  }
  HWY_INLINE void step(const StepCodes& codes, int32_t activations) {
    const __m256i a = _mm256_set1_epi32(activations);
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int i = 0; i < 2; ++i) {
      const __m256i code = codes.v[i].raw;
      if constexpr (kBits == 8) {
        const __m256i low = _mm256_and_si256(code, nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(code, 4), nibble);
        narrow[i] = _mm256_add_epi16(narrow[i], _mm256_maddubs_epi16(low, a));
        narrow_high[i] = _mm256_add_epi16(narrow_high[i], _mm256_maddubs_epi16(high, a));
      } else {
        narrow[i] = _mm256_add_epi16(narrow[i], _mm256_maddubs_epi16(code, a));
      }
    }
    if constexpr (kBits == 5 || kBits == 6) {
      if (++pending == kSafeSteps) widen();
    }
  }
  HWY_INLINE void widen() {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < 2; ++i) {
      wide[i] = _mm256_add_epi32(wide[i], _mm256_madd_epi16(narrow[i], ones));
      narrow[i] = _mm256_setzero_si256();
    }
    pending = 0;
  }
  HWY_INLINE PanelSums finish() {
    widen();
    if constexpr (kBits == 8) {
      const __m256i ones = _mm256_set1_epi16(1);
      for (int i = 0; i < 2; ++i) {
        wide[i] = _mm256_add_epi32(wide[i], _mm256_slli_epi32(_mm256_madd_epi16(narrow_high[i], ones), 4));
      }
    }
    return {{VI{wide[0]}, VI{wide[1]}}};
  }
};
#endif

// Scales (and biases) of the 16 rows of a panel for one run of columns that shares them.
struct PanelScale {
  VF scale[kVectorsPerPanel];
  VF bias[kVectorsPerPanel];
};

// What changes from matrix to matrix, fixed at compile time: code bits and columns per scale within a group
// of 32 (16 for Q6_K, 32 for all others), and whether the bias is -zero_point * scale.
template <int kCodeBits, int kScaleColumns, bool kZeroPoint>
struct AffineKind {
  static constexpr int kBits = kCodeBits;
  static constexpr int kRuns = static_cast<int>(kGroup) / kScaleColumns;  // scale runs per group: 1 or 2
  static constexpr int kStepsPerRun = static_cast<int>(kSteps) / kRuns;
  static constexpr bool kHasZeroPoint = kZeroPoint;
};

// What one token contributes to a group beside its codes.
struct TokenGroup {
  VF scale;
  VF scaled_sum;  // unused with a zero point
};

template <class Kind>
HWY_INLINE TokenGroup token_group(const ActivationView& x, size_t token, size_t group) {
  const size_t at = token * (x.columns / kGroup) + group;
  return {hn::Set(F32(), x.scales[at]),
          Kind::kHasZeroPoint ? hn::Zero(F32()) : hn::Set(F32(), x.scaled_sums[at])};
}

// Where the integer sum of one run starts: -zero_point * sum of the run's activations.
template <class Kind>
HWY_INLINE VI first_sum(const ActivationView& x, size_t token, size_t group, int run, int zero_point) {
  if constexpr (!Kind::kHasZeroPoint) return hn::Zero(I32());
  const size_t at = token * (x.columns / kGroup) + group;
  int32_t sum = x.sums[at];
  if constexpr (Kind::kRuns == 2) sum = run == 0 ? x.first_sums[at] : sum - x.first_sums[at];
  return hn::Set(I32(), -zero_point * sum);
}

// acc += activation_scale * scale * dot [+ activation_scale * sum * bias] for one run.
template <class Kind>
HWY_INLINE void accumulate_run(VF* acc, PanelSums dots, const PanelScale& p, const TokenGroup& token) {
  for (size_t i = 0; i < kVectorsPerPanel; ++i) {
    acc[i] = hn::MulAdd(hn::Mul(hn::ConvertTo(F32(), dots.v[i]), p.scale[i]), token.scale, acc[i]);
    if constexpr (!Kind::kHasZeroPoint) acc[i] = hn::MulAdd(p.bias[i], token.scaled_sum, acc[i]);
  }
}

HWY_INLINE int32_t activation_step(const ActivationView& x, size_t token, size_t group, int step) {
  int32_t four;
  std::memcpy(&four, x.codes + token * x.columns + group * kGroup + static_cast<size_t>(step) * 4, 4);
  return four;
}

// Stores one panel's 16 results of one token; rows past the end of the matrix are not written.
HWY_INLINE void store_panel(float* out, const VF* acc, float unit, size_t rows) {
  if (rows >= kPanelRows) {
    for (size_t i = 0; i < kVectorsPerPanel; ++i) {
      hn::StoreU(hn::Mul(acc[i], hn::Set(F32(), unit)), F32(), out + i * kLanes);
    }
    return;
  }
  HWY_ALIGN float all[kPanelRows];
  for (size_t i = 0; i < kVectorsPerPanel; ++i) {
    hn::Store(hn::Mul(acc[i], hn::Set(F32(), unit)), F32(), all + i * kLanes);
  }
  std::memcpy(out, all, rows * sizeof(float));
}

template <class Kind, int kStep, size_t kTokens, class Sums>
HWY_INLINE void decode_step(Sums (&sums)[kTokens], const uint8_t* codes, const ActivationView& x,
                            size_t group) {
  const StepCodes step = unpack_step<Kind::kBits, kStep>(codes);
  for (size_t t = 0; t < kTokens; ++t) sums[t].step(step, activation_step(x, t, group, kStep));
}

// Decode: kTokens tokens (1 .. 4) times one panel, codes unpacked in registers.
template <class Kind, size_t kTokens>
inline void decode_panel(float* out, size_t out_stride, const PackedAffine& w, size_t panel,
                         const ActivationView& x) {
  VF acc[kTokens][kVectorsPerPanel];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < kVectorsPerPanel; ++i) acc[t][i] = hn::Zero(F32());
  }
  const uint8_t* codes = w.panel_codes(panel);
  const Half* scales = w.panel_scales(panel);
  const Half* biases = w.panel_biases(panel);
  const int zero_point = w.format.zero_point.value_or(0);
  const size_t scale_columns = static_cast<size_t>(w.format.group);
  for (size_t g = 0; g < w.groups(); ++g, codes += group_code_bytes(Kind::kBits)) {
    DotSum<Kind::kBits> sums[Kind::kRuns][kTokens];
    for (int run = 0; run < Kind::kRuns; ++run) {
      for (size_t t = 0; t < kTokens; ++t) {
        sums[run][t].start(first_sum<Kind>(x, t, g, run, zero_point));
      }
    }
    decode_step<Kind, 0>(sums[0], codes, x, g);
    decode_step<Kind, 1>(sums[0], codes, x, g);
    decode_step<Kind, 2>(sums[0], codes, x, g);
    decode_step<Kind, 3>(sums[0], codes, x, g);
    decode_step<Kind, 4>(sums[Kind::kRuns - 1], codes, x, g);
    decode_step<Kind, 5>(sums[Kind::kRuns - 1], codes, x, g);
    decode_step<Kind, 6>(sums[Kind::kRuns - 1], codes, x, g);
    decode_step<Kind, 7>(sums[Kind::kRuns - 1], codes, x, g);
    for (int run = 0; run < Kind::kRuns; ++run) {
      const size_t first_column = g * kGroup + static_cast<size_t>(run) * (kGroup / Kind::kRuns);
      const size_t at = first_column / scale_columns * kPanelRows;
      PanelScale p;
      for (size_t i = 0; i < kVectorsPerPanel; ++i) {
        p.scale[i] = load_half(scales + at + i * kLanes);
        if constexpr (!Kind::kHasZeroPoint) p.bias[i] = load_half(biases + at + i * kLanes);
      }
      for (size_t t = 0; t < kTokens; ++t) {
        accumulate_run<Kind>(acc[t], sums[run][t].finish(), p, token_group<Kind>(x, t, g));
      }
    }
  }
  const size_t rows = w.row_count - panel * kPanelRows;
  for (size_t t = 0; t < kTokens; ++t) {
    store_panel(out + t * out_stride + panel * kPanelRows, acc[t], w.unit, rows);
  }
}

// One panel unpacked for prefill.
struct UnpackedPanel {
  uint8_t* codes;  // [groups, 8 steps, 64]
  float* scales;   // [groups, runs, 16]
  float* biases;   // [groups, runs, 16], unused with a zero point
  static size_t bytes(size_t groups) {
    return groups * (kSteps * kStepBytes + 4 * kPanelRows * sizeof(float));
  }
};

template <class Kind, int kStep>
HWY_INLINE void unpack_to(uint8_t* out, const uint8_t* group) {
  const StepCodes step = unpack_step<Kind::kBits, kStep>(group);
  for (size_t i = 0; i < kVectorsPerPanel; ++i) {
    hn::StoreU(step.v[i], hn::ScalableTag<uint8_t>(), out + kStep * kStepBytes + i * kLanes * 4);
  }
}

template <class Kind>
inline UnpackedPanel unpack_panel(std::byte* memory, const PackedAffine& w, size_t panel) {
  const size_t groups = w.groups();
  UnpackedPanel out;
  out.codes = reinterpret_cast<uint8_t*>(memory);
  out.scales = reinterpret_cast<float*>(memory + groups * kSteps * kStepBytes);
  out.biases = out.scales + groups * 2 * kPanelRows;
  const uint8_t* codes = w.panel_codes(panel);
  const Half* scales = w.panel_scales(panel);
  const Half* biases = w.panel_biases(panel);
  const size_t scale_columns = static_cast<size_t>(w.format.group);
  for (size_t g = 0; g < groups; ++g, codes += group_code_bytes(Kind::kBits)) {
    uint8_t* to = out.codes + g * kSteps * kStepBytes;
    unpack_to<Kind, 0>(to, codes);
    unpack_to<Kind, 1>(to, codes);
    unpack_to<Kind, 2>(to, codes);
    unpack_to<Kind, 3>(to, codes);
    unpack_to<Kind, 4>(to, codes);
    unpack_to<Kind, 5>(to, codes);
    unpack_to<Kind, 6>(to, codes);
    unpack_to<Kind, 7>(to, codes);
    for (size_t run = 0; run < Kind::kRuns; ++run) {
      const size_t at = (g * kGroup + run * (kGroup / Kind::kRuns)) / scale_columns * kPanelRows;
      const size_t to_at = (g * Kind::kRuns + run) * kPanelRows;
      for (size_t i = 0; i < kPanelRows; i += kLanes) {
        hn::StoreU(load_half(scales + at + i), F32(), out.scales + to_at + i);
        if constexpr (!Kind::kHasZeroPoint)
          hn::StoreU(load_half(biases + at + i), F32(), out.biases + to_at + i);
      }
    }
  }
  return out;
}

// Prefill tile: kTokens tokens times kPanels unpacked panels, all sums in registers. AVX-512: 3 tokens x 4
// panels is 12 int32 and 12 fp32 accumulators of the 32 registers and 7 loads for 12 dot products (6 x 2
// needs 8 and is 3% slower).
template <class Kind, size_t kTokens, size_t kPanels>
inline void prefill_tile(float* out, size_t out_stride, const PackedAffine& w, size_t first_panel,
                         const UnpackedPanel* panels, const ActivationView& x, size_t first_token) {
  VF acc[kTokens][kPanels][kVectorsPerPanel];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t p = 0; p < kPanels; ++p) {
      for (size_t i = 0; i < kVectorsPerPanel; ++i) acc[t][p][i] = hn::Zero(F32());
    }
  }
  const int zero_point = w.format.zero_point.value_or(0);
  for (size_t g = 0; g < w.groups(); ++g) {
    for (int run = 0; run < Kind::kRuns; ++run) {
      DotSum<Kind::kBits> sums[kTokens][kPanels];
      for (size_t t = 0; t < kTokens; ++t) {
        const VI from = first_sum<Kind>(x, first_token + t, g, run, zero_point);
        for (size_t p = 0; p < kPanels; ++p) sums[t][p].start(from);
      }
      HWY_UNROLL(8)
      for (int s = 0; s < Kind::kStepsPerRun; ++s) {
        const int step = run * Kind::kStepsPerRun + s;
        StepCodes codes[kPanels];
        for (size_t p = 0; p < kPanels; ++p) {
          for (size_t i = 0; i < kVectorsPerPanel; ++i) {
            codes[p].v[i] = load_bytes(
                panels[p].codes + (g * kSteps + static_cast<size_t>(step)) * kStepBytes + i * kLanes * 4);
          }
        }
        for (size_t t = 0; t < kTokens; ++t) {
          const int32_t four = activation_step(x, first_token + t, g, step);
          for (size_t p = 0; p < kPanels; ++p) sums[t][p].step(codes[p], four);
        }
      }
      const size_t at = (g * Kind::kRuns + static_cast<size_t>(run)) * kPanelRows;
      for (size_t p = 0; p < kPanels; ++p) {
        PanelScale scale;
        for (size_t i = 0; i < kVectorsPerPanel; ++i) {
          scale.scale[i] = hn::LoadU(F32(), panels[p].scales + at + i * kLanes);
          if constexpr (!Kind::kHasZeroPoint)
            scale.bias[i] = hn::LoadU(F32(), panels[p].biases + at + i * kLanes);
        }
        for (size_t t = 0; t < kTokens; ++t) {
          accumulate_run<Kind>(acc[t][p], sums[t][p].finish(), scale,
                               token_group<Kind>(x, first_token + t, g));
        }
      }
    }
  }
  for (size_t p = 0; p < kPanels; ++p) {
    const size_t row = (first_panel + p) * kPanelRows;
    for (size_t t = 0; t < kTokens; ++t) {
      store_panel(out + (first_token + t) * out_stride + row, acc[t][p], w.unit, w.row_count - row);
    }
  }
}

#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
inline constexpr size_t kTilePanels = 4;
// Tokens for a tile of this many panels: about 12 independent sums, what two dot products a cycle with a
// latency of 4 to 5 need.
constexpr size_t tile_tokens(size_t panels) { return panels == 4 ? 3 : panels == 2 ? 6 : 8; }
#else
inline constexpr size_t kTilePanels = 1;
constexpr size_t tile_tokens(size_t) { return 3; }
#endif

template <class Kind, size_t kPanels>
inline void prefill_panels(float* out, size_t out_stride, const PackedAffine& w, size_t first_panel,
                           const ActivationView& x, std::byte* memory) {
  UnpackedPanel panels[kPanels];
  for (size_t p = 0; p < kPanels; ++p) {
    panels[p] = unpack_panel<Kind>(memory + p * UnpackedPanel::bytes(w.groups()), w, first_panel + p);
  }
  constexpr size_t kTokens = tile_tokens(kPanels);
  size_t t = 0;
  for (; t + kTokens <= x.tokens; t += kTokens) {
    prefill_tile<Kind, kTokens, kPanels>(out, out_stride, w, first_panel, panels, x, t);
  }
  for (; t + 2 <= x.tokens; t += 2) {
    prefill_tile<Kind, 2, kPanels>(out, out_stride, w, first_panel, panels, x, t);
  }
  if (t < x.tokens) prefill_tile<Kind, 1, kPanels>(out, out_stride, w, first_panel, panels, x, t);
}

template <class Kind>
inline void affine_panels(float* out, size_t out_stride, const PackedAffine& w, size_t first_panel,
                          size_t last_panel, const ActivationView& x, KernelScratch& scratch, int worker) {
  if (x.tokens <= kDecodeTokens) {
    for (size_t p = first_panel; p < last_panel; ++p) {
      switch (x.tokens) {
        case 1:
          decode_panel<Kind, 1>(out, out_stride, w, p, x);
          break;
        case 2:
          decode_panel<Kind, 2>(out, out_stride, w, p, x);
          break;
        case 3:
          decode_panel<Kind, 3>(out, out_stride, w, p, x);
          break;
        default:
          decode_panel<Kind, 4>(out, out_stride, w, p, x);
          break;
      }
    }
    return;
  }
  std::byte* memory = worker_scratch(scratch, worker, kTilePanels * UnpackedPanel::bytes(w.groups()));
  size_t p = first_panel;
  for (; p + kTilePanels <= last_panel; p += kTilePanels) {
    prefill_panels<Kind, kTilePanels>(out, out_stride, w, p, x, memory);
  }
  if constexpr (kTilePanels > 2) {
    for (; p + 2 <= last_panel; p += 2) prefill_panels<Kind, 2>(out, out_stride, w, p, x, memory);
  }
  for (; p < last_panel; ++p) prefill_panels<Kind, 1>(out, out_stride, w, p, x, memory);
}

// Rows 16 * first_panel .. 16 * last_panel - 1 of out = w x for all tokens.
inline void affine_matmul(float* out, size_t out_stride, const PackedAffine& w, size_t first_panel,
                          size_t last_panel, const ActivationView& x, KernelScratch& scratch, int worker) {
  const auto run = [&]<class Kind>(Kind) HWY_ATTR {
    affine_panels<Kind>(out, out_stride, w, first_panel, last_panel, x, scratch, worker);
  };
  const bool zero = w.format.zero_point.has_value();
  switch (w.format.bits) {
    case 4:
      return zero ? run(AffineKind<4, 32, true>()) : run(AffineKind<4, 32, false>());
    case 5:
      return zero ? run(AffineKind<5, 32, true>()) : run(AffineKind<5, 32, false>());
    case 6:
      return run(AffineKind<6, 16, true>());  // the only 6-bit form: see can_pack_affine
    default:
      return zero ? run(AffineKind<8, 32, true>()) : run(AffineKind<8, 32, false>());
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H
