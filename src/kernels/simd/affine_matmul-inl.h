#if defined(KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H
#undef KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H
#else
#define KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H
#endif

#include <cstring>
#include <type_traits>

#include "kernels/simd/activations.h"
#include "kernels/simd/exact_columns-inl.h"
#include "kernels/simd/packed_affine.h"
#include "kernels/simd/unpacked-inl.h"
#include "kernels/simd/vectors-inl.h"

// Quantised matrix products: unsigned codes of 16 rows (a panel) times int8 activations, exact in int32
// within each group of 32 or 64 columns, then
//   out += activation_scale * (scale * dot + sum(activations) * bias)
// in fp32. The activations' scale is multiplied once for two dots of 16 columns. A zero point in place of a
// bias costs no float work: the integer sum starts at -zero_point * sum(activations). Decode (up to
// kDecodeTokens: one sequence, or several side by side) unpacks codes in registers as they stream from
// memory; prefill unpacks a panel once into bytes in L2 and runs all tokens over it. Both do the same
// operations in the same order for each output, so a token's result does not depend on how many came with it.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// Tokens whose sums and results the registers hold while codes are unpacked there.
inline constexpr size_t kBlockTokens = HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86 ? 8 : 4;
// Above this, unpacking to bytes first is cheaper than unpacking once a block.
inline constexpr size_t kDecodeTokens = 2 * kBlockTokens;

// Sums of u8 codes x s8 activations over a run of steps, 16 rows of int32. A DotSum below is told what its
// sum starts from where it starts and where it finishes, and uses it at one of them.
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
  HWY_INLINE PanelSums finish(VI) const { return {{sum}}; }
};
#elif HWY_ARCH_ARM_A64
// NEON: one instruction multiplies 16 signed pairs and adds them up by fours. 8-bit codes become signed by
// taking 128 from each, which kCodeShift gives back where sums start.
template <int kBits>
struct DotSum {
  VI sum[kVectorsPerPanel];
  HWY_INLINE void start(VI from) { std::fill_n(sum, kVectorsPerPanel, from); }
  HWY_INLINE void step(const StepCodes& codes, int32_t activations) {
    const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(activations));
    for (size_t i = 0; i < kVectorsPerPanel; ++i) {
      const uint8x16_t code = codes.v[i].raw;
      const int8x16_t signed_code = vreinterpretq_s8_u8(kBits == 8 ? veorq_u8(code, vdupq_n_u8(0x80)) : code);
      sum[i] = VI(vdotq_s32(sum[i].raw, signed_code, a));
    }
  }
  HWY_INLINE PanelSums finish(VI) const {
    PanelSums sums;
    std::copy_n(sum, kVectorsPerPanel, sums.v);
    return sums;
  }
};
#else
// AVX2: maddubs multiplies 32 pairs and adds neighbours in int16, which saturate at 32,767. With codes of b
// bits a step adds at most 2 * (2^b - 1) * 127, so 8 steps of 4-bit codes (30,480), 4 of 5-bit (31,496) and 2
// of 6-bit ones (32,004) may be summed in int16 before widening. 8-bit codes go as two nibbles. What a sum
// starts from is added at its end, so that no register holds it till then.
template <int kBits>
struct DotSum {
  static constexpr int kSafeSteps = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
  __m256i narrow[2];
  __m256i narrow_high[2];
  __m256i wide[2];
  int pending;

