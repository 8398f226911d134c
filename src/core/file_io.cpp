#include "core/file_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "core/memory.h"
#include "core/system_reason.h"
#include "keysieve/error.h"

namespace keysieve {
std::string read_text_file(const std::filesystem::path& path, size_t limit) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  if (bytes.size() > limit) {
    throw Error(ErrorKind::resource, path.string(), fmt::format("{} bytes", bytes.size()),
                fmt::format("at most {}", limit));
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

void AtomicFileWriter::CloseFile::operator()(std::FILE* file) const { std::fclose(file); }

AtomicFileWriter::AtomicFileWriter(std::filesystem::path target)
    // The thread's number, since threads of one process may write the same file as well as processes may.
    : target_(std::move(target)), temporary_(target_.string() + fmt::format(".{}.partial", ::gettid())) {
  if (std::filesystem::is_directory(target_)) {
    throw Error(ErrorKind::file, target_.string(), "is a directory", "a file name");
  }
  file_.reset(std::fopen(temporary_.c_str(), "wbe"));
  if (!file_) throw Error(ErrorKind::file, temporary_.string(), system_reason(errno), "a writable folder");
}

AtomicFileWriter::~AtomicFileWriter() {
  if (!file_) return;
  file_.reset();
  std::error_code ignored;
  std::filesystem::remove(temporary_, ignored);
}

void AtomicFileWriter::write(std::span<const std::byte> bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) {
    throw Error(ErrorKind::file, temporary_.string(), "cannot be written: " + system_reason(errno), {},
                fmt::format("{} is unchanged", target_.string()));
  }
}

void AtomicFileWriter::commit() {
  if (std::fflush(file_.get()) != 0 || ::fsync(::fileno(file_.get())) != 0) {
    throw Error(ErrorKind::file, temporary_.string(), "cannot be written: " + system_reason(errno), {},
                fmt::format("{} is unchanged", target_.string()));
  }
  std::error_code failure;
  std::filesystem::rename(temporary_, target_, failure);
  if (failure) {
    throw Error(ErrorKind::file, target_.string(), "cannot be replaced: " + failure.message());
  }
  file_.reset();
}

}  // namespace keysieve
