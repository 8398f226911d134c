#include "formats/model_location.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <utility>

#include "core/file_io.h"
#include "core/json.h"
#include "core/memory.h"
#include "formats/byte_reader.h"
#include "keysieve/error.h"

namespace keysieve {
namespace fs = std::filesystem;
namespace {

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

// The folder's regular files with this extension, sorted.
std::vector<fs::path> files_with(const fs::path& folder, std::string_view extension) {
  std::vector<fs::path> found;
  std::error_code failure;
  for (fs::directory_iterator at(folder, failure), end; !failure && at != end; at.increment(failure)) {
    if (at->path().extension() == extension && is_file(at->path())) found.push_back(at->path());
  }
  std::ranges::sort(found);
  return found;
}

std::string names_of(const std::vector<fs::path>& paths) {
  std::vector<std::string> names;
  for (const fs::path& path : paths) names.push_back(path.filename().string());
  return fmt::format("{}", fmt::join(names, ", "));
}

bool has_weights(const fs::path& folder) {
  return is_file(folder / "model.safetensors") || is_file(folder / "model.safetensors.index.json");
}

// A name that stays inside the folder it is looked up in.
bool is_plain_name(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !name.empty() && name != "." && name.find("..") == std::string_view::npos &&
         std::ranges::all_of(name, allowed);
}

// The revision that refs/main names, if its snapshot is there; otherwise the snapshot last written.
std::optional<fs::path> find_snapshot(const fs::path& repository) {
  const fs::path snapshots = repository / "snapshots";
  if (is_file(repository / "refs" / "main")) {
    std::string revision = read_text_file(repository / "refs" / "main", 1024);
    while (!revision.empty() &&
           (revision.back() == '\n' || revision.back() == '\r' || revision.back() == ' ')) {
      revision.pop_back();
    }
    if (is_plain_name(revision) && is_folder(snapshots / revision)) return snapshots / revision;
  }
  std::optional<fs::path> newest;
  fs::file_time_type newest_time{};
  std::error_code failure;
  for (fs::directory_iterator at(snapshots, failure), end; !failure && at != end; at.increment(failure)) {
    std::error_code ignored;
    const auto time = fs::last_write_time(at->path(), ignored);
    if (!is_folder(at->path()) || ignored) continue;
    if (!newest || time > newest_time || (time == newest_time && at->path() > *newest)) {
      newest = at->path();
      newest_time = time;
    }
  }
  return newest;
}

ModelLocation model_in_folder(const fs::path& folder) {
  const bool config = is_file(folder / "config.json");
  if (config && has_weights(folder)) return {FileKind::hub_folder, folder};
  const auto files = files_with(folder, ".gguf");
  if (files.size() == 1) return {FileKind::gguf, files.front()};
  if (files.size() > 1) {
    throw Error(ErrorKind::file, folder.string(),
                fmt::format("{} GGUF files: {}", files.size(), names_of(files)), "one",
                "give the path of the one to use");
  }
  throw Error(ErrorKind::file, folder.string(),
              config ? "config.json but no model.safetensors" : "no model in this folder",
              "config.json with model.safetensors or its index, or one .gguf file",
              "fetch the whole model with `keysieve pull org/name`");
}

ModelLocation model_at_path(const fs::path& path) {
  if (is_folder(path)) return model_in_folder(path);
  const FileKind kind = detect_kind(path);
  if (kind == FileKind::gguf) return {kind, path};
  throw Error(ErrorKind::format, path.string(),
              kind == FileKind::safetensors ? "a safetensors file alone" : "no model file",
              "a GGUF file, or the folder of config.json and model.safetensors");
}

IndexerLocation with_run_config(std::vector<fs::path> weights, const fs::path& folder) {
  IndexerLocation location{std::move(weights), std::nullopt};
  const fs::path config = folder / "run_config.json";
  if (is_file(config)) location.run_config = config;
  return location;
}

// The name with each number as one '#': files that differ in nothing else are parts of one thing.
std::string without_numbers(const std::string& name) {
  std::string pattern;
  for (const char c : name) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit) pattern += c;
    if (digit && !pattern.ends_with('#')) pattern += '#';
  }
  return pattern;
}

bool are_numbered(const std::vector<fs::path>& files) {
  const std::string pattern = without_numbers(files.front().filename().string());
  return pattern.find('#') != std::string::npos && std::ranges::all_of(files, [&](const fs::path& file) {
           return without_numbers(file.filename().string()) == pattern;
         });
}

// layer_0/indexer.safetensors, layer_1/indexer.safetensors, ...
std::vector<fs::path> files_of_numbered_folders(const fs::path& folder) {
  std::vector<fs::path> folders;
  std::error_code failure;
  for (fs::directory_iterator at(folder, failure), end; !failure && at != end; at.increment(failure)) {
    if (is_folder(at->path()) && !files_with(at->path(), ".safetensors").empty())
      folders.push_back(at->path());
  }
  std::vector<fs::path> files;
  if (folders.empty() || !are_numbered(folders)) return files;
  for (const fs::path& layer : folders) {
    for (const fs::path& file : files_with(layer, ".safetensors")) files.push_back(file);
  }
  std::ranges::sort(files);
  return files;
}

