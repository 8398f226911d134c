#include "kernels/simd/simd_kernels.h"

namespace keysieve {

std::vector<std::string_view> simd_kernel_names() { return {}; }
std::unique_ptr<Kernels> make_simd_kernels(std::string_view) { return nullptr; }

}  // namespace keysieve
