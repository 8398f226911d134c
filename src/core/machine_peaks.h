#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/memory.h"
#include "core/threads.h"

namespace keysieve {

// What this machine can do at best, measured: the limits that rates are held against.

// A stretch of int8 dot products from registers on the calling thread, a few microseconds long, with the
// instruction that kernel family `family` multiplies weights by: "avx512" and "avx512bf16" vpdpbusd, "avx2"
// vpmaddubsw and vpmaddwd, "neon" sdot. Returns the multiply-adds done; 0, and nothing is done, for any other
// name and for a family that this program was not built for. The machine must be able to run the family.
uint64_t run_int8_dots(std::string_view family);

// Memory too large for any cache to hold, on huge pages where the system has them, to be read end to end.
class ReadStretch {
 public:
  // `bytes` is rounded up to whole 2 MB. The memory is touched at once, by all threads. Throws
  // Error{resource}.
  ReadStretch(size_t bytes, const Threads& threads);
  size_t bytes() const { return bytes_; }
  // Reads all of it once on all threads.
  void read(const Threads& threads) const;

 private:
  Arena memory_;
  size_t bytes_;
  uint64_t* words_;
};

// Best rates of a few short repeats on all threads.
double measure_int8_dots(std::string_view family, const Threads& threads);  // multiply-adds a second, or 0
double measure_read(const ReadStretch& stretch, const Threads& threads);    // bytes a second

}  // namespace keysieve
