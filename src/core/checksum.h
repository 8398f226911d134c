#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace keysieve {

// XXH64 (Collet, xxHash 0.8 specification) with seed 0, over bytes given in any pieces: tells damage, not
// malice. About 10 GB/s.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes);
  uint64_t value() const;

 private:
  void block(const std::byte* bytes);

  static constexpr size_t kBlock = 32;
  static constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u;
  static constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Fu;
  std::array<uint64_t, 4> lanes_{kPrime1 + kPrime2, kPrime2, 0, 0 - kPrime1};
  std::array<std::byte, kBlock> rest_{};
  uint64_t total_ = 0;  // bytes; the last total_ % kBlock are in rest_
};

}  // namespace keysieve
