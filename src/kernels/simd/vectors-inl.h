// Included once per SIMD target (no include guard by design of hwy/foreach_target.h, but one per target
// below).
#if defined(KEYSIEVE_SIMD_VECTORS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_VECTORS_INL_H
#undef KEYSIEVE_SIMD_VECTORS_INL_H
#else
#define KEYSIEVE_SIMD_VECTORS_INL_H
#endif

#include <hwy/highway.h>

#include "core/half.h"
#include "kernels/fast_exp.h"
#include "kernels/kernels.h"

// Highway 1.0.3 compiles its AVX3_DL target (Ice Lake, Zen 4) without naming AVX-512 VNNI to the compiler,
// though it checks at run time that the machine has it. The dot products here need it named; the rest must
// repeat Highway's own list, or its functions could not be inlined.
#if HWY_TARGET == HWY_AVX3_DL
#undef HWY_TARGET_STR
#define HWY_TARGET_STR \
  HWY_TARGET_STR_AVX3  \
  ",vpclmulqdq,avx512vbmi,avx512vbmi2,vaes,avxvnni,avx512bitalg,avx512vpopcntdq,avx512vnni"
#endif

// On Arm, Highway leaves instructions beyond the first 64-bit machines to the compiler's command line. The
// dot product extension is named here instead: for these functions alone, so that the rest of the program
// runs on machines without it.
#if HWY_ARCH_ARM_A64
#undef HWY_BEFORE_NAMESPACE
#define HWY_BEFORE_NAMESPACE()    \
  HWY_PUSH_ATTRIBUTES("+dotprod") \
  static_assert(true, "for the semicolon")
#undef HWY_AFTER_NAMESPACE
#define HWY_AFTER_NAMESPACE() \
  HWY_POP_ATTRIBUTES          \
  static_assert(true, "for the semicolon")
#undef HWY_ATTR
#define HWY_ATTR __attribute__((target("+dotprod")))
#endif

HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using I32 = hn::ScalableTag<int32_t>;
using U32 = hn::ScalableTag<uint32_t>;
using VF = hn::Vec<F32>;
using VI = hn::Vec<I32>;
inline constexpr size_t kLanes = HWY_LANES(float);  // 4 (NEON), 8 or 16
inline constexpr size_t kVectorsPerPanel = 16 / kLanes;
inline constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3_DL || HWY_ARCH_ARM_A64;  // 32, AVX2 has 16

HWY_INLINE VF load_half(const Half* values) {
  const hn::Rebind<hwy::float16_t, F32> d16;
  return hn::PromoteTo(F32(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(values)));
}

HWY_INLINE VF load_bfloat16(const BFloat16* values) {
  const hn::Rebind<uint16_t, F32> d16;
  const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(U32(), hn::LoadU(d16, &values->bits)));
  return hn::BitCast(F32(), bits);
}

HWY_INLINE void store_half(Half* out, VF values) {
  const hn::Rebind<hwy::float16_t, F32> d16;
  hn::StoreU(hn::DemoteTo(d16, values), d16, reinterpret_cast<hwy::float16_t*>(out));
}

// One vector of keys or values of any store type, from element `i` of a row; i8: the codes, not yet times the
// row's scale.
template <KvType kType>
HWY_INLINE VF load_kv(const std::byte* row, size_t i) {
  if constexpr (kType == KvType::f32) {
    return hn::LoadU(F32(), reinterpret_cast<const float*>(row) + i);
  } else if constexpr (kType == KvType::f16) {
    return load_half(reinterpret_cast<const Half*>(row) + i);
  } else {
    const hn::Rebind<int8_t, F32> d8;
    return hn::ConvertTo(F32(),
                         hn::PromoteTo(I32(), hn::LoadU(d8, reinterpret_cast<const int8_t*>(row) + i)));
  }
}

// One value, as load_kv().
template <KvType kType>
HWY_INLINE float load_one(const std::byte* row, size_t i) {
  if constexpr (kType == KvType::f32) {
    return reinterpret_cast<const float*>(row)[i];
  } else if constexpr (kType == KvType::f16) {
    return to_float(reinterpret_cast<const Half*>(row)[i]);
  } else {
    return static_cast<float>(reinterpret_cast<const int8_t*>(row)[i]);
  }
}

// What an i8 row's codes are multiplied with.
HWY_INLINE float kv_scale(const std::byte* row, size_t head_dim) {
  return *reinterpret_cast<const float*>(row + kv_scale_at(head_dim));
}

