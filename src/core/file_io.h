#pragma once

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace keysieve {

// The whole file as bytes. Throws Error{file}; Error{resource} if it is larger than `limit` bytes.
std::string read_text_file(const std::filesystem::path& path, size_t limit = size_t{1} << 30);

// Writes a file so that readers see the old content or the new, never a half: the bytes go to a temporary
// file beside the target, commit() syncs and renames it. Without commit() the temporary file is removed and
// the target is untouched.
class AtomicFileWriter {
 public:
  explicit AtomicFileWriter(std::filesystem::path target);  // throws Error{file}
  AtomicFileWriter(const AtomicFileWriter&) = delete;
  AtomicFileWriter& operator=(const AtomicFileWriter&) = delete;
  ~AtomicFileWriter();

  void write(std::span<const std::byte> bytes);  // throws Error{file}, a full disk included
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  void commit();  // throws Error{file}

 private:
  struct CloseFile {
    void operator()(std::FILE* file) const;
  };
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  std::unique_ptr<std::FILE, CloseFile> file_;
};

}  // namespace keysieve
