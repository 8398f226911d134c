#include "hub/download.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <utility>

#include "core/system_reason.h"
#include "keysieve/error.h"

namespace keysieve {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void fail_write(const fs::path& path, int error) {
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    throw Error(
        ErrorKind::resource, path.string(), "the disk is full", "room for the rest of the file",
        "free some space, or point HF_HUB_CACHE at another disk, and run it again: it goes on where it "
        "stopped");
  }
  throw Error(ErrorKind::file, path.string(), system_reason(error), "a file to write");
}

// Closed with what holds it, also where that is not made to its end.
struct Descriptor {
  int value;
  explicit Descriptor(int opened) : value(opened) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

// The part of a file that is here, open for more; its digest so far.
class Incomplete {
 public:
  Incomplete(fs::path path, const DownloadJob& job, uint64_t whole)
      : path_(std::move(path)),
        kind_(job.digest.kind),
        whole_(whole),
        descriptor_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666)),
        digest_(kind_, whole) {
    if (descriptor_.value < 0) fail_write(path_, errno);
    read_what_is_there();
  }
  Incomplete(const Incomplete&) = delete;
  Incomplete& operator=(const Incomplete&) = delete;

  uint64_t size() const { return size_; }
  uint64_t whole() const { return whole_; }

  void restart(uint64_t whole) {
    if (::ftruncate(descriptor_.value, 0) != 0) fail_write(path_, errno);
    whole_ = whole;
    size_ = 0;
    digest_ = Digest(kind_, whole);
  }

  void append(std::span<const std::byte> bytes) {
    digest_.add(bytes);
    while (!bytes.empty()) {
      const ssize_t written =
          ::pwrite(descriptor_.value, bytes.data(), bytes.size(), static_cast<off_t>(size_));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail_write(path_, written < 0 ? errno : ENOSPC);
      bytes = bytes.subspan(static_cast<size_t>(written));
      size_ += static_cast<uint64_t>(written);
    }
  }

  std::string digest() { return digest_.hex(); }

  void sync() const {
    if (::fsync(descriptor_.value) != 0) fail_write(path_, errno);
  }

 private:
  void read_what_is_there() {
    std::array<std::byte, 1 << 16> buffer{};
    for (;;) {
      const ssize_t got = ::pread(descriptor_.value, buffer.data(), buffer.size(), static_cast<off_t>(size_));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_write(path_, errno);
      if (got == 0) break;
      digest_.add(std::span(buffer).first(static_cast<size_t>(got)));
      size_ += static_cast<uint64_t>(got);
      if (size_ > whole_) return restart(whole_);  // of another file: no use
    }
  }

  fs::path path_;
  DigestKind kind_;
  uint64_t whole_;
  Descriptor descriptor_;
  uint64_t size_ = 0;
  Digest digest_;
};

// The whole file's size by this answer; nullopt where it does not say.
std::optional<uint64_t> announced_size(const HttpResponse& response) {
  if (response.status != 206) return response.number_header("content-length");
  const std::string range = response.header("content-range").value_or("");  // bytes 100-199/200
  const size_t slash = range.find('/');
  if (slash == std::string::npos) return std::nullopt;
  HttpResponse total;
  total.headers["total"] = range.substr(slash + 1);
  return total.number_header("total");
}

bool starts_at(const HttpResponse& response, uint64_t from) {
  return response.header("content-range").value_or("").starts_with(fmt::format("bytes {}-", from));
}

[[noreturn]] void fail_size(const DownloadJob& job, const std::string& found, uint64_t expected) {
  throw Error(ErrorKind::network, job.name, fmt::format("{} sends {}", host_of(job.url), found),
              fmt::format("{} bytes", expected), "run it again later; the server's copy may be changing");
}

