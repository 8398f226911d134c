#include "hub/hub_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <system_error>
#include <thread>

#include "core/file_io.h"
#include "core/system_reason.h"
#include "keysieve/error.h"

namespace keysieve {
namespace fs = std::filesystem;
namespace {

void make_folder(const fs::path& folder) {
  std::error_code failed;
  fs::create_directories(folder, failed);
  if (!failed) return;
  throw Error(ErrorKind::file, folder.string(), failed.message(), "a folder to write",
              "point HF_HUB_CACHE at another place");
}

}  // namespace

HubCache::HubCache(const fs::path& cache, const HubId& id)
    : repository_(hub_repository(cache, id)), locks_(hub_repository(cache / ".locks", id)) {}

fs::path HubCache::snapshot(std::string_view commit) const { return repository_ / "snapshots" / commit; }
fs::path HubCache::file(std::string_view commit, std::string_view name) const {
  return snapshot(commit) / name;
}
fs::path HubCache::blob(std::string_view etag) const { return repository_ / "blobs" / etag; }
fs::path HubCache::lock(std::string_view etag) const { return locks_ / fmt::format("{}.lock", etag); }

bool HubCache::has(std::string_view commit, std::string_view name) const {
  std::error_code ignored;
  return fs::is_regular_file(file(commit, name), ignored);
}

std::optional<std::string> HubCache::commit_of(std::string_view revision) const {
  const fs::path path = repository_ / "refs" / revision;
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return std::nullopt;
  std::string commit = read_text_file(path, 1024);
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == '\r')) commit.pop_back();
  return commit;
}

void HubCache::make_folders() const {
  make_folder(repository_ / "blobs");
  make_folder(locks_);
}

void HubCache::write_ref(std::string_view revision, std::string_view commit) const {
  if (revision == commit || commit_of(revision) == commit) return;
  const fs::path path = repository_ / "refs" / revision;
  make_folder(path.parent_path());
  AtomicFileWriter file(path);
  file.write(commit);
  file.commit();
}

void HubCache::link(std::string_view commit, std::string_view name, std::string_view etag) const {
  const fs::path path = file(commit, name);
  make_folder(path.parent_path());
  const fs::path target = fs::relative(blob(etag), path.parent_path());
  // Made beside and renamed, so that a link to a blob that is gone is replaced and another process or
  // thread that links the same file is no error.
  fs::path fresh = path;
  fresh += fmt::format(".{}", ::gettid());
  std::error_code failed;
  fs::remove(fresh, failed);
  fs::create_symlink(target, fresh, failed);
  if (!failed) fs::rename(fresh, path, failed);
  if (failed) {
    throw Error(ErrorKind::file, path.string(), failed.message(), "a link to its blob",
                "point HF_HUB_CACHE at a disk that has links");
  }
}

FileLock::FileLock(const fs::path& path, const std::function<void()>& poll)
    : descriptor_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) {
    throw Error(ErrorKind::file, path.string(), system_reason(errno), "a lock file to write");
  }
  try {
    while (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EINTR) continue;
      if (errno != EWOULDBLOCK) {
        throw Error(ErrorKind::file, path.string(), system_reason(errno), "a file system with locks");
      }
      poll();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

FileLock::~FileLock() { ::close(descriptor_); }

bool is_safe_name(std::string_view name) {
  if (name.empty() || name.size() > 1024 || name.front() == '/' || name.back() == '/') return false;
  const auto bad = [](char c) { return c == '\\' || c == 0x7f || static_cast<unsigned char>(c) < 0x20; };
  if (std::ranges::any_of(name, bad)) return false;
  for (size_t start = 0; start <= name.size();) {
    const size_t slash = std::min(name.find('/', start), name.size());
    const std::string_view part = name.substr(start, slash - start);
    if (part.empty() || part == "." || part == "..") return false;
    start = slash + 1;
  }
  return true;
}

}  // namespace keysieve
