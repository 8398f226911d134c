#pragma once

#include <string>
#include <vector>

namespace keysieve {

// "0.1.0"
std::string version();

// The kernel families this machine can run, slowest first: {"reference", "avx2", "avx512", "avx512bf16"} or
// {"reference", "neon"}.
std::vector<std::string> kernel_families();

}  // namespace keysieve