// One request for what is missing, straight into `file`. A server that knows no ranges begins anew.
HttpResponse fetch_rest(HttpClient& client, const DownloadJob& job, Incomplete& file,
                        const DownloadProgress& progress) {
  const uint64_t from = file.size();
  bool begun = false;
  return client.send({.url = job.url, .headers = job.headers, .from = from},
                     [&](const HttpResponse& response, std::span<const std::byte> bytes) {
                       if (!std::exchange(begun, true)) {
                         if (response.header("content-encoding").value_or("identity") != "identity")
                           fail_size(job, "packed bytes, which were not asked for", file.whole());
                         if (response.status == 206 && !starts_at(response, from))
                           fail_size(job, "another range than was asked for", file.whole());
                         const auto size = announced_size(response);
                         if (job.size && size && *size != *job.size)
                           fail_size(job, fmt::format("a file of {} bytes", *size), *job.size);
                         if (response.status != 206)
                           file.restart(job.size.value_or(size.value_or(UINT64_MAX)));
                       }
                       if (bytes.size() > file.whole() - file.size())
                         fail_size(job, "more bytes than it announced", file.whole());
                       file.append(bytes);
                       progress(file.size());
                     });
}

bool complete(const DownloadJob& job, const Incomplete& file, const HttpResponse& last) {
  if (job.size) return file.size() == *job.size;
  return last.fine() && (file.whole() == UINT64_MAX || file.size() == file.whole());
}

}  // namespace

void require_room(const fs::path& folder, uint64_t bytes) {
  std::error_code failed;
  const fs::space_info space = fs::space(folder, failed);
  if (failed || space.available >= bytes) return;
  throw Error(ErrorKind::resource, folder.string(),
              fmt::format("{:.1f} MB free on this disk", static_cast<double>(space.available) / 1e6),
              fmt::format("{:.1f} MB for what is to come", static_cast<double>(bytes) / 1e6),
              "free some space, or point HF_HUB_CACHE at another disk");
}

uint64_t download(HttpClient& client, const RetryPolicy& policy, const DownloadJob& job,
                  const DownloadProgress& progress) {
  fs::path part = job.target;
  part += ".incomplete";
  Incomplete file(part, job, job.size.value_or(UINT64_MAX));
  // Without a size there is no telling whether what lies there is the beginning of this file.
  if (!job.size && job.digest.kind == DigestKind::none) file.restart(UINT64_MAX);
  require_room(job.target.parent_path(), job.size.value_or(0) - std::min(file.size(), job.size.value_or(0)));
  progress(file.size());

  uint64_t received = 0;
  bool wrong_before = false;
  HttpResponse last;
  for (size_t attempt = 1;;) {
    if (!complete(job, file, last)) {
      const uint64_t before = file.size();
      last = fetch_rest(client, job, file, progress);
      received += file.size() > before ? file.size() - before : 0;
      if (last.status == 416) file.restart(job.size.value_or(UINT64_MAX));  // it has less than is here
      if (!complete(job, file, last)) {
        if (file.size() > before) attempt = 1;
        const bool hopeful = last.fine() || last.status == 416 || worth_retrying(last);
        if (!hopeful || attempt >= policy.attempts) {
          throw Error(ErrorKind::network, job.name,
                      fmt::format("{}: {} after {} bytes", host_of(job.url), describe(last), file.size()),
                      job.size ? fmt::format("{} bytes", *job.size) : "the whole file",
                      "run it again: it goes on where it stopped");
        }
        wait_before_retry(client, policy, ++attempt, last);
        continue;
      }
    }
    const std::string found = file.digest();
    if (found == job.digest.hex) break;
    if (std::exchange(wrong_before, true)) {
      std::error_code ignored;
      fs::remove(part, ignored);
      throw Error(ErrorKind::network, job.name,
                  fmt::format("{} sends bytes whose hash is {}", host_of(job.url), found), job.digest.hex,
                  "nothing was kept; run it again later, or ask who runs the server");
    }
    file.restart(job.size.value_or(UINT64_MAX));
    last = {};
  }
  file.sync();
  if (::rename(part.c_str(), job.target.c_str()) != 0) fail_write(job.target, errno);
  return received;
}

}  // namespace keysieve
