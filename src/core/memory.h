#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

namespace keysieve {

// 64 bytes: one cache line and one 512-bit vector.
inline constexpr size_t kAlignment = 64;

namespace detail {
struct AlignedDelete {
  bool owned = true;  // false: an arena's
  void operator()(std::byte* memory) const;
};
std::unique_ptr<std::byte[], AlignedDelete> allocate_aligned(size_t bytes);
size_t checked_product(size_t count, size_t size);
}  // namespace detail

class Arena;

// A fixed-size array of trivial T on a 64-byte boundary, uninitialised unless asked. Throws Error{resource}.
template <class T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(size_t count)
      : memory_(detail::allocate_aligned(detail::checked_product(count, sizeof(T)))), count_(count) {}
  // From an arena, which must outlive the array; null: as above.
  AlignedArray(size_t count, Arena* arena);
  AlignedArray(size_t count, T value) : AlignedArray(count) {
    for (size_t i = 0; i < count; ++i) data()[i] = value;
  }
  T* data() { return reinterpret_cast<T*>(memory_.get()); }
  const T* data() const { return reinterpret_cast<const T*>(memory_.get()); }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return data()[i]; }
  std::span<T> span() { return {data(), count_}; }
  std::span<const T> span() const { return {data(), count_}; }

 private:
  std::unique_ptr<std::byte[], detail::AlignedDelete> memory_;
  size_t count_ = 0;
};

// A whole file mapped read-only. Movable, not copyable.
class MappedFile {
 public:
  MappedFile() = default;
  // Throws Error{file} if the path is missing, a directory, or cannot be mapped. An empty file maps to no
  // bytes.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }
  // Tells the kernel these bytes will not be read again soon: they leave the resident set. Called after
  // packing a tensor, so that a weight is never in memory twice. `part` must lie inside bytes().
  void release(std::span<const std::byte> part) const;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Address space reserved at its final size and given memory by the kernel page by page when first written, so
// a cache that grows with the context is never copied and never counts more than it holds. Zero-filled.
class ReservedMemory {
 public:
  ReservedMemory() = default;
  explicit ReservedMemory(size_t bytes);  // throws Error{resource}
  ReservedMemory(ReservedMemory&& other) noexcept;
  ReservedMemory& operator=(ReservedMemory&& other) noexcept;
  ~ReservedMemory();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  // Gives all pages back to the kernel; the content reads as zero afterwards.
  void discard();

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Memory for arrays that live as long as it does, one after another on 2 MB pages where the system has them:
// a model's weights are read from end to end for every token, and 4 KB pages cost 6% of that (decode of a
// 135M model at 500 tokens, 273 against 291 tokens/s, 2-core AMD EPYC, 2026-11-25). Not for several threads
// at once.
class Arena {
 public:
  std::byte* allocate(size_t bytes);  // on a 64-byte boundary, zero-filled; throws Error{resource}

 private:
  std::vector<ReservedMemory> chunks_;
  std::byte* next_ = nullptr;  // in the last chunk
  size_t left_ = 0;
};

template <class T>
AlignedArray<T>::AlignedArray(size_t count, Arena* arena) : count_(count) {
  const size_t bytes = detail::checked_product(count, sizeof(T));
  memory_ = arena == nullptr ? detail::allocate_aligned(bytes)
                             : decltype(memory_)(arena->allocate(bytes), detail::AlignedDelete{false});
}

// Hands freed memory back to the system, where the C library can (glibc's malloc_trim): what loading leaves
// behind lies between what stays, and would count for as long as the process lives.
void return_freed_memory();

// Highest resident set size of this process so far, in bytes (Linux: VmHWM).
uint64_t peak_resident_bytes();

}  // namespace keysieve
