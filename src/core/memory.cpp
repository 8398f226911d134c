#include "core/memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "core/system_reason.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

// Closes a descriptor whatever path leaves the scope.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

namespace detail {

void AlignedDelete::operator()(std::byte* memory) const {
  if (owned) ::operator delete[](memory, std::align_val_t{kAlignment});
}

size_t checked_product(size_t count, size_t size) {
  if (size != 0 && count > std::numeric_limits<ptrdiff_t>::max() / size) {
    throw Error(ErrorKind::resource, "memory", fmt::format("a request for {} x {} bytes", count, size),
                "a size that fits the address space");
  }
  return count * size;
}

std::unique_ptr<std::byte[], AlignedDelete> allocate_aligned(size_t bytes) {
  // Whole vectors, so that kernels may read (never write) up to the next 64-byte boundary.
  const size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  auto* memory = static_cast<std::byte*>(
      ::operator new[](padded == 0 ? kAlignment : padded, std::align_val_t{kAlignment}, std::nothrow));
  if (memory == nullptr) {
    throw Error(ErrorKind::resource, "memory", fmt::format("{} bytes could not be allocated", bytes), {},
                "use a smaller model, context or budget");
  }
  return std::unique_ptr<std::byte[], AlignedDelete>(memory);
}

}  // namespace detail

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) throw Error(ErrorKind::file, path.string(), system_reason(errno), "a readable file");
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) throw Error(ErrorKind::file, path.string(), system_reason(errno));
  if (!S_ISREG(status.st_mode)) throw Error(ErrorKind::file, path.string(), "not a regular file", "a file");
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;
  void* memory = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (memory == MAP_FAILED) {
    throw Error(ErrorKind::file, path.string(), "cannot be mapped: " + system_reason(errno));
  }
  data_ = static_cast<const std::byte*>(memory);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(std::span<const std::byte> part) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(part.data());
  const uintptr_t first = begin / page * page;
  const uintptr_t last = (begin + part.size()) / page * page;  // the last, shared page stays
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

ReservedMemory::ReservedMemory(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  void* memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw Error(ErrorKind::resource, "memory", fmt::format("{} bytes of address space refused", bytes), {},
                "use a smaller context");
  }
  data_ = static_cast<std::byte*>(memory);
}

ReservedMemory::ReservedMemory(ReservedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

ReservedMemory& ReservedMemory::operator=(ReservedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

ReservedMemory::~ReservedMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

void ReservedMemory::discard() {
  if (data_ != nullptr) ::madvise(data_, size_, MADV_DONTNEED);
}

std::byte* Arena::allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t{1} << 21;
  // Only address space: what is not used costs nothing. Few chunks, since each may end on a page half used.
  constexpr size_t kChunk = size_t{1} << 28;
  const size_t padded =
      std::max(kAlignment, detail::checked_product((bytes + kAlignment - 1) / kAlignment, kAlignment));
  if (padded > left_) {
    chunks_.emplace_back(std::max(kChunk, padded) + kHugePage);
    ReservedMemory& chunk = chunks_.back();
    const auto begin = reinterpret_cast<uintptr_t>(chunk.data());
    const size_t skipped = (kHugePage - begin % kHugePage) % kHugePage;
    next_ = chunk.data() + skipped;
    left_ = chunk.size() - skipped;
    // Refused where the system has no huge pages: nothing is lost but their speed.
    ::madvise(next_, left_, MADV_HUGEPAGE);
  }
  left_ -= padded;
  return std::exchange(next_, next_ + padded);
}

uint64_t peak_resident_bytes() {
  struct rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

void return_freed_memory() {
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

}  // namespace keysieve
