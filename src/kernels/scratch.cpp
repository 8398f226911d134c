#include <cstdint>

#include "core/memory.h"
#include "kernels/kernels.h"

namespace keysieve {
namespace {

std::byte* aligned(std::vector<std::byte>& memory, size_t bytes) {
  if (memory.size() < bytes + 2 * kAlignment) memory.resize(bytes + 2 * kAlignment);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (kAlignment - address % kAlignment) % kAlignment;
}

}  // namespace

std::byte* worker_scratch(KernelScratch& scratch, int worker, size_t bytes) {
  return aligned(scratch.per_worker.at(static_cast<size_t>(worker)), bytes);
}

std::byte* shared_scratch(KernelScratch& scratch, size_t bytes) { return aligned(scratch.shared, bytes); }

}  // namespace keysieve
