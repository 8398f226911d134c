#pragma once

#include <memory>

#include "kernels/kernels.h"

namespace keysieve {

// Plain scalar fp32 kernels on exactly dequantised weights: the yardstick the SIMD families are held to, and
// a way to run any model without trusting them. Sums run in double.
std::unique_ptr<Kernels> make_reference_kernels();

}  // namespace keysieve
