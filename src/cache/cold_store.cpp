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
#include <utility>
#include <vector>

#include "core/memory.h"
#include "core/system_reason.h"
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
  void read(size_t layer, size_t kv_head, std::span<const ColdRow> rows,
            std::vector<std::byte>&) const override {
    const std::byte* const head = layers_[layer].data() + 2 * kv_head * row_bytes();
    for (const ColdRow& row : rows) {
      const std::byte* const from = head + row.position * record_bytes();
      std::memcpy(row.key, from, row_bytes());
      std::memcpy(row.value, from + row_bytes(), row_bytes());
    }
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
// for space is made once in 64 tokens. In a run the rows of one KV head lie together, [kv_heads, 64]{key,
// value}, because a head reads on its own and its neighbouring positions are worth one call.
constexpr size_t kRun = 64;
constexpr size_t kWorthACall = 4096;

class FileColdStore final : public ColdStore {
 public:
  FileColdStore(const CacheShape& shape, const std::filesystem::path& folder)
      : ColdStore(shape),
        subject_("cold store in " + folder.string()),
        heads_(shape.kv_heads),
        runs_(shape.layers) {
    // A file without a name cannot be left behind; not every file system has them.
    file_ = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (file_ < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
      std::string name = (folder / "keysieve-cold-XXXXXX").string();
      file_ = ::mkostemp(name.data(), O_CLOEXEC);
      if (file_ >= 0) ::unlink(name.c_str());
    }
    if (file_ < 0) {
      fail("cannot be created: " + system_reason(errno), "name a writable folder with --cold-store");
    }
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
      std::vector<std::byte>& rows = writing_;
      rows.resize(part * pair_bytes());
      for (size_t head = 0; head < heads_; ++head) {
        for (size_t i = 0; i < part; ++i) {
          std::memcpy(rows.data() + i * pair_bytes(),
                      records.data() + (done + i) * record_bytes() + head * pair_bytes(), pair_bytes());
        }
        write_at(place(layer, head, position), rows);
      }
      done += part;
    }
  }

  void read(size_t layer, size_t kv_head, std::span<const ColdRow> rows,
            std::vector<std::byte>& buffer) const override {
    for (size_t i = 0; i < rows.size();) {
      const size_t count = near_rows(rows.subspan(i));
      const ColdRow& first = rows[i];
      const uint64_t at = place(layer, kv_head, first.position);
      if (count == 1) {
        const iovec parts[2] = {{first.key, row_bytes()}, {first.value, row_bytes()}};
        read_at(at, parts);
      } else {
        const size_t apart = rows[i + count - 1].position - first.position;
        buffer.resize(kRun * pair_bytes());
        const iovec whole[1] = {{buffer.data(), (apart + 1) * pair_bytes()}};
        read_at(at, whole);
        for (const ColdRow& row : rows.subspan(i, count)) {
          const std::byte* const from = buffer.data() + (row.position - first.position) * pair_bytes();
          std::memcpy(row.key, from, row_bytes());
          std::memcpy(row.value, from + row_bytes(), row_bytes());
        }
      }
      i += count;
    }
  }

  void read_records(size_t layer, size_t first, std::span<std::byte> records) const override {
    const size_t count = records.size() / record_bytes();
    for (size_t done = 0; done < count;) {
      const size_t position = first + done;
      const size_t part = std::min(count - done, kRun - position % kRun);
      std::vector<std::byte> rows(part * pair_bytes());
      for (size_t head = 0; head < heads_; ++head) {
        const iovec whole[1] = {{rows.data(), rows.size()}};
        read_at(place(layer, head, position), whole);
        for (size_t i = 0; i < part; ++i) {
          std::memcpy(records.data() + (done + i) * record_bytes() + head * pair_bytes(),
                      rows.data() + i * pair_bytes(), pair_bytes());
        }
      }
      done += part;
    }
  }

  void clear() override {
    for (auto& runs : runs_) runs.clear();
    size_ = 0;
    if (::ftruncate(file_, 0) != 0) fail("cannot be emptied: " + system_reason(errno));
  }

 private:
  [[noreturn]] void fail(const std::string& found, std::string_view way_out = {}) const {
    throw Error(ErrorKind::file, subject_, found, {}, way_out);
  }

  size_t pair_bytes() const { return 2 * row_bytes(); }  // a key and its value
  uint64_t place(size_t layer, size_t head, size_t position) const {
    return runs_[layer][position / kRun] + (head * kRun + position % kRun) * pair_bytes();
  }

  // How many of the rows, from the first, are worth one call: those of the same run with less between
  // neighbours than what a call costs (about 0.4 us, or 4 KB copied).
  size_t near_rows(std::span<const ColdRow> rows) const {
    const size_t gap = 1 + kWorthACall / pair_bytes();
    const uint32_t run = rows[0].position / kRun;
    size_t count = 1;
    while (count < rows.size() && rows[count].position / kRun == run &&
           rows[count].position - rows[count - 1].position <= gap) {
      ++count;
    }
    return count;
  }

  // Writing behind a lost end would bring the file back to its size with zeros for what was lost.
  void require_whole() const {
    struct stat status{};
    if (::fstat(file_, &status) != 0) fail("cannot be read: " + system_reason(errno));
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
      fail(fmt::format("cannot grow past {} bytes: {}", size_, system_reason(error)),
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
    fail(got < 0 ? "cannot be read: " + system_reason(errno)
                 : fmt::format("has lost rows: {} of {} bytes at {}", got, wanted, at));
  }

  void write_at(uint64_t at, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(at));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("cannot be written: " + system_reason(written < 0 ? errno : EIO));
      bytes = bytes.subspan(static_cast<size_t>(written));
      at += static_cast<uint64_t>(written);
    }
  }

  std::string subject_;
  size_t heads_;
  int file_ = -1;
  uint64_t size_ = 0;                        // of the file
  std::vector<std::byte> writing_;           // rows of one head on their way to the file
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
