#include "core/checksum.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace keysieve {
namespace {

constexpr uint64_t kPrime3 = 0x165667B19E3779F9u;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63u;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5u;

template <class T>
T load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

}  // namespace

void Checksum::block(const std::byte* bytes) {
  for (size_t i = 0; i < lanes_.size(); ++i) {
    lanes_[i] = std::rotl(lanes_[i] + load<uint64_t>(bytes + 8 * i) * kPrime2, 31) * kPrime1;
  }
}

void Checksum::add(std::span<const std::byte> bytes) {
  const size_t waiting = total_ % kBlock;
  total_ += bytes.size();
  if (waiting > 0) {
    const size_t taken = std::min(bytes.size(), kBlock - waiting);
    std::copy_n(bytes.begin(), taken, rest_.begin() + static_cast<ptrdiff_t>(waiting));
    bytes = bytes.subspan(taken);
    if (waiting + taken < kBlock) return;
    block(rest_.data());
  }
  for (; bytes.size() >= kBlock; bytes = bytes.subspan(kBlock)) block(bytes.data());
  std::copy(bytes.begin(), bytes.end(), rest_.begin());
}

uint64_t Checksum::value() const {
  const auto round = [](uint64_t word) { return std::rotl(word * kPrime2, 31) * kPrime1; };
  uint64_t hash = kPrime5;
  if (total_ >= kBlock) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
           std::rotl(lanes_[3], 18);
    for (const uint64_t lane : lanes_) hash = (hash ^ round(lane)) * kPrime1 + kPrime4;
  }
  hash += total_;
  const std::byte* at = rest_.data();
  const std::byte* end = at + total_ % kBlock;
  for (; end - at >= 8; at += 8) {
    hash = std::rotl(hash ^ round(load<uint64_t>(at)), 27) * kPrime1 + kPrime4;
  }
  for (; end - at >= 4; at += 4) {
    hash = std::rotl(hash ^ load<uint32_t>(at) * kPrime1, 23) * kPrime2 + kPrime3;
  }
  for (; at < end; ++at) {
    hash = std::rotl(hash ^ static_cast<uint64_t>(*at) * kPrime5, 11) * kPrime1;
  }
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

}  // namespace keysieve