// fast_exp for a vector: the same operations in the same order, so bitwise equal results.
HWY_INLINE VF exp_of(VF x) {
  const F32 d;
  x = hn::Max(x, hn::Set(d, FastExp::kLowest));
  const VF n = hn::Round(hn::Mul(x, hn::Set(d, FastExp::kLog2E)));
  VF r = hn::NegMulAdd(n, hn::Set(d, FastExp::kLn2High), x);
  r = hn::NegMulAdd(n, hn::Set(d, FastExp::kLn2Low), r);
  VF p = hn::Set(d, FastExp::kP0);
  p = hn::MulAdd(p, r, hn::Set(d, FastExp::kP1));
  p = hn::MulAdd(p, r, hn::Set(d, FastExp::kP2));
  p = hn::MulAdd(p, r, hn::Set(d, FastExp::kP3));
  p = hn::MulAdd(p, r, hn::Set(d, FastExp::kP4));
  p = hn::MulAdd(p, r, hn::Set(d, FastExp::kP5));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  return VF{_mm512_scalef_ps(p.raw, n.raw)};  // p 2^n as below, and as exact, in one operation
#else
  const VI power = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(I32(), n), hn::Set(I32(), 127)));
  return hn::Mul(p, hn::BitCast(F32(), power));
#endif
}

// Asks for a cache line, to be in L2 when it is read. Asking for it in L1 waits for one of the few lines that
// may be on their way there: SmolLM2's decode after 7,650 tokens, 512 rows a KV head, goes from 203 to 237
// tokens/s (Zen 4, docs/decisions/0024-asking-l2.md).
HWY_INLINE void prefetch_to_l2(const void* line) { __builtin_prefetch(line, 0, 2); }

struct Plus {
  HWY_INLINE VF operator()(VF a, VF b) const { return hn::Add(a, b); }
};
struct Larger {
  HWY_INLINE VF operator()(VF a, VF b) const { return hn::Max(a, b); }
};

// Horizontal sums (or maxima) of kLanes vectors at once, 3 operations each instead of 8 to 10, in two stages
// so that no more than 4 vectors need be held: quad_of four vectors holds, in each 128-bit block, partial
// sums of the four; sum_of_quads adds over the blocks of kLanes / 4 such quads, lane i of the result being
// the sum of vector i.
template <class Fold = Plus>
HWY_INLINE VF quad_of(const VF* v, const Fold& fold = {}) {
  const hn::Repartition<double, F32> pairs;
  const VF ab = fold(hn::InterleaveLower(F32(), v[0], v[1]), hn::InterleaveUpper(F32(), v[0], v[1]));
  const VF cd = fold(hn::InterleaveLower(F32(), v[2], v[3]), hn::InterleaveUpper(F32(), v[2], v[3]));
  const auto ab2 = hn::BitCast(pairs, ab);
  const auto cd2 = hn::BitCast(pairs, cd);
  return fold(hn::BitCast(F32(), hn::InterleaveLower(pairs, ab2, cd2)),
              hn::BitCast(F32(), hn::InterleaveUpper(pairs, ab2, cd2)));
}

template <class Fold = Plus>
HWY_INLINE VF sum_of_quads(const VF* quads, [[maybe_unused]] const Fold& fold = {}) {
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  const auto blocks = [&](VF a, VF b) HWY_ATTR {
    return fold(VF{_mm512_shuffle_f32x4(a.raw, b.raw, 0x88)}, VF{_mm512_shuffle_f32x4(a.raw, b.raw, 0xDD)});
  };
  return blocks(blocks(quads[0], quads[1]), blocks(quads[2], quads[3]));
#elif HWY_ARCH_X86
  return fold(VF{_mm256_permute2f128_ps(quads[0].raw, quads[1].raw, 0x20)},
              VF{_mm256_permute2f128_ps(quads[0].raw, quads[1].raw, 0x31)});
#else
  return quads[0];
#endif
}

// Up to kLanes floats, zeros after them, and the first `count` lanes to memory. Highway's masked forms read
// and rewrite whole vectors on NEON: past the end of an array, or over a neighbour that another thread
// writes.
HWY_INLINE VF load_first(const float* from, size_t count) {
  if (count >= kLanes) return hn::LoadU(F32(), from);
#if HWY_ARCH_X86
  return hn::MaskedLoad(hn::FirstN(F32(), count), F32(), from);
#else
  HWY_ALIGN float lanes[kLanes] = {};
  for (size_t i = 0; i < count; ++i) lanes[i] = from[i];
  return hn::Load(F32(), lanes);
#endif
}
HWY_INLINE void store_first(VF v, float* to, size_t count) {
#if HWY_ARCH_X86
  hn::BlendedStore(v, hn::FirstN(F32(), count), F32(), to);
#else
  HWY_ALIGN float lanes[kLanes];
  hn::Store(v, F32(), lanes);
  for (size_t i = 0; i < count && i < kLanes; ++i) to[i] = lanes[i];
#endif
}
}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_VECTORS_INL_H
