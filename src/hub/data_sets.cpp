#include <fmt/format.h>
#include <fmt/ranges.h>
#include <minizip/unzip.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <span>
#include <system_error>

#include "core/file_io.h"
#include "hub/digest.h"
#include "hub/download.h"
#include "hub/hub_api.h"
#include "hub/hub_cache.h"
#include "keysieve/error.h"
#include "keysieve/hub.h"

namespace keysieve {
namespace fs = std::filesystem;
namespace {

struct DataFile {
  std::string_view set;
  std::string_view name;    // under the set's folder
  std::string_view url;     // of the file, or of an archive
  std::string_view member;  // within the archive; empty: the file itself
  uint64_t bytes = 0;       // of the file
  std::string_view sha256;  // of the file
};

// Grade School Math by OpenAI (MIT), at the last commit of its repository; WikiText-2 raw (CC BY-SA), in the
// archive that llama.cpp measures perplexity with.
constexpr std::array kFiles = {
    DataFile{"gsm8k", "train.jsonl",
             "https://raw.githubusercontent.com/openai/grade-school-math/"
             "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/train.jsonl",
             "", 4166206, "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"},
    DataFile{"gsm8k", "test.jsonl",
             "https://raw.githubusercontent.com/openai/grade-school-math/"
             "3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/test.jsonl",
             "", 749738, "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"},
    DataFile{"wikitext2", "test.txt",
             "https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip",
             "wikitext-2-raw/wiki.test.raw", 1290590,
             "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"},
};

// $KEYSIEVE_DATA_MIRROR instead of the address's scheme and host.
std::string mirrored(std::string_view url) {
  const char* mirror = std::getenv("KEYSIEVE_DATA_MIRROR");
  if (mirror == nullptr || *mirror == '\0') return std::string(url);
  std::string address = mirror;
  if (!address.starts_with("http://") && !address.starts_with("https://")) {
    throw Error(ErrorKind::usage, "KEYSIEVE_DATA_MIRROR", address, "an address like http://127.0.0.1:8000");
  }
  while (address.ends_with('/')) address.pop_back();
  return address.append(url.substr(url.find('/', url.find("://") + 3)));
}

std::string sha256_of(std::string_view bytes) {
  Digest digest(DigestKind::sha256, bytes.size());
  digest.add(std::as_bytes(std::span(bytes)));
  return digest.hex();
}

struct CloseZip {
  void operator()(void* file) const { unzClose(file); }
};

// The member's bytes, which must be `expected.bytes` long: whatever the archive says of sizes, no more is
// read.
std::string unpack(const fs::path& path, const DataFile& expected) {
  const auto refuse = [&](std::string_view found) {
    throw Error(ErrorKind::format, path.string(), found,
                fmt::format("a zip with {} of {} bytes", expected.member, expected.bytes),
                "delete it and run it again");
  };
  const std::unique_ptr<void, CloseZip> file(unzOpen64(path.c_str()));
  if (file == nullptr) refuse("no zip");
  constexpr int kCaseSensitive = 1;
  if (unzLocateFile(file.get(), std::string(expected.member).c_str(), kCaseSensitive) != UNZ_OK)
    refuse("no such member");
  if (unzOpenCurrentFile(file.get()) != UNZ_OK) refuse("a damaged member");
  std::string bytes(expected.bytes + 1, '\0');
  size_t size = 0;
  for (;;) {
    const int got =
        unzReadCurrentFile(file.get(), bytes.data() + size, static_cast<unsigned>(bytes.size() - size));
    if (got < 0) refuse("a damaged member");
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  bytes.resize(size);
  return bytes;
}

// From an archive: fetched beside, unpacked, checked, and the archive removed.
uint64_t fetch_member(HttpClient& client, const RetryPolicy& policy, const DataFile& file,
                      const fs::path& path, const DownloadProgress& progress) {
  fs::path packed = path;
  packed += ".zip";
  std::error_code ignored;
  const uint64_t received =
      download(client, policy, {.name = std::string(file.name), .url = mirrored(file.url), .target = packed},
               progress);
  const std::string bytes = unpack(packed, file);
  fs::remove(packed, ignored);
  if (const std::string found = sha256_of(bytes); found != file.sha256) {
    throw Error(ErrorKind::network, path.string(), fmt::format("bytes whose hash is {}", found), file.sha256,
                "nothing was kept; the public copy may have changed");
  }
  AtomicFileWriter writer(path);
  writer.write(bytes);
  writer.commit();
  return received;
}

bool is_here(const DataFile& file, const fs::path& path) {
  std::error_code failed;
  if (fs::file_size(path, failed) != file.bytes || failed) return false;
  return sha256_of(read_text_file(path, file.bytes)) == file.sha256;
}

}  // namespace

std::vector<std::string_view> data_set_names() { return {"gsm8k", "wikitext2"}; }

fs::path default_data_folder() {
  const auto variable = [](const char* name) -> fs::path {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  if (const fs::path data = variable("KEYSIEVE_DATA"); !data.empty()) return data;
  if (const fs::path cache = variable("XDG_CACHE_HOME"); !cache.empty()) return cache / "keysieve" / "data";
  if (const fs::path home = variable("HOME"); !home.empty()) return home / ".cache" / "keysieve" / "data";
  throw Error(ErrorKind::usage, "data folder", "neither KEYSIEVE_DATA, XDG_CACHE_HOME nor HOME is set",
              "a place for what is fetched", "set KEYSIEVE_DATA or give --out");
}

PullResult pull_data(std::string_view name, const fs::path& folder, const PullOptions& options) {
  PullResult result;
  result.id = name;
  result.folder = (folder.empty() ? default_data_folder() : folder) / name;
  std::vector<DataFile> files;
  for (const DataFile& file : kFiles) {
    if (file.set != name) continue;
    files.push_back(file);
    result.bytes += file.bytes;
  }
  if (files.empty()) {
    throw Error(ErrorKind::usage, name.empty() ? "pull data" : name, "no data set of that name",
                fmt::format("one of {}", fmt::join(data_set_names(), ", ")));
  }
  const HubSettings settings = hub_settings();
  const RetryPolicy policy{options.attempts, options.retry_seconds};
  HttpClient client(settings.stall_seconds, options.cancel);
  std::error_code failed;
  fs::create_directories(result.folder, failed);
  if (failed) throw Error(ErrorKind::file, result.folder.string(), failed.message(), "a folder to write");
  const FileLock lock(result.folder / ".lock", [&] {
    if (client.cancelled()) HttpClient::throw_cancelled();
  });
  uint64_t done = 0;
  for (const DataFile& file : files) {
    const fs::path path = result.folder / file.name;
    const bool here = is_here(file, path);
    if (!here && settings.offline) {
      throw Error(ErrorKind::network, path.string(), "not fetched, since HF_HUB_OFFLINE is set", {},
                  "unset it, or give a file with --data");
    }
    if (!here) {
      const auto progress = [&](uint64_t bytes) {
        if (options.progress)
          options.progress({std::string(file.name), done + std::min(bytes, file.bytes), result.bytes});
      };
      result.bytes_fetched += file.member.empty()
                                  ? download(client, policy,
                                             {.name = fmt::format("{}/{}", name, file.name),
                                              .url = mirrored(file.url),
                                              .target = path,
                                              .size = file.bytes,
                                              .digest = {DigestKind::sha256, std::string(file.sha256)}},
                                             progress)
                                  : fetch_member(client, policy, file, path, progress);
    }
    done += file.bytes;
    result.files.push_back({std::string(file.name), path, file.bytes, !here});
  }
  return result;
}

}  // namespace keysieve
