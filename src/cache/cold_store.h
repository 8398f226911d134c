#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

#include "cache/kv_cache.h"

namespace keysieve {

// One row to be read, and where its key and its value go, row_bytes() each.
struct ColdRow {
  uint32_t position;
  std::byte* key;
  std::byte* value;
};

// Where a tiered cache keeps the keys and values of every position. One record is one position of one layer:
// [kv_heads]{key [head_dim], value [head_dim]} of the shape's type. Bytes come back as they went in, or an
// Error is thrown.
class ColdStore {
 public:
  virtual ~ColdStore() = default;
  // records [count, record_bytes()] to positions first .. first + count - 1; first is at most the number of
  // positions this layer has seen, first + count at most the capacity. Throws Error{file} where a file cannot
  // take them (a full disk) or has lost what it held.
  virtual void write(size_t layer, size_t first, std::span<const std::byte> records) = 0;
  // Keys and values of one KV head at positions that were written, ascending. `buffer` is working memory.
  // Safe from several threads at once, each with its own buffer. Throws Error{file} where they are gone; some
  // rows may have been read by then.
  virtual void read(size_t layer, size_t kv_head, std::span<const ColdRow> rows,
                    std::vector<std::byte>& buffer) const = 0;
  // The records of positions first .. first + records.size() / record_bytes() - 1, which were written. Throws
  // as read().
  virtual void read_records(size_t layer, size_t first, std::span<std::byte> records) const = 0;
  virtual void clear() = 0;  // forgets everything and gives the space back

  size_t row_bytes() const { return row_bytes_; }  // one key or one value
  size_t record_bytes() const { return record_bytes_; }

 protected:
  explicit ColdStore(const CacheShape& shape)
      : row_bytes_(kv_row_bytes(shape.kv_type, shape.head_dim)),
        record_bytes_(2 * shape.kv_heads * row_bytes_) {}

 private:
  size_t row_bytes_;
  size_t record_bytes_;
};

// In memory: taken page by page as positions arrive. Throws Error{resource}.
std::unique_ptr<ColdStore> make_memory_cold_store(const CacheShape& shape);
// In a file without a name in `folder`, which therefore ends with the process, however that ends. Space is
// taken from the disk before it is written to. Throws Error{file} for a folder that cannot hold it.
std::unique_ptr<ColdStore> make_file_cold_store(const CacheShape& shape, const std::filesystem::path& folder);

}  // namespace keysieve
