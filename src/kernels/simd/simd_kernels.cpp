// Compiled once per SIMD target: hwy/foreach_target.h includes this file again for each, with the target's
// instructions switched on between HWY_BEFORE_NAMESPACE and HWY_AFTER_NAMESPACE.
#include "kernels/simd/simd_kernels.h"

// AVX2 (with FMA and F16C, Haswell 2013 and later) and AVX-512 with VNNI (Ice Lake and Zen 4 and later) are
// the targets; older machines run the reference family.
#define HWY_WANT_AVX3_DL
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/simd_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3_DL
#include "kernels/simd/simd_kernels-inl.h"
#endif

#if HWY_ONCE
namespace keysieve {
namespace {

struct Family {
  std::string_view name;
  int64_t target;
  std::unique_ptr<Kernels> (*make)(std::string_view name);
};

constexpr Family kFamilies[] = {
#if HWY_TARGETS & HWY_AVX2
    {"avx2", HWY_AVX2, simd::N_AVX2::make},
#endif
#if HWY_TARGETS & HWY_AVX3_DL
    {"avx512", HWY_AVX3_DL, simd::N_AVX3_DL::make},
#endif
    {"", 0, nullptr},
};

}  // namespace

std::vector<std::string_view> simd_kernel_names() {
  std::vector<std::string_view> names;
  for (const Family& family : kFamilies) {
    if (family.target != 0 && (hwy::SupportedTargets() & family.target) != 0) names.push_back(family.name);
  }
  return names;
}

std::unique_ptr<Kernels> make_simd_kernels(std::string_view name) {
  for (const Family& family : kFamilies) {
    if (family.target == 0 || name != family.name) continue;
    if ((hwy::SupportedTargets() & family.target) != 0) return family.make(family.name);
  }
  return nullptr;
}

}  // namespace keysieve
#endif  // HWY_ONCE
