#include "formats/tensor_info.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "keysieve/error.h"

namespace keysieve {

std::string_view TensorInfo::type_name() const {
  return unsupported_type.empty() ? to_string(dtype) : std::string_view(unsupported_type);
}

uint64_t TensorInfo::elements() const {
  uint64_t count = 1;
  for (const uint64_t dimension : shape) count *= dimension;
  return count;
}

std::string TensorInfo::subject() const {
  if (file == nullptr) return "tensor " + name;
  return file->path().string() + ", tensor " + name;
}

std::string shape_text(std::span<const uint64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape.begin(), shape.end(), ", "));
}

void require_readable(const TensorInfo& tensor) {
  if (tensor.unsupported_type.empty()) return;
  throw Error(ErrorKind::unsupported, tensor.subject(),
              fmt::format("type {} cannot be read", tensor.unsupported_type),
              "f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q3_k, q4_k, q5_k, q6_k, iq4_nl or iq4_xs",
              "take another quantisation of this model, such as Q4_K_M or Q8_0");
}

void require_shape(const TensorInfo& tensor, std::span<const uint64_t> shape) {
  require_readable(tensor);
  if (std::ranges::equal(tensor.shape, shape)) return;
  throw Error(ErrorKind::mismatch, tensor.subject(), "shape " + shape_text(tensor.shape), shape_text(shape));
}

}  // namespace keysieve
