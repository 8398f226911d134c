#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/json.h"
#include "core/memory.h"
#include "formats/tensor_info.h"

namespace keysieve {

// The value types of GGUF metadata, numbered as in the file.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// One metadata value where it lies in the file: checked to be whole, decoded when asked for.
struct GgufEntry {
  std::string_view key;
  GgufType type = GgufType::u8;  // of the value, or of an array's elements
  bool is_array = false;
  uint64_t count = 1;               // elements of an array; 1 otherwise
  std::span<const std::byte> data;  // the element bytes; each string is a u64 length and its bytes
};

// A GGUF file, version 2 or 3, little endian, mapped read-only. The constructor reads the header and checks
// all of it (bounds, duplicates, overlaps, alignment); it touches no weight. Throws Error{file},
// Error{format} for damaged or hostile content, Error{unsupported} for other versions, big-endian files and
// arrays of arrays. Views returned (strings, tensors) live as long as the object, moves included.
class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& path);
  // The same from bytes that the caller keeps; `subject` stands for the path in errors.
  static GgufFile from_bytes(std::span<const std::byte> bytes, std::string subject);

  uint32_t version() const { return version_; }
  const std::string& subject() const { return subject_; }  // the path
  uint64_t file_bytes() const { return bytes_.size(); }

  // In file order.
  const std::vector<GgufEntry>& metadata() const { return entries_; }
  bool has(std::string_view key) const { return entry_index_.contains(key); }

  // The value under `key`; get() gives nullopt and require() throws Error{format} where there is none. Both
  // throw Error{format} naming file and key where the value is no T. Integers of any width convert if they
  // fit; a float takes integers too. T: std::string_view, bool, uint32_t, uint64_t, int32_t, int64_t, float,
  // double, or a std::vector of std::string_view, uint32_t, int32_t, float.
  template <class T>
  std::optional<T> get(std::string_view key) const;
  template <class T>
  T require(std::string_view key) const;

  // In file order.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;            // null if there is none
  const TensorInfo& require_tensor(std::string_view name) const;  // Error{format} if there is none

  // Lets the pages go that are in memory; what is read later comes back from the file.
  void release() const;

 private:
  friend class GgufParser;
  GgufFile() = default;
  const GgufEntry* entry(std::string_view key) const;

  std::unique_ptr<MappedFile> file_;  // behind a pointer: tensors keep its address
  std::span<const std::byte> bytes_;
  std::string subject_;
  uint32_t version_ = 0;
  std::vector<GgufEntry> entries_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, size_t> entry_index_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
};

// The value as JSON for display: numbers, strings and booleans as they are; an array longer than
// `max_elements` gives its first ones only. Strings may hold invalid UTF-8: dump with
// Json::error_handler_t::replace.
Json to_json(const GgufEntry& entry, size_t max_elements);

}  // namespace keysieve
