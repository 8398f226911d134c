// Any bytes as a safetensors file: it must open or throw Error, and what opened must be readable to the last
// value.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "formats/matrix.h"
#include "formats/safetensors.h"
#include "keysieve/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto file =
        keysieve::SafetensorsFile::from_bytes(std::as_bytes(std::span(data, size)), "fuzz.safetensors");
    for (const keysieve::TensorInfo& tensor : file.tensors()) {
      try {
        (void)keysieve::read_vector(tensor);
        const auto matrix = keysieve::make_matrix(tensor);
        std::vector<float> values(matrix->columns());
        matrix->read_values(matrix->rows() - 1, values);
      } catch (const keysieve::Error&) {
      }
    }
  } catch (const keysieve::Error&) {
  }
  return 0;
}