  HWY_INLINE void start(VI) {
    for (int i = 0; i < 2; ++i) {
      narrow[i] = _mm256_setzero_si256();
      narrow_high[i] = _mm256_setzero_si256();
      wide[i] = _mm256_setzero_si256();
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
  HWY_INLINE PanelSums finish(VI from) {
    widen();
    if constexpr (kBits == 8) {
      const __m256i ones = _mm256_set1_epi16(1);
      for (int i = 0; i < 2; ++i) {
        wide[i] = _mm256_add_epi32(wide[i], _mm256_slli_epi32(_mm256_madd_epi16(narrow_high[i], ones), 4));
      }
    }
    return {{hn::Add(VI{wide[0]}, from), hn::Add(VI{wide[1]}, from)}};
  }
};
#endif

// What DotSum takes from every code.
template <int kBits>
inline constexpr int kCodeShift = HWY_ARCH_ARM_A64 && kBits == 8 ? 128 : 0;

// Scales (and biases) of the 16 rows of a panel for one run of columns that shares them.
struct PanelScale {
  VF scale[kVectorsPerPanel];
  VF bias[kVectorsPerPanel];
};

// What one token contributes to a unit beside its codes.
struct TokenUnit {
  VF scale;
  VF scaled_sum;  // unused with a zero point
};

template <class Kind>
HWY_INLINE TokenUnit token_unit(const ActivationView& x, size_t token, size_t group) {
  const size_t at = token * (x.columns / kGroup) + group;
  float scaled_sum = 0.0f;
  for (size_t i = 0; i < Kind::kUnitGroups && !Kind::kHasZeroPoint; ++i) scaled_sum += x.scaled_sums[at + i];
  return {hn::Set(F32(), x.scales[at]), hn::Set(F32(), scaled_sum)};
}

// Where the integer sum of one run of the unit at `group` starts: (kCodeShift - zero_point) * sum of the
// run's activations.
template <class Kind>
HWY_INLINE VI first_sum(const ActivationView& x, size_t token, size_t group, int run, int zero_point) {
  constexpr int kShift = kCodeShift<Kind::kBits>;
  if constexpr (!Kind::kHasZeroPoint && kShift == 0) return hn::Zero(I32());
  const size_t at = token * (x.columns / kGroup) + group;
  int32_t sum = x.sums[at];
  for (size_t i = 1; i < Kind::kUnitGroups; ++i) sum += x.sums[at + i];
  if constexpr (Kind::kRuns == 2) sum = run == 0 ? x.first_sums[at] : sum - x.first_sums[at];
  return hn::Set(I32(), (kShift - zero_point) * sum);
}

// A unit's sums over its runs of the dot times the weights' scale. Run 0 begins them.
HWY_INLINE void weigh_run(VF* weighted, int run, const PanelSums& dots, const PanelScale& p) {
  for (size_t i = 0; i < kVectorsPerPanel; ++i) {
    const VF dot = hn::ConvertTo(F32(), dots.v[i]);
    weighted[i] = run == 0 ? hn::Mul(dot, p.scale[i]) : hn::MulAdd(dot, p.scale[i], weighted[i]);
  }
}

// acc += weighted * activation_scale [+ activation_scale * sum * bias]. 16 columns per scale come with a zero
// point.
template <class Kind>
HWY_INLINE void accumulate_unit(VF* acc, const VF* weighted, const PanelScale& p, const TokenUnit& token) {
  static_assert(Kind::kRuns == 1 || Kind::kHasZeroPoint);
  for (size_t i = 0; i < kVectorsPerPanel; ++i) {
    acc[i] = hn::MulAdd(weighted[i], token.scale, acc[i]);
    if constexpr (!Kind::kHasZeroPoint) acc[i] = hn::MulAdd(p.bias[i], token.scaled_sum, acc[i]);
  }
}

HWY_INLINE int32_t activation_step(const ActivationView& x, size_t token, size_t group, int step) {
  int32_t four;
  std::memcpy(&four, x.codes + token * x.columns + group * kGroup + static_cast<size_t>(step) * 4, 4);
  return four;
}

// The last rows of a matrix whose row count is no multiple of 16: 16 results, of which `rows` are stored.
HWY_NOINLINE void store_rows(float* out, const float* results, size_t rows, bool add) {
  for (size_t i = 0; i < rows; ++i) out[i] = add ? out[i] + results[i] : results[i];
}

// Stores the 16 results of kPanels neighbouring panels for one token. One test for all of them: as a branch a
// panel it cost a tile of 576 columns 10% of its time.
template <size_t kPanels>
HWY_INLINE void store_panels(const AffineOutput& output, size_t token, size_t first_panel,
                             const VF (&acc)[kPanels][kVectorsPerPanel]) {
  const size_t first_row = first_panel * kPanelRows;
  float* out = output.to.at(token, first_row);
  const VF unit = hn::Set(F32(), output.unit);
  if (HWY_LIKELY(first_row + kPanels * kPanelRows <= output.rows)) {
    if (output.to.add) {
      for (size_t p = 0; p < kPanels; ++p) {
        for (size_t i = 0; i < kVectorsPerPanel; ++i) {
          float* at = out + p * kPanelRows + i * kLanes;
          hn::StoreU(hn::Add(hn::LoadU(F32(), at), hn::Mul(acc[p][i], unit)), F32(), at);
        }
      }
    } else {
      for (size_t p = 0; p < kPanels; ++p) {
        for (size_t i = 0; i < kVectorsPerPanel; ++i) {
          hn::StoreU(hn::Mul(acc[p][i], unit), F32(), out + p * kPanelRows + i * kLanes);
        }
      }
    }
    return;
  }
  HWY_ALIGN float all[kPanels * kPanelRows];
  for (size_t p = 0; p < kPanels; ++p) {
    for (size_t i = 0; i < kVectorsPerPanel; ++i) {
      hn::Store(hn::Mul(acc[p][i], unit), F32(), all + p * kPanelRows + i * kLanes);
    }
  }
  store_rows(out, all, output.rows - first_row, output.to.add);
}

template <class Kind, int kStep, size_t kTokens, class Sums>
HWY_INLINE void decode_step(Sums (&sums)[kTokens], const uint8_t* codes, const ActivationView& x,
                            size_t first_token, size_t group) {
  const StepCodes step = unpack_step<Kind, kStep>(codes);
  for (size_t t = 0; t < kTokens; ++t) sums[t].step(step, activation_step(x, first_token + t, group, kStep));
}

// The dots of one group's first and last 16 columns.
template <class Kind, size_t kTokens, class Sums>
HWY_INLINE void decode_group(Sums (&first)[kTokens], Sums (&last)[kTokens], const uint8_t* codes,
                             const ActivationView& x, size_t first_token, size_t group) {
  decode_step<Kind, 0>(first, codes, x, first_token, group);
  decode_step<Kind, 1>(first, codes, x, first_token, group);
  decode_step<Kind, 2>(first, codes, x, first_token, group);
  decode_step<Kind, 3>(first, codes, x, first_token, group);
  decode_step<Kind, 4>(last, codes, x, first_token, group);
  decode_step<Kind, 5>(last, codes, x, first_token, group);
  decode_step<Kind, 6>(last, codes, x, first_token, group);
  decode_step<Kind, 7>(last, codes, x, first_token, group);
}

// Decode: kTokens tokens (1 .. kBlockTokens) from first_token on times one panel, codes unpacked in
// registers.
template <class Kind, size_t kTokens>
inline void decode_panel(const AffineOutput& out, const PackedAffine& w, size_t panel,
                         const ActivationView& x, size_t first_token) {
  VF acc[kTokens][1][kVectorsPerPanel];
  for (size_t t = 0; t < kTokens; ++t) {
    for (size_t i = 0; i < kVectorsPerPanel; ++i) acc[t][0][i] = hn::Zero(F32());
  }
  constexpr size_t kCodeBytes = Kind::kCodeBytes;
  const uint8_t* codes = w.panel_codes(panel);
  const Half* scales = w.panel_scales(panel);
  const Half* biases = w.panel_biases(panel);
  const int zero_point = w.format.zero_point.value_or(0);
  // Units whose scales are the same: counted down, since a division a unit cost AVX2 a tenth of its time.
  const size_t units_per_scale =
      std::max<size_t>(1, static_cast<size_t>(w.format.group) / (Kind::kUnitGroups * kGroup));
  size_t units_left = units_per_scale;
  for (size_t g = 0; g < w.groups(); g += Kind::kUnitGroups, codes += Kind::kUnitGroups * kCodeBytes) {
    ask_ahead(codes, Kind::kUnitGroups * kCodeBytes);
    DotSum<Kind::kBits> sums[Kind::kRuns][kTokens];
    for (int run = 0; run < Kind::kRuns; ++run) {
      for (size_t t = 0; t < kTokens; ++t) {
        sums[run][t].start(first_sum<Kind>(x, first_token + t, g, run, zero_point));
      }
    }
    decode_group<Kind>(sums[0], sums[Kind::kRuns - 1], codes, x, first_token, g);
    if constexpr (Kind::kWide) {
      decode_group<Kind>(sums[0], sums[0], codes + kCodeBytes, x, first_token, g + 1);
    }
    PanelScale p;
    VF weighted[kTokens][kVectorsPerPanel];
    for (int run = 0; run < Kind::kRuns; ++run) {
      for (size_t i = 0; i < kVectorsPerPanel; ++i) {
        p.scale[i] = load_half(scales + static_cast<size_t>(run) * kPanelRows + i * kLanes);
        if constexpr (!Kind::kHasZeroPoint) p.bias[i] = load_half(biases + i * kLanes);
      }
      for (size_t t = 0; t < kTokens; ++t) {
        const VI from = first_sum<Kind>(x, first_token + t, g, run, zero_point);
        weigh_run(weighted[t], run, sums[run][t].finish(from), p);
      }
    }
    for (size_t t = 0; t < kTokens; ++t) {
      accumulate_unit<Kind>(acc[t][0], weighted[t], p, token_unit<Kind>(x, first_token + t, g));
    }
    if (--units_left == 0) {
      units_left = units_per_scale;
      scales += static_cast<size_t>(Kind::kRuns) * kPanelRows;
      if constexpr (!Kind::kHasZeroPoint) biases += kPanelRows;
    }
  }
  for (size_t t = 0; t < kTokens; ++t) store_panels<1>(out, first_token + t, panel, acc[t]);
}

template <class Kind, size_t kTokens, size_t kPanels>
using TileSums = DotSum<Kind::kBits>[kTokens][kPanels];

// The integer part of one run of a tile's unit, whose records begin at `unit`.
template <class Kind, size_t kTokens, size_t kPanels>
HWY_INLINE void tile_dots(TileSums<Kind, kTokens, kPanels>& sums, const std::byte* unit, int run,
                          const int8_t* const* codes) {
  using Layout = Unpacked<Kind, kPanels>;
  // Unrolled, clang takes a unit of 4-bit codes with a zero point token by token on AVX2, and puts the
  // panel's codes on the stack: 86 G multiply-adds/s in place of 104 (Zen 4). All else loses by a loop, up to
  // a fifth.
  constexpr int kUnroll = HWY_TARGET == HWY_AVX2 && Kind::kBits == 4 && Kind::kHasZeroPoint ? 1 : 8;
  HWY_UNROLL(kUnroll)
  for (int s = 0; s < Kind::kStepsPerRun; ++s) {
    const auto step = static_cast<size_t>(run * Kind::kStepsPerRun + s);
    StepCodes panel_codes[kPanels];
    for (size_t p = 0; p < kPanels; ++p) {
      const auto* from = reinterpret_cast<const uint8_t*>(unit + Layout::code_at(step, p));
      for (size_t i = 0; i < kVectorsPerPanel; ++i) panel_codes[p].v[i] = load_bytes(from + i * kLanes * 4);
    }
    for (size_t t = 0; t < kTokens; ++t) {
      int32_t four;
      std::memcpy(&four, codes[t] + step * 4, 4);
      for (size_t p = 0; p < kPanels; ++p) sums[t][p].step(panel_codes[p], four);
    }
  }
}

HWY_INLINE void load_vectors(VF* out, const std::byte* floats) {
  for (size_t i = 0; i < kVectorsPerPanel; ++i) {
    out[i] = hn::LoadU(F32(), reinterpret_cast<const float*>(floats) + i * kLanes);
  }
}

// Prefill tile: kTokens tokens times kPanels unpacked panels, all sums in registers. AVX-512: 3 tokens x 4
// panels is 12 int32 and 12 fp32 accumulators of the 32 registers, and 7 loads for 12 dot products.
template <class Kind, size_t kTokens, size_t kPanels>
inline void prefill_tile(const AffineOutput& out, const std::byte* unpacked, size_t first_panel,
                         int zero_point, const ActivationView& x, size_t first_token) {
  using Layout = Unpacked<Kind, kPanels>;
  VF acc[kTokens][kPanels][kVectorsPerPanel];
  const int8_t* codes[kTokens];
  for (size_t t = 0; t < kTokens; ++t) {
    codes[t] = x.codes + (first_token + t) * x.columns;
    for (size_t p = 0; p < kPanels; ++p) {
      for (size_t i = 0; i < kVectorsPerPanel; ++i) acc[t][p][i] = hn::Zero(F32());
    }
  }
  const size_t groups = x.columns / kGroup;
  for (size_t g = 0; g < groups; g += Kind::kUnitGroups, unpacked += Layout::kUnitBytes) {
    PanelScale scale[kPanels];
    VF weighted[kTokens][kPanels][kVectorsPerPanel];
    for (int run = 0; run < Kind::kRuns; ++run) {
      TileSums<Kind, kTokens, kPanels> sums;
      for (size_t t = 0; t < kTokens; ++t) {
        const VI from = first_sum<Kind>(x, first_token + t, g, run, zero_point);
        for (size_t p = 0; p < kPanels; ++p) sums[t][p].start(from);
      }
      tile_dots<Kind, kTokens, kPanels>(sums, unpacked, run, codes);
      for (size_t p = 0; p < kPanels; ++p) {
        load_vectors(scale[p].scale, unpacked + Layout::scale_at(static_cast<size_t>(run), p));
        for (size_t t = 0; t < kTokens; ++t) {
          const VI from = first_sum<Kind>(x, first_token + t, g, run, zero_point);
          weigh_run(weighted[t][p], run, sums[t][p].finish(from), scale[p]);
        }
      }
    }
    for (size_t p = 0; p < kPanels; ++p) {
      if constexpr (!Kind::kHasZeroPoint) load_vectors(scale[p].bias, unpacked + Layout::bias_at(p));
      for (size_t t = 0; t < kTokens; ++t) {
        accumulate_unit<Kind>(acc[t][p], weighted[t][p], scale[p], token_unit<Kind>(x, first_token + t, g));
      }
    }
    for (size_t t = 0; t < kTokens; ++t) codes[t] += Kind::kUnitGroups * kGroup;
  }
  for (size_t t = 0; t < kTokens; ++t) store_panels<kPanels>(out, first_token + t, first_panel, acc[t]);
}

// Tokens for a tile of so many panels. Units of two runs hold what the first one came to beside sums and
// results, so there are fewer (G multiply-adds/s of one core of Zen 4: Q6_K 141 with 2 tokens and 130 with 3
// on AVX-512, 77 and 68 on AVX2).
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
inline constexpr size_t kTilePanels = 4;
// About 12 independent sums are what two dot products a cycle with a latency of 4 to 5 need; 8 fit with two
// runs.
constexpr size_t tile_tokens(size_t panels, int runs) {
  if (runs == 2) return 8 / panels;
  return panels == 4 ? 3 : panels == 2 ? 6 : 8;
}
// Units of 64 columns: 181 for 171 of MLX's 4 bits (Zen 4, docs/decisions/0023), but 104 for 112 on AVX2,
// whose sums in int16 have to be widened halfway.
inline constexpr bool kWideUnits = true;
#else
inline constexpr size_t kTilePanels = 1;
constexpr size_t tile_tokens(size_t, int runs) { return runs == 2 ? 2 : 3; }
inline constexpr bool kWideUnits = false;
#endif

// Whether 64 columns share a scale and a bias, so that activations are rounded by 64 for this weight. Codes
// of 5 and 6 bits have no such kind.
inline bool has_wide_units(const PackedAffine& w) {
  return kWideUnits && w.format.group % 64 == 0 && (w.format.bits == 4 || w.format.bits == 8);
}

template <class Kind, size_t kPanels>
inline void prefill_panels(const AffineOutput& out, const PackedAffine& w, size_t first_panel,
                           const ActivationView& x, std::byte* unpacked) {
  for (size_t p = 0; p < kPanels; ++p) unpack_panel<Kind, kPanels>(unpacked, w, first_panel, p);
  const int zero_point = w.format.zero_point.value_or(0);
  const UnpackedColumns<Kind, kPanels> columns(w, unpacked);
  size_t t = 0, exact_from = 0;
  const auto tile = [&]<size_t kTokens>(std::integral_constant<size_t, kTokens>) HWY_ATTR {
    prefill_tile<Kind, kTokens, kPanels>(out, unpacked, first_panel, zero_point, x, t);
    t += kTokens;
    if (t - exact_from < kExactTokens && t < x.tokens) return;
    if (x.exact > 0) add_exact(out, first_panel, kPanels, columns, x, exact_from, t);
    exact_from = t;
  };
  constexpr size_t kTokens = tile_tokens(kPanels, Kind::kRuns);
  while (t + kTokens <= x.tokens) tile(std::integral_constant<size_t, kTokens>());
  while (t + 2 <= x.tokens) tile(std::integral_constant<size_t, 2>());
  if (t < x.tokens) tile(std::integral_constant<size_t, 1>());
}

// The panel times tokens [first_token, x.tokens), at most kTokens of them.
template <class Kind, size_t kTokens>
inline void decode_rest(const AffineOutput& out, const PackedAffine& w, size_t panel, const ActivationView& x,
                        size_t first_token) {
  if constexpr (kTokens > 1) {
    if (x.tokens - first_token < kTokens) {
      return decode_rest<Kind, kTokens - 1>(out, w, panel, x, first_token);
    }
  }
  decode_panel<Kind, kTokens>(out, w, panel, x, first_token);
}

template <class Kind>
inline void affine_panels(const AffineOutput& out, const PackedAffine& w, size_t first_panel,
                          size_t last_panel, const ActivationView& x, std::byte* unpacked) {
  if (x.tokens <= kDecodeTokens) {
    for (size_t first = first_panel; first < last_panel; first += kExactPanels) {
      const size_t last = std::min(first + kExactPanels, last_panel);
      for (size_t panel = first; panel < last; ++panel) {
        for (size_t first_token = 0; first_token < x.tokens; first_token += kBlockTokens) {
          decode_rest<Kind, kBlockTokens>(out, w, panel, x, first_token);
        }
      }
      if (x.exact > 0) add_exact(out, first, last - first, PackedColumns<Kind>(w, first), x, 0, x.tokens);
    }
    return;
  }
  size_t p = first_panel;
  for (; p + kTilePanels <= last_panel; p += kTilePanels) {
    prefill_panels<Kind, kTilePanels>(out, w, p, x, unpacked);
  }
  if constexpr (kTilePanels > 2) {
    for (; p + 2 <= last_panel; p += 2) prefill_panels<Kind, 2>(out, w, p, x, unpacked);
  }
  for (; p < last_panel; ++p) prefill_panels<Kind, 1>(out, w, p, x, unpacked);
}

// What panels of `w` may take when unpacked: at most two vectors of scales and biases a unit.
inline size_t most_unpacked_bytes(const PackedAffine& w) {
  return w.groups() * kTilePanels * (kSteps * kStepBytes + 2 * kPanelRows * sizeof(float));
}

// Rows 16 * first_panel .. 16 * last_panel - 1 of w x for all tokens. unpacked [most_unpacked_bytes(w)],
// unused up to kDecodeTokens.
inline void affine_matmul(const RowOutput& to, const PackedAffine& w, size_t first_panel, size_t last_panel,
                          const ActivationView& x, std::byte* unpacked) {
  const AffineOutput out{to, w.unit, w.row_count};
  const auto run = [&]<class Kind>(Kind)
                       HWY_ATTR { affine_panels<Kind>(out, w, first_panel, last_panel, x, unpacked); };
  const bool zero = w.format.zero_point.has_value();
  const auto run_wide = [&]<class Wide, class Narrow>(Wide, Narrow narrow) HWY_ATTR {
    if constexpr (kWideUnits) {
      if (has_wide_units(w)) return run(Wide());
    }
    run(narrow);
  };
  switch (w.format.bits) {
    case 4:
      if (w.format.group == 16) return run(AffineKind<4, 16, true>());  // see can_pack_affine
      if (zero) return run(AffineKind<4, 32, true>());
      return run_wide(AffineKind<4, 64, false>(), AffineKind<4, 32, false>());
    case 5:
      return zero ? run(AffineKind<5, 32, true>()) : run(AffineKind<5, 32, false>());
    case 6:
      return zero ? run(AffineKind<6, 16, true>()) : run(AffineKind<6, 32, false>());
    default:
      if (w.format.nonlinear) return run(AffineKind<8, 32, true, true>());
      if (zero) return run(AffineKind<8, 32, true>());
      return run_wide(AffineKind<8, 64, false>(), AffineKind<8, 32, false>());
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_AFFINE_MATMUL_INL_H
