#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "keysieve/error.h"

namespace keysieve::testing {

// A folder of its own for one test, removed afterwards.
class TempFolder {
 public:
  TempFolder() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() / (std::string("keysieve.") + test->test_suite_name() +
                                                      "." + test->name() + "." + std::to_string(::getpid()));
    std::filesystem::create_directories(path_);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

  std::filesystem::path write(const std::filesystem::path& name, std::string_view content) const {
    const auto file = path_ / name;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << content;
    return file;
  }

 private:
  std::filesystem::path path_;
};

// Values appended to a string of bytes as they lie in memory.
template <class T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline void append_text(std::string& bytes, std::string_view text) {
  append<uint64_t>(bytes, text.size());
  bytes += text;
}

inline std::span<const std::byte> as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// A GGUF file in pieces, each of which a test may get wrong. Tensor data follow one another at the alignment.
struct GgufBuilder {
  uint32_t magic = 0x46554747;
  uint32_t version = 3;
  uint64_t extra_tensors = 0;  // claimed beyond those given
  uint64_t extra_entries = 0;
  uint64_t alignment = 32;
  std::string entries;
  uint64_t entry_count = 0;
  std::string tensors;
  uint64_t tensor_count = 0;
  std::string data;

  // `value` is the encoded value that follows the type.
  GgufBuilder& entry(std::string_view key, uint32_t type, std::string_view value) {
    append_text(entries, key);
    append<uint32_t>(entries, type);
    entries += value;
    ++entry_count;
    return *this;
  }
  template <class T>
  GgufBuilder& scalar(std::string_view key, uint32_t type, T value) {
    std::string bytes;
    append(bytes, value);
    return entry(key, type, bytes);
  }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    std::string bytes;
    append_text(bytes, value);
    return entry(key, 8, bytes);
  }
  GgufBuilder& strings(std::string_view key, const std::vector<std::string>& values) {
    std::string bytes;
    append<uint32_t>(bytes, 8);
    append<uint64_t>(bytes, values.size());
    for (const auto& value : values) append_text(bytes, value);
    return entry(key, 9, bytes);
  }
  template <class T>
  GgufBuilder& numbers(std::string_view key, uint32_t type, const std::vector<T>& values) {
    std::string bytes;
    append<uint32_t>(bytes, type);
    append<uint64_t>(bytes, values.size());
    for (const T value : values) append(bytes, value);
    return entry(key, 9, bytes);
  }
  // The list entry alone; dimensions innermost first, as the file has them.
  GgufBuilder& tensor_entry(std::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type,
                            uint64_t offset) {
    append_text(tensors, name);
    append<uint32_t>(tensors, static_cast<uint32_t>(dimensions.size()));
    for (const uint64_t dimension : dimensions) append(tensors, dimension);
    append<uint32_t>(tensors, type);
    append<uint64_t>(tensors, offset);
    ++tensor_count;
    return *this;
  }
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type,
                      std::string_view bytes) {
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    tensor_entry(name, dimensions, type, data.size());
    data += bytes;
    return *this;
  }
  std::string build() const {
    std::string file;
    append(file, magic);
    append(file, version);
    append<uint64_t>(file, tensor_count + extra_tensors);
    append<uint64_t>(file, entry_count + extra_entries);
    file += entries;
    file += tensors;
    if (alignment != 0) file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data;
  }
};

// A safetensors file with this header, padded as given, and data.
inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  std::string file;
  append_text(file, header);
  return file + std::string(data);
}

// Runs `work`, which must throw Error of this kind with a message that contains every part.
inline void expect_error(ErrorKind kind, const std::vector<std::string>& parts,
                         const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.what();
    for (const auto& part : parts)
      EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos)
          << "\"" << part << "\" in: " << error.what();
    return;
  }
  ADD_FAILURE() << "no Error, expected one of kind " << to_string(kind);
}

}  // namespace keysieve::testing