IndexerLocation indexer_in_folder(const fs::path& folder) {
  // Where a folder holds several files (training leaves more than one), these are the ones meant to be used.
  constexpr std::array<std::string_view, 3> kNames = {
      "indexer.safetensors", "lightning_indexer_best_assembled.safetensors", "model.safetensors"};
  for (const std::string_view name : kNames) {
    if (is_file(folder / name)) return with_run_config({folder / name}, folder);
  }
  auto files = files_with(folder, ".safetensors");
  if (files.empty()) files = files_of_numbered_folders(folder);
  if (files.size() == 1 || (!files.empty() && (are_numbered(files) || files.front().parent_path() != folder)))
    return with_run_config(std::move(files), folder);
  throw Error(ErrorKind::file, folder.string(),
              files.empty() ? "no .safetensors file"
                            : fmt::format("{} .safetensors files: {}", files.size(), names_of(files)),
              "one indexer", files.empty() ? "" : "give the path of the one to use");
}

IndexerLocation indexer_at_path(const fs::path& path) {
  if (is_folder(path)) return indexer_in_folder(path);
  if (detect_kind(path) == FileKind::safetensors) return with_run_config({path}, path.parent_path());
  throw Error(ErrorKind::format, path.string(), "no safetensors file",
              "an indexer's .safetensors file or its folder");
}

// The existing path that the argument means, whatever it is a path of: itself, FOLDER/NAME,
// FOLDER/NAME<extension>, or a Hub snapshot.
fs::path find_path(std::string_view argument, const SearchPaths& search, std::string_view extension,
                   std::string_view thing) {
  if (argument.empty())
    throw Error(ErrorKind::usage, thing, "an empty name", "a path, a Hub id or a short name");
  std::error_code ignored;
  const fs::path path(argument);
  if (fs::exists(path, ignored)) return path;
  std::vector<std::string> tried = {"a path"};
  if (is_plain_name(argument)) {
    for (const fs::path& folder : search.folders) {
      if (is_folder(folder / argument)) return folder / argument;
      fs::path file = folder / argument;
      file += extension;
      if (is_file(file)) return file;
      tried.push_back((folder / argument).string());
    }
  }
  const auto id = parse_hub_id(argument);
  if (id) {
    for (const fs::path& cache : search.hub_caches) {
      const fs::path repository = hub_repository(cache, *id);
      if (const auto snapshot = find_snapshot(repository)) return *snapshot;
      tried.push_back(repository.string());
    }
  }
  std::string way_out = "check the path";
  if (id) {
    way_out = fmt::format("fetch it with `keysieve pull {}`", argument);
  } else if (is_plain_name(argument) && thing == "model") {
    way_out = "`./run demo` fetches smollm2-135m; `keysieve pull org/name` fetches a model of the Hub";
  }
  throw Error(ErrorKind::file, fmt::format("{} {}", thing, argument),
              fmt::format("not found; tried {}", fmt::join(tried, ", ")), {}, way_out);
}

}  // namespace

std::string_view to_string(FileKind kind) {
  switch (kind) {
    case FileKind::gguf:
      return "gguf";
    case FileKind::safetensors:
      return "safetensors";
    case FileKind::hub_folder:
      return "hub folder";
    case FileKind::indexer_folder:
      return "indexer folder";
    case FileKind::unknown:
      return "unknown";
  }
  return "unknown";
}

FileKind detect_kind(const fs::path& path) {
  if (is_folder(path)) {
    if (is_file(path / "config.json")) return FileKind::hub_folder;
    if (is_file(path / "run_config.json")) return FileKind::indexer_folder;
    return FileKind::unknown;
  }
  const MappedFile file(path);
  const auto bytes = file.bytes();
  if (bytes.size() >= 4 && load<uint32_t>(bytes) == 0x46554747) return FileKind::gguf;
  // safetensors has no magic: a plausible header length and the brace of its JSON.
  if (bytes.size() >= 10 && bytes[8] == std::byte{'{'} && load<uint64_t>(bytes) <= bytes.size() - 8) {
    return FileKind::safetensors;
  }
  return FileKind::unknown;
}

std::optional<HubId> parse_hub_id(std::string_view text) {
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const HubId id{text.substr(0, slash), text.substr(slash + 1)};
  if (!is_plain_name(id.org) || !is_plain_name(id.name)) return std::nullopt;
  return id;
}

fs::path hub_repository(const fs::path& cache, const HubId& id) {
  return cache / fmt::format("models--{}--{}", id.org, id.name);
}

std::vector<fs::path> default_hub_caches() {
  const auto variable = [](const char* name) -> std::optional<fs::path> {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return fs::path(value);
  };
  if (const auto cache = variable("HF_HUB_CACHE")) return {*cache};
  if (const auto home = variable("HF_HOME")) return {*home / "hub"};
  if (const auto cache = variable("XDG_CACHE_HOME")) return {*cache / "huggingface" / "hub"};
  if (const auto home = variable("HOME")) return {*home / ".cache" / "huggingface" / "hub"};
  return {};
}

ModelLocation locate_model(std::string_view argument, const SearchPaths& search) {
  return model_at_path(find_path(argument, search, ".gguf", "model"));
}

IndexerLocation locate_indexer(std::string_view argument, const SearchPaths& search) {
  return indexer_at_path(find_path(argument, search, ".safetensors", "indexer"));
}

bool has_all_shards(const fs::path& folder) {
  const fs::path index = folder / "model.safetensors.index.json";
  if (!is_file(index)) return true;
  const Json document = read_json_file(index);
  const auto map = document.find("weight_map");
  if (map == document.end() || !map->is_object()) return true;  // what reads the tensors says what is wrong
  return std::ranges::all_of(*map, [&](const Json& shard) {
    return !shard.is_string() || is_file(folder / shard.get<std::string>());
  });
}

}  // namespace keysieve
