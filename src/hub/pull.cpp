#include <fmt/format.h>
#include <fmt/ranges.h>
#include <fnmatch.h>

#include <algorithm>
#include <set>
#include <system_error>
#include <utility>

#include "core/json.h"
#include "formats/model_location.h"
#include "hub/download.h"
#include "hub/hub_api.h"
#include "hub/hub_cache.h"
#include "keysieve/error.h"
#include "keysieve/hub.h"

namespace keysieve {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kIndex = "model.safetensors.index.json";

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::ranges::any_of(endings, [&](std::string_view ending) { return name.ends_with(ending); });
}

std::vector<std::string> matching(const std::vector<std::string>& files,
                                  const std::vector<std::string>& patterns, std::string_view id) {
  std::vector<std::string> found;
  for (const std::string& file : files) {
    const auto matches = [&](const std::string& pattern) {
      return ::fnmatch(pattern.c_str(), file.c_str(), 0) == 0;
    };
    if (std::ranges::any_of(patterns, matches)) found.push_back(file);
  }
  if (found.empty()) {
    throw Error(ErrorKind::usage, id, fmt::format("no file named {}", fmt::join(patterns, " or ")),
                fmt::format("one of {}", fmt::join(files, ", ")));
  }
  return found;
}

// Config and tokenizer files of the top folder, and the weights but for those an index names.
std::vector<std::string> needed(const std::vector<std::string>& files, std::string_view id) {
  std::vector<std::string> wanted;
  std::vector<std::string> ggufs;
  bool indexed = false;
  bool tensors = false;
  for (const std::string& file : files) {
    if (file.find('/') != std::string::npos) continue;
    indexed |= file == kIndex;
    tensors |= file.ends_with(".safetensors");
    if (file.ends_with(".gguf")) ggufs.push_back(file);
    if (ends_with_any(file, {".json", ".jinja"})) wanted.push_back(file);
  }
  if (!tensors) {
    if (ggufs.size() > 1) {
      throw Error(ErrorKind::usage, id,
                  fmt::format("{} GGUF files: {}", ggufs.size(), fmt::join(ggufs, ", ")), "one",
                  "name the one to fetch with --include");
    }
    if (ggufs.empty()) {
      throw Error(ErrorKind::unsupported, id, "a repository without .safetensors and .gguf files",
                  "a model or an indexer", "name the files to fetch with --include");
    }
    return ggufs;
  }
  if (!indexed) {
    // A model's weights have this name; what else lies there is the same in another form.
    const bool single = std::ranges::find(files, "model.safetensors") != files.end();
    for (const std::string& file : files) {
      if (single ? file == "model.safetensors"
                 : file.ends_with(".safetensors") && file.find('/') == std::string::npos)
        wanted.push_back(file);
    }
  }
  return wanted;
}

std::vector<std::string> indexed_shards(const fs::path& index, const std::vector<std::string>& files) {
  const Json document = read_json_file(index);
  const auto map = document.find("weight_map");
  if (map == document.end() || !map->is_object()) {
    throw Error(ErrorKind::format, index.string(), "no weight_map", "the shard of each tensor");
  }
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string() || std::ranges::find(files, shard.get<std::string>()) == files.end()) {
      throw Error(ErrorKind::format, index.string(), fmt::format("{} in {}", tensor, shard.dump()),
                  "a file of the repository");
    }
    shards.insert(shard.get<std::string>());
  }
  return {shards.begin(), shards.end()};
}

bool is_revision(std::string_view text) { return is_safe_name(text) && !text.starts_with('-'); }

// One pull: what is decided, and what has come so far.
class Puller {
 public:
  Puller(std::string_view id, const PullOptions& options, const HubSettings& settings)
      : options_(options),
        policy_{options.attempts, options.retry_seconds},
        client_(settings.stall_seconds, options.cancel),
        api_(client_, policy_, settings, std::string(id)),
        cache_(settings.cache, *parse_hub_id(id)) {
    result_.id = id;
  }

