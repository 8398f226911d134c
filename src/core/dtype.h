#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace keysieve {

// Every element type a model file may hold. Block types (q4_0 ... iq4_xs) are GGUF's.
enum class DType : uint8_t {
  f32,
  f16,
  bf16,
  f64,
  i8,
  i16,
  i32,
  i64,
  u8,
  u16,
  u32,
  u64,
  boolean,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q4_k,
  q5_k,
  q6_k,
  q3_k,
  iq4_nl,
  iq4_xs
};

struct DTypeTraits {
  std::string_view name;  // lower case, as `inspect` prints it: "f32", "q4_k"
  size_t block;           // values per block: 1 for plain types, 32 or 256 for block types
  size_t block_bytes;     // bytes per block
};

const DTypeTraits& traits(DType dtype);

inline std::string_view to_string(DType dtype) { return traits(dtype).name; }
inline bool is_block_quantized(DType dtype) { return traits(dtype).block > 1; }

// Bytes of `count` values. `count` must be a multiple of the block (checked by the file readers); throws
// Error{format} naming `subject` where it is not, or where the product overflows.
uint64_t checked_bytes(DType dtype, uint64_t count, std::string_view subject);

}  // namespace keysieve
