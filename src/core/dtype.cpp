#include "core/dtype.h"

#include <fmt/format.h>

#include <array>
#include <limits>

#include "keysieve/error.h"

namespace keysieve {

const DTypeTraits& traits(DType dtype) {
  static constexpr std::array<DTypeTraits, 24> kTraits = {{
      {"f32", 1, 4},        {"f16", 1, 2}, {"bf16", 1, 2}, {"f64", 1, 8},    {"i8", 1, 1},
      {"i16", 1, 2},        {"i32", 1, 4}, {"i64", 1, 8},  {"u8", 1, 1},     {"u16", 1, 2},
      {"u32", 1, 4},        {"u64", 1, 8}, {"bool", 1, 1}, {"q4_0", 32, 18},  // f16 scale, 16 bytes of codes
      {"q4_1", 32, 20},      // f16 scale, f16 minimum, 16 bytes
      {"q5_0", 32, 22},      // f16 scale, 4 bytes of fifth bits, 16 bytes
      {"q5_1", 32, 24},      // f16 scale, f16 minimum, 4 bytes, 16 bytes
      {"q8_0", 32, 34},      // f16 scale, 32 signed bytes
      {"q4_k", 256, 144},    // f16 d, f16 dmin, 12 bytes of 6-bit scales and minimums, 128 bytes
      {"q5_k", 256, 176},    // the same and 32 bytes of fifth bits
      {"q6_k", 256, 210},    // 128 low nibbles, 64 bytes of high pairs, 16 signed scales, f16 d
      {"q3_k", 256, 110},    // 32 bytes of third bits, 64 of low pairs, 12 of 6-bit scales, f16 d
      {"iq4_nl", 32, 18},    // f16 scale, 16 bytes of indices into a table
      {"iq4_xs", 256, 136},  // f16 d, 2 and 4 bytes of 6-bit scales, 128 bytes of the same indices
  }};
  return kTraits[static_cast<size_t>(dtype)];
}

uint64_t checked_bytes(DType dtype, uint64_t count, std::string_view subject) {
  const DTypeTraits& t = traits(dtype);
  if (count % t.block != 0) {
    throw Error(ErrorKind::format, subject, fmt::format("{} values of type {}", count, t.name),
                fmt::format("a multiple of {}", t.block));
  }
  const uint64_t blocks = count / t.block;
  if (blocks > std::numeric_limits<int64_t>::max() / t.block_bytes) {
    throw Error(ErrorKind::format, subject, fmt::format("{} values of type {}", count, t.name),
                "a size that fits memory");
  }
  return blocks * t.block_bytes;
}

}  // namespace keysieve
