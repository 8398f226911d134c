#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "hub/http.h"

namespace keysieve {

// Where the Hub is and who asks.
struct HubSettings {
  std::string endpoint = "https://huggingface.co";  // without a slash at its end
  std::string token;                                // empty: nobody
  bool offline = false;
  double stall_seconds = 10;
  std::filesystem::path cache;
};

// As the Python client reads them: HF_ENDPOINT; HF_TOKEN, HUGGING_FACE_HUB_TOKEN or the file HF_TOKEN_PATH
// ($HF_HOME/token); HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE; HF_HUB_DOWNLOAD_TIMEOUT; the caches as
// default_hub_caches(). Throws Error{usage} for an endpoint that is no http(s) address, Error{file} where no
// cache can be named.
HubSettings hub_settings();

struct HubListing {
  std::string commit;              // 40 hex digits
  std::vector<std::string> files;  // safe names
};
struct HubFile {
  std::string name;
  std::string etag;  // a SHA-256, git's hash, or what the server calls it
  uint64_t size = 0;
  std::string url;
};

// The Hub's protocol for one repository. All throw Error{network} for what the Hub refuses, in words.
class HubApi {
 public:
  HubApi(HttpClient& client, const RetryPolicy& policy, const HubSettings& settings, std::string id);

  // GET /api/models/ID/revision/REVISION
  HubListing list(std::string_view revision);
  // HEAD /ID/resolve/COMMIT/NAME; follows a renamed repository, not the way to the storage.
  HubFile describe_file(std::string_view commit, std::string_view name);
  std::vector<std::string> headers() const;  // with the token, where there is one

 private:
  [[noreturn]] void refuse(const std::string& what, const HttpResponse& response) const;

  HttpClient& client_;
  const RetryPolicy& policy_;
  const HubSettings& settings_;
  std::string id_;
};

}  // namespace keysieve
