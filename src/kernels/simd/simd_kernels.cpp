// Compiled once per SIMD target: hwy/foreach_target.h includes this file again for each, with the target's
// instructions switched on between HWY_BEFORE_NAMESPACE and HWY_AFTER_NAMESPACE.
#include "kernels/simd/simd_kernels.h"

// AVX2 (with FMA and F16C, Haswell 2013 and later), AVX-512 with VNNI (Ice Lake and Zen 4 and later) and NEON
// with dot products (Cortex-A75 and Neoverse N1 and later) are the targets; older machines run the reference
// family.
#if !KEYSIEVE_WITHOUT_AVX512
#define HWY_WANT_AVX3_DL
#endif
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/simd_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3_DL || HWY_TARGET == HWY_NEON
#include "kernels/simd/bfloat16_attention-inl.h"
#include "kernels/simd/simd_kernels-inl.h"
#endif

#if HWY_ONCE
#if HWY_ARCH_ARM_A64
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace keysieve {
namespace {

struct Family {
  std::string_view name;
  std::string_view needs;
  int64_t target;
  std::unique_ptr<Kernels> (*make)(std::string_view name);
  bool bfloat16 = false;  // needs AVX-512 BF16 besides the target, which Highway 1.0.3 does not know
};

constexpr Family kFamilies[] = {
#if HWY_TARGETS & HWY_AVX2
    {"avx2", "AVX2, FMA and F16C", HWY_AVX2, simd::N_AVX2::make},
#endif
#if HWY_TARGETS & HWY_AVX3_DL
    {"avx512", "AVX-512 with VNNI and VBMI2", HWY_AVX3_DL, simd::N_AVX3_DL::make},
    {"avx512bf16", "AVX-512 with VNNI, VBMI2 and BF16", HWY_AVX3_DL, simd::N_AVX3_DL::make_bfloat16, true},
#endif
#if HWY_TARGETS & HWY_NEON
    {"neon", "NEON with dot products", HWY_NEON, simd::N_NEON::make},
#endif
    {"", "", 0, nullptr},
};

// Highway's own test knows no dot products on Arm: there it takes NEON for granted.
int64_t supported_targets() {
#if HWY_ARCH_ARM_A64
  return (::getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0 ? HWY_NEON : 0;
#else
  return hwy::SupportedTargets();
#endif
}

bool runs(const Family& family) {
  if (family.target == 0 || (supported_targets() & family.target) == 0) return false;
#if HWY_ARCH_X86
  if (family.bfloat16) return __builtin_cpu_supports("avx512bf16");
#endif
  return true;
}

}  // namespace

std::vector<std::string_view> simd_kernel_names() {
  std::vector<std::string_view> names;
  for (const Family& family : kFamilies) {
    if (runs(family)) names.push_back(family.name);
  }
  return names;
}

std::string_view simd_kernel_needs(std::string_view name) {
  for (const Family& family : kFamilies) {
    if (family.name == name) return family.needs;
  }
  return "";
}

std::unique_ptr<Kernels> make_simd_kernels(std::string_view name) {
  for (const Family& family : kFamilies) {
    if (name == family.name && runs(family)) return family.make(family.name);
  }
  return nullptr;
}

}  // namespace keysieve
#endif  // HWY_ONCE
