// Any bytes as a GGUF file: it must open or throw Error, and what opened must be readable to the last value.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "formats/gguf.h"
#include "formats/matrix.h"
#include "keysieve/error.h"

namespace {

constexpr uint64_t kMaxColumns = uint64_t{1} << 20;

void read_last_row(const keysieve::TensorInfo& tensor) {
  const auto matrix = keysieve::make_matrix(tensor);
  if (matrix->columns() > kMaxColumns) return;
  std::vector<float> values(matrix->columns());
  matrix->read_values(matrix->rows() - 1, values);
  if (const auto format = matrix->affine()) {
    std::vector<uint8_t> codes(matrix->columns());
    std::vector<float> scales(matrix->columns() / static_cast<size_t>(format->group));
    std::vector<float> biases(scales.size());
    matrix->read_codes(0, codes, scales, biases);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto file = keysieve::GgufFile::from_bytes(std::as_bytes(std::span(data, size)), "fuzz.gguf");
    for (const keysieve::GgufEntry& entry : file.metadata()) {
      (void)keysieve::to_json(entry, 16);
      try {
        (void)file.get<uint32_t>(entry.key);
        (void)file.get<std::vector<float>>(entry.key);
      } catch (const keysieve::Error&) {
      }
    }
    for (const keysieve::TensorInfo& tensor : file.tensors()) {
      try {
        if (tensor.shape.size() == 2) {
          read_last_row(tensor);
        } else {
          (void)keysieve::read_vector(tensor);
        }
      } catch (const keysieve::Error&) {
      }
    }
  } catch (const keysieve::Error&) {
  }
  return 0;
}
