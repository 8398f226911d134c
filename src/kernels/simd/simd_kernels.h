#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "kernels/kernels.h"

namespace keysieve {

// The SIMD families compiled in that this machine can run, slowest first ("avx2", "avx512" and "avx512bf16",
// or "neon").
std::vector<std::string_view> simd_kernel_names();

// The instructions that a family compiled in asks of a machine, for messages; empty for any other name.
std::string_view simd_kernel_needs(std::string_view name);

// One of them, or null for any other name.
std::unique_ptr<Kernels> make_simd_kernels(std::string_view name);

}  // namespace keysieve
