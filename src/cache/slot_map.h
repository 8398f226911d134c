#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/memory.h"

namespace keysieve {

// Where each position of a long text lies, if it lies anywhere: two bytes a position where 65,535 slots are
// enough, four otherwise (at 32,000 tokens of 24 layers with two sets 3 MB instead of 6), in memory that is
// taken page by page as positions come.
class SlotMap {
 public:
  static constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

  SlotMap() = default;
  // Throws Error{resource}.
  SlotMap(size_t positions, size_t slots)
      : wide_(slots > std::numeric_limits<uint16_t>::max()), memory_(positions * (wide_ ? 4 : 2)) {}

  // kNone: nowhere.
  uint32_t operator[](size_t position) const {
    return (wide_ ? load<uint32_t>(position) : load<uint16_t>(position)) - 1;
  }
  void set(size_t position, uint32_t slot) {
    wide_ ? store<uint32_t>(position, slot + 1) : store<uint16_t>(position, slot + 1);
  }
  void clear() { memory_.discard(); }
  uint64_t bytes(size_t positions) const { return positions * (wide_ ? 4 : 2); }

 private:
  // Kept is slot + 1, so that fresh memory says "nowhere".
  template <class T>
  uint32_t load(size_t position) const {
    T value;
    std::memcpy(&value, memory_.data() + position * sizeof(T), sizeof(T));
    return value;
  }
  template <class T>
  void store(size_t position, uint32_t value) {
    const T narrow = static_cast<T>(value);
    std::memcpy(memory_.data() + position * sizeof(T), &narrow, sizeof(T));
  }

  bool wide_ = false;
  ReservedMemory memory_;
};

}  // namespace keysieve
