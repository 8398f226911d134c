#include "cache/cold_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

class MemoryColdStore final : public ColdStore {
 public:
  explicit MemoryColdStore(const CacheShape& shape) : ColdStore(shape) {
    const size_t bytes = detail::checked_product(shape.capacity, record_bytes());
    for (size_t i = 0; i < shape.layers; ++i) layers_.emplace_back(bytes);
  }
  void write(size_t layer, size_t first, std::span<const std::byte> records) override {
    std::memcpy(layers_[layer].data() + first * record_bytes(), records.data(), records.size());
  }
  void read(size_t layer, size_t position, size_t kv_head, std::byte* key, std::byte* value) const override {
    const std::byte* rows = layers_[layer].data() + position * record_bytes() + 2 * kv_head * row_bytes();
    std::memcpy(key, rows, row_bytes());
    std::memcpy(value, rows + row_bytes(), row_bytes());
  }
  void read_records(size_t layer, size_t first, std::span<std::byte> records) const override {
    std::memcpy(records.data(), layers_[layer].data() + first * record_bytes(), records.size());
  }
  void clear() override {
    for (ReservedMemory& layer : layers_) layer.discard();
  }

 private:
  std::vector<ReservedMemory> layers_;  // [layers] of [capacity, record_bytes]
};

// Layers grow together, so each takes space in runs of this many positions: the file has no holes, and a call
// for space is made once in 64 tokens.
constexpr size_t kRun = 64;

class FileColdStore final : public ColdStore {
 public:
  FileColdStore(const CacheShape& shape, const std::filesystem::path& folder)
      : ColdStore(shape), subject_("cold store in " + folder.string()), runs_(shape.layers) {
    // A file without a name cannot be left behind; not every file system has them.
    file_ = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file_ < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
      std::string name = (folder / "keysieve-cold-XXXXXX").string();
      file_ = ::mkostemp(name.data(), O_CLOEXEC);
      if (file_ >= 0) ::unlink(name.c_str());
    }
    if (file_ < 0) fail("cannot be created: " + reason(errno), "name a writable folder with --cold-store");
  }
  FileColdStore(const FileColdStore&) = delete;
  FileColdStore& operator=(const FileColdStore&) = delete;
  ~FileColdStore() override { ::close(file_); }

  void write(size_t layer, size_t first, std::span<const std::byte> records) override {
    const size_t count = records.size() / record_bytes();
    require_whole();
    while (runs_[layer].size() * kRun < first + count) take_run(layer);
    for (size_t done = 0; done < count;) {
      const size_t position = first + done;
      const size_t part = std::min(count - done, kRun - position % kRun);
      write_at(place(layer, position), records.subspan(done * record_bytes(), part * record_bytes()));
      done += part;
    }
  }

  void read(size_t layer, size_t position, size_t kv_head, std::byte* key, std::byte* value) const override {
    const iovec parts[2] = {{key, row_bytes()}, {value, row_bytes()}};
    read_at(place(layer, position) + 2 * kv_head * row_bytes(), parts);
  }

  void read_records(size_t layer, size_t first, std::span<std::byte> records) const override {
    const size_t count = records.size() / record_bytes();
    for (size_t done = 0; done < count;) {
      const size_t position = first + done;
      const size_t part = std::min(count - done, kRun - position % kRun);
      const iovec whole[1] = {{records.data() + done * record_bytes(), part * record_bytes()}};
      read_at(place(layer, position), whole);
      done += part;
    }
  }

  void clear() override {
    for (auto& runs : runs_) runs.clear();
    size_ = 0;
    if (::ftruncate(file_, 0) != 0) fail("cannot be emptied: " + reason(errno));
  }

 private:
  static std::string reason(int error) { return std::generic_category().message(error); }
  [[noreturn]] void fail(const std::string& found, std::string_view way_out = {}) const {
    throw Error(ErrorKind::file, subject_, found, {}, way_out);
  }

  uint64_t place(size_t layer, size_t position) const {
    return runs_[layer][position / kRun] + position % kRun * record_bytes();
  }

  // Writing behind a lost end would bring the file back to its size with zeros for what was lost.
  void require_whole() const {
    struct stat status{};
    if (::fstat(file_, &status) != 0) fail("cannot be read: " + reason(errno));
    if (static_cast<uint64_t>(status.st_size) != size_) {
      fail(fmt::format("has lost rows: {} bytes of {}", status.st_size, size_));
    }
  }

  void take_run(size_t layer) {
    const uint64_t bytes = kRun * record_bytes();
    int error;
    do {
      error = ::posix_fallocate(file_, static_cast<off_t>(size_), static_cast<off_t>(bytes));
    } while (error == EINTR);
    if (error != 0) {
      fail(fmt::format("cannot grow past {} bytes: {}", size_, reason(error)),
           "free space, name another folder with --cold-store, or use a smaller context");
    }
    runs_[layer].push_back(size_);
    size_ += bytes;
  }

  void read_at(uint64_t at, std::span<const iovec> parts) const {
    size_t wanted = 0;
    for (const iovec& part : parts) wanted += part.iov_len;
    ssize_t got;
    do {
      got = ::preadv(file_, parts.data(), static_cast<int>(parts.size()), static_cast<off_t>(at));
    } while (got < 0 && errno == EINTR);
    if (got == static_cast<ssize_t>(wanted)) return;
    fail(got < 0 ? "cannot be read: " + reason(errno)
                 : fmt::format("has lost rows: {} of {} bytes at {}", got, wanted, at));
  }

  void write_at(uint64_t at, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(at));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("cannot be written: " + reason(written < 0 ? errno : EIO));
      bytes = bytes.subspan(static_cast<size_t>(written));
      at += static_cast<uint64_t>(written);
    }
  }

  std::string subject_;
  int file_ = -1;
  uint64_t size_ = 0;                        // of the file
  std::vector<std::vector<uint64_t>> runs_;  // [layers][run of positions]: where it begins in the file
};

}  // namespace

std::unique_ptr<ColdStore> make_memory_cold_store(const CacheShape& shape) {
  return std::make_unique<MemoryColdStore>(shape);
}

std::unique_ptr<ColdStore> make_file_cold_store(const CacheShape& shape,
                                                const std::filesystem::path& folder) {
  return std::make_unique<FileColdStore>(shape, folder);
}

}  // namespace keysieve
