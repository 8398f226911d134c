#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

namespace keysieve {

// Where a part of a session's state is written to, and where it is read from: bytes one after another.
class StateWriter {
 public:
  virtual ~StateWriter() = default;
  virtual void write(std::span<const std::byte> bytes) = 0;  // throws Error{file}

  template <class T>
  void value(const T& one) {
    static_assert(std::is_trivially_copyable_v<T>);
    write(std::as_bytes(std::span(&one, 1)));
  }
};

class StateReader {
 public:
  virtual ~StateReader() = default;
  virtual void read(std::span<std::byte> bytes) = 0;  // throws Error{format} where there are not so many

  template <class T>
  T value() {
    static_assert(std::is_trivially_copyable_v<T>);
    T one;
    read(std::as_writable_bytes(std::span(&one, 1)));
    return one;
  }
};

}  // namespace keysieve
