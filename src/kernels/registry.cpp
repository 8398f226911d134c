#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <string>

#include "kernels/kernels.h"
#include "kernels/reference/reference_kernels.h"
#include "kernels/simd/simd_kernels.h"
#include "keysieve/error.h"

namespace keysieve {

std::vector<std::string_view> available_kernels() {
  std::vector<std::string_view> names = {"reference"};
  for (const std::string_view name : simd_kernel_names()) names.push_back(name);
  return names;
}

std::shared_ptr<const Kernels> make_kernels(std::string_view name) {
  const std::vector<std::string_view> names = available_kernels();
  std::string wanted(name);
  if (wanted == "auto") {
    const char* forced = std::getenv("KEYSIEVE_KERNELS");
    wanted = forced != nullptr && *forced != '\0' ? forced : std::string(names.back());
  }
  if (wanted == "reference") return make_reference_kernels();
  if (auto kernels = make_simd_kernels(wanted)) return kernels;
  const std::string_view needs = simd_kernel_needs(wanted);
  const std::string why = needs.empty() ? "" : fmt::format(", which needs {}", needs);
  throw Error(ErrorKind::usage, "kernels", fmt::format("\"{}\"{}", wanted, why),
              fmt::format("one this machine can run: auto, {}", fmt::join(names, ", ")));
}

}  // namespace keysieve