  PullResult run() {
    const HubListing listing = api_.list(options_.revision);
    result_.commit = listing.commit;
    result_.folder = cache_.snapshot(listing.commit);
    cache_.make_folders();
    std::vector<std::string> names = options_.include.empty()
                                         ? needed(listing.files, result_.id)
                                         : matching(listing.files, options_.include, result_.id);
    if (options_.include.empty() && std::ranges::find(names, kIndex) != names.end()) {
      std::erase(names, std::string(kIndex));
      fetch_all({std::string(kIndex)});
      const auto shards = indexed_shards(cache_.file(result_.commit, kIndex), listing.files);
      names.insert(names.end(), shards.begin(), shards.end());
    }
    fetch_all(names);
    cache_.write_ref(options_.revision, result_.commit);
    return std::move(result_);
  }

 private:
  void fetch_all(const std::vector<std::string>& names) {
    std::vector<HubFile> missing;
    for (const std::string& name : names) {
      if (cache_.has(result_.commit, name)) {
        const fs::path path = cache_.file(result_.commit, name);
        result_.files.push_back({name, path, fs::file_size(path), false});
        result_.bytes += result_.files.back().bytes;
        done_ += result_.files.back().bytes;
        continue;
      }
      missing.push_back(api_.describe_file(result_.commit, name));
      result_.bytes += missing.back().size;
    }
    for (const HubFile& file : missing) fetch(file);
  }

  void fetch(const HubFile& file) {
    const auto lock = FileLock(cache_.lock(file.etag), [&] {
      if (client_.cancelled()) HttpClient::throw_cancelled();
    });
    const fs::path blob = cache_.blob(file.etag);
    std::error_code ignored;
    const bool there =
        fs::is_regular_file(blob, ignored);  // of another revision, or another process was here
    if (!there) {
      const DownloadJob job{.name = fmt::format("{}/{}", result_.id, file.name),
                            .url = file.url,
                            .headers = api_.headers(),
                            .target = blob,
                            .size = file.size,
                            .digest = digest_of_etag(file.etag)};
      result_.bytes_fetched += download(client_, policy_, job, [&](uint64_t done) {
        if (options_.progress) options_.progress({file.name, done_ + done, result_.bytes});
      });
    }
    cache_.link(result_.commit, file.name, file.etag);
    done_ += file.size;
    result_.files.push_back({file.name, cache_.file(result_.commit, file.name), file.size, !there});
  }

  const PullOptions& options_;
  RetryPolicy policy_;
  HttpClient client_;
  HubApi api_;
  HubCache cache_;
  PullResult result_;
  uint64_t done_ = 0;
};

}  // namespace

PullResult pull(std::string_view id, const PullOptions& options) {
  if (!parse_hub_id(id)) {
    throw Error(ErrorKind::usage, id.empty() ? "pull" : id, "no Hub id", "org/name",
                "`keysieve pull data NAME` fetches texts, `./run fetch` the models with short names");
  }
  if (!is_revision(options.revision)) {
    throw Error(ErrorKind::usage, "--revision", options.revision, "a branch, a tag or a commit");
  }
  HubSettings settings = hub_settings();
  if (!options.cache.empty()) settings.cache = options.cache;
  if (settings.cache.empty()) {
    throw Error(ErrorKind::usage, "Hub cache", "neither HF_HUB_CACHE, HF_HOME nor HOME is set",
                "a place for what is fetched", "set HF_HUB_CACHE");
  }
  if (settings.offline) {
    throw Error(ErrorKind::network, id, "not fetched, since HF_HUB_OFFLINE is set", {},
                "unset it, or give the path of a copy that is here");
  }
  return Puller(id, options, settings).run();
}

bool needs_pull(std::string_view argument, PullKind kind) {
  std::error_code ignored;
  if (!parse_hub_id(argument) || fs::exists(fs::path(argument), ignored)) return false;
  try {
    if (kind == PullKind::indexer) {
      static_cast<void>(locate_indexer(argument, {}));
      return false;
    }
    const ModelLocation location = locate_model(argument, {});
    return location.kind == FileKind::hub_folder && !has_all_shards(location.path);
  } catch (const Error&) {
    return true;
  }
}

}  // namespace keysieve
