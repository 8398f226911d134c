#pragma once

#include <fmt/format.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

#include "keysieve/error.h"

namespace keysieve {

static_assert(std::endian::native == std::endian::little,
              "the file readers copy little-endian values as they are");

// The value at the start of `bytes`, which may be unaligned and must be long enough.
template <class T>
T load(std::span<const std::byte> bytes) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

// Walks a file's bytes; every step is checked against the end. Errors name the file and what was being read.
class ByteReader {
 public:
  ByteReader(std::span<const std::byte> bytes, std::string_view subject) : bytes_(bytes), subject_(subject) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(uint64_t count, std::string_view what) {
    if (count > remaining()) {
      throw Error(
          ErrorKind::format, subject_,
          fmt::format("{} needs {} bytes at byte {}, {} are left", what, count, position_, remaining()),
          "a whole file", "fetch it again: it is truncated or damaged");
    }
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }

  template <class T>
  T read(std::string_view what) {
    return load<T>(take(sizeof(T), what));
  }

  // A u64 length and that many bytes.
  std::string_view read_string(std::string_view what) {
    const auto length = read<uint64_t>(what);
    const auto text = take(length, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  // Refuses a count of things that cannot all be in the rest of the file, before anything is allocated for
  // them.
  void check_count(uint64_t count, uint64_t smallest, std::string_view what) const {
    if (count > remaining() / smallest) {
      throw Error(ErrorKind::format, subject_,
                  fmt::format("{} {} in a file with {} bytes left", count, what, remaining()),
                  fmt::format("at most {}", remaining() / smallest),
                  "fetch it again: it is truncated or damaged");
    }
  }

 private:
  std::span<const std::byte> bytes_;
  std::string_view subject_;
  uint64_t position_ = 0;
};

}  // namespace keysieve
