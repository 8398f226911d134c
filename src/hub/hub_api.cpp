#include "hub/hub_api.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <system_error>
#include <utility>

#include "core/file_io.h"
#include "core/json.h"
#include "formats/model_location.h"
#include "hub/hub_cache.h"
#include "keysieve/error.h"

namespace keysieve {
namespace fs = std::filesystem;
namespace {

constexpr size_t kListingBytes = 64 << 20;  // repositories of 100,000 files have about 10 MB

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

bool is_on(const char* name) {
  std::string value = variable(name).value_or("");
  std::ranges::transform(value, value.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return value == "1" || value == "true" || value == "yes" || value == "on";
}

std::string find_token() {
  if (is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN")) return {};
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    if (const auto value = variable(name)) return std::string(trimmed(*value));
  }
  fs::path file;
  if (const auto path = variable("HF_TOKEN_PATH")) {
    file = *path;
  } else if (const auto home = variable("HF_HOME")) {
    file = fs::path(*home) / "token";
  } else if (const auto cache = variable("XDG_CACHE_HOME")) {
    file = fs::path(*cache) / "huggingface" / "token";
  } else if (const auto user = variable("HOME")) {
    file = fs::path(*user) / ".cache" / "huggingface" / "token";
  }
  std::error_code ignored;
  if (file.empty() || !fs::is_regular_file(file, ignored)) return {};
  return std::string(trimmed(read_text_file(file, 4096)));
}

std::string percent_encoded(std::string_view text, std::string_view kept) {
  std::string encoded;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '_' || c == '.' || c == '~' || kept.find(c) != std::string_view::npos;
    if (plain) {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

std::string normal_etag(std::string etag) {
  if (etag.starts_with("W/")) etag.erase(0, 2);
  std::erase(etag, '"');
  return etag;
}

bool is_commit(std::string_view text) {
  const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return text.size() == 40 && std::ranges::all_of(text, hex);
}

// "scheme://host[:port]" of an address.
std::string origin_of(const std::string& url) {
  const size_t start = url.find("://");
  return url.substr(0, url.find('/', start == std::string::npos ? 0 : start + 3));
}

}  // namespace

HubSettings hub_settings() {
  HubSettings settings;
  if (auto endpoint = variable("HF_ENDPOINT")) {
    while (endpoint->ends_with('/')) endpoint->pop_back();
    if (!endpoint->starts_with("http://") && !endpoint->starts_with("https://")) {
      throw Error(ErrorKind::usage, "HF_ENDPOINT", *endpoint, "an address like https://huggingface.co");
    }
    settings.endpoint = *endpoint;
  }
  settings.token = find_token();
  settings.offline = is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE");
  if (const auto seconds = variable("HF_HUB_DOWNLOAD_TIMEOUT")) {
    const double value = std::strtod(seconds->c_str(), nullptr);
    if (!(value > 0 && value <= 86400)) {
      throw Error(ErrorKind::usage, "HF_HUB_DOWNLOAD_TIMEOUT", *seconds, "seconds, more than 0");
    }
    settings.stall_seconds = value;
  }
  const auto caches = default_hub_caches();
  if (!caches.empty()) settings.cache = caches.front();
  return settings;
}

HubApi::HubApi(HttpClient& client, const RetryPolicy& policy, const HubSettings& settings, std::string id)
    : client_(client), policy_(policy), settings_(settings), id_(std::move(id)) {}

std::vector<std::string> HubApi::headers() const {
  if (settings_.token.empty()) return {};
  return {fmt::format("Authorization: Bearer {}", settings_.token)};
}

void HubApi::refuse(const std::string& what, const HttpResponse& response) const {
  const std::string code = response.header("x-error-code").value_or("");
  const std::string host = host_of(settings_.endpoint);
  const std::string found =
      fmt::format("{} answers {}{}{}", host, describe(response), code.empty() ? "" : ", ", code);
  if (!response.failure.empty()) {
    throw Error(ErrorKind::network, what, fmt::format("{}: {}", host, response.failure), "an answer",
                "check the network (HF_ENDPOINT, https_proxy), or copy the files here and give their path");
  }
  if (code == "GatedRepo" || response.status == 403) {
    throw Error(ErrorKind::network, what, found, "leave to read it",
                fmt::format("accept its terms at {}/{}, and set HF_TOKEN to a token of that account",
                            settings_.endpoint, id_));
  }
  if (response.status == 401) {
    throw Error(ErrorKind::network, what, found, "a public repository, or a token that may read it",
                settings_.token.empty() ? "check the name; for a private one set HF_TOKEN"
                                        : "check the name and the token (HF_TOKEN)");
  }
  if (code == "RevisionNotFound") {
    throw Error(ErrorKind::network, what, found, "a branch, a tag or a commit of it", "check --revision");
  }
  if (response.status == 404) {
    throw Error(ErrorKind::network, what, found, "a repository of that server", "check the name");
  }
  if (response.status == 429) {
    throw Error(ErrorKind::network, what, found, "fewer requests",
                "wait some minutes; with a token (HF_TOKEN) the Hub allows more");
  }
  throw Error(ErrorKind::network, what, found, "200 OK", "run it again later");
}

HubListing HubApi::list(std::string_view revision) {
  std::string body;
  const HttpRequest request{.url = fmt::format("{}/api/models/{}/revision/{}", settings_.endpoint,
                                               percent_encoded(id_, "/"), percent_encoded(revision, "")),
                            .headers = headers()};
  const HttpResponse response = send_with_retries(client_, policy_, request, body, kListingBytes);
  if (!response.fine()) refuse(fmt::format("{} at {}", id_, revision), response);
  const std::string subject = fmt::format("{}'s answer about {}", host_of(settings_.endpoint), id_);
  const Json document = parse_json(body, subject);
  HubListing listing;
  listing.commit = json_require<std::string>(document, "sha", subject);
  if (!is_commit(listing.commit)) {
    throw Error(ErrorKind::network, subject, "sha " + listing.commit, "a commit of 40 hex digits");
  }
  const auto siblings = document.find("siblings");
  if (siblings == document.end() || !siblings->is_array()) {
    throw Error(ErrorKind::network, subject, "no list of files", "siblings");
  }
  for (const Json& sibling : *siblings) {
    std::string name = json_require<std::string>(sibling, "rfilename", subject);
    if (!is_safe_name(name)) {
      throw Error(ErrorKind::network, subject, "a file named " + name, "names inside the repository");
    }
    listing.files.push_back(std::move(name));
  }
  std::ranges::sort(listing.files);
  return listing;
}

HubFile HubApi::describe_file(std::string_view commit, std::string_view name) {
  HubFile file;
  file.name = name;
  file.url = fmt::format("{}/{}/resolve/{}/{}", settings_.endpoint, percent_encoded(id_, "/"), commit,
                         percent_encoded(name, "/"));
  HttpResponse response;
  HttpRequest request{.url = file.url, .head = true, .follow = false, .headers = headers()};
  // A repository that was renamed answers with a path on the same server; a storage with a whole address.
  for (int hops = 0; hops < 5; ++hops) {
    std::string none;
    response = send_with_retries(client_, policy_, request, none, 0);
    const std::string location = response.header("location").value_or("");
    if (response.status < 300 || response.status >= 400 || !location.starts_with('/')) break;
    request.url = origin_of(request.url) + location;
  }
  const bool redirected = response.failure.empty() && response.status >= 300 && response.status < 400;
  const std::string subject = fmt::format("{}/{}", id_, name);
  if (!response.fine() && !redirected) refuse(subject, response);
  const auto etag = response.header("x-linked-etag");
  file.etag = normal_etag(etag ? *etag : response.header("etag").value_or(""));
  const auto linked_size = response.number_header("x-linked-size");
  const auto size = linked_size || redirected ? linked_size : response.number_header("content-length");
  // The ETag becomes a file name.
  if (!is_safe_name(file.etag) || file.etag.find('/') != std::string::npos || !size) {
    throw Error(ErrorKind::network, subject,
                fmt::format("{} says {}", host_of(settings_.endpoint), size ? "no ETag" : "no size"),
                "ETag and size of the file", "check that HF_ENDPOINT is a Hub");
  }
  file.size = *size;
  return file;
}

}  // namespace keysieve
