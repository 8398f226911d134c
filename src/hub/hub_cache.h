#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "formats/model_location.h"

namespace keysieve {

// One repository in a Hub cache, in the layout of the Python client (huggingface_hub, "Understand caching"):
//   models--ORG--NAME/refs/REVISION          the commit this branch or tag was last seen at
//   models--ORG--NAME/blobs/ETAG             the bytes
//   models--ORG--NAME/snapshots/COMMIT/FILE  a relative link to a blob
//   .locks/models--ORG--NAME/ETAG.lock       held (flock) while a blob is fetched
class HubCache {
 public:
  HubCache(const std::filesystem::path& cache, const HubId& id);

  std::filesystem::path snapshot(std::string_view commit) const;
  std::filesystem::path file(std::string_view commit, std::string_view name) const;
  std::filesystem::path blob(std::string_view etag) const;
  std::filesystem::path lock(std::string_view etag) const;

  // Whether the file is there and whole: blobs are renamed into place.
  bool has(std::string_view commit, std::string_view name) const;
  std::optional<std::string> commit_of(std::string_view revision) const;  // as refs say
  // Both throw Error{file}; the first also makes the folders of blobs and locks.
  void make_folders() const;
  void write_ref(std::string_view revision, std::string_view commit) const;
  // Links the file to its blob; replaces a link to a blob that is gone.
  void link(std::string_view commit, std::string_view name, std::string_view etag) const;

 private:
  std::filesystem::path repository_;
  std::filesystem::path locks_;
};

// Waits for the lock file (made where it is missing) and holds it; the Python client waits for the same one.
class FileLock {
 public:
  // `poll` is called between tries; what it throws ends the wait. Throws Error{file}.
  FileLock(const std::filesystem::path& path, const std::function<void()>& poll);
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock();

 private:
  int descriptor_;
};

// A file name of a repository that stays inside the folder it is put in: no "..", no leading "/", no
// backslash or control byte.
bool is_safe_name(std::string_view name);

}  // namespace keysieve
