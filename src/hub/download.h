#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "hub/digest.h"
#include "hub/http.h"

namespace keysieve {

struct DownloadJob {
  std::string name;  // for errors: the file within its repository
  std::string url;
  std::vector<std::string> headers = {};
  std::filesystem::path target;
  std::optional<uint64_t> size = {};  // bytes; unknown: as the server says
  ExpectedDigest digest = {};
};

// Bytes of the file that are here, those of earlier runs included.
using DownloadProgress = std::function<void(uint64_t done)>;

// Brings the file to `target`. The bytes go to TARGET.incomplete first, which a run that is cut, killed or
// out of disk leaves behind and the next one goes on with; only a file of the right size and digest is synced
// and renamed. Tries again as `policy` says, from the last byte, and counts anew whenever some came. Returns
// the bytes that came over the network.
// Throws Error{network}: the server refuses, or sends a file of another size or digest (once more from the
// start, then given up, and the wrong bytes are removed); Error{resource}: no room on the disk; Error{file}.
uint64_t download(HttpClient& client, const RetryPolicy& policy, const DownloadJob& job,
                  const DownloadProgress& progress);

// Throws Error{resource} where the disk of `folder` has less room than `bytes`.
void require_room(const std::filesystem::path& folder, uint64_t bytes);

}  // namespace keysieve
