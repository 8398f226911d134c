#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"
#include "core/memory.h"

namespace keysieve {

// One tensor of an open file. The bytes stay in the file's mapping: the file object must outlive every use.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;  // means nothing where unsupported_type is set
  // Name of a type this build cannot read ("iq4_xs", "f8_e4m3"); empty for readable ones. Such tensors can be
  // listed; require_readable() throws when one is to be used.
  std::string unsupported_type;
  std::vector<uint64_t> shape;       // outermost first: a weight is [rows, columns]; empty for a scalar
  std::span<const std::byte> data;   // may start at any byte; empty where the type's size is not known
  const MappedFile* file = nullptr;  // null where the bytes come from memory

  std::string_view type_name() const;  // "f32", "q4_k", "iq4_xs"
  uint64_t elements() const;           // product of the shape; the readers have checked that it fits
  std::string subject() const;         // "path/to/file, tensor NAME", as errors begin
};

// "[576, 1536]"
std::string shape_text(std::span<const uint64_t> shape);

// Throws Error{unsupported} naming file, tensor and type where the type is one this build cannot read.
void require_readable(const TensorInfo& tensor);

// Throws Error{mismatch} unless the tensor has exactly this shape; and Error{unsupported} as above.
void require_shape(const TensorInfo& tensor, std::span<const uint64_t> shape);

}  // namespace keysieve
