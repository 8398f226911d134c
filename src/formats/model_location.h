#pragma once

#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

namespace keysieve {

enum class FileKind { gguf, safetensors, hub_folder, indexer_folder, unknown };
std::string_view to_string(FileKind kind);  // "gguf", "safetensors", "hub folder", ...

// By content, not by name: the GGUF magic; a safetensors header; a folder with config.json (hub_folder) or
// with run_config.json (indexer_folder). Throws Error{file} if the path cannot be read.
FileKind detect_kind(const std::filesystem::path& path);

// The Hub caches to look in, by the rules of the `hf` tool: $HF_HUB_CACHE, else $HF_HOME/hub, else
// $XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub.
std::vector<std::filesystem::path> default_hub_caches();

// `org/name` in its two parts; nullopt for what is no Hub id. Both parts are plain file names.
struct HubId {
  std::string_view org;
  std::string_view name;
};
std::optional<HubId> parse_hub_id(std::string_view text);
// The folder of a Hub cache that holds this repository: CACHE/models--ORG--NAME.
std::filesystem::path hub_repository(const std::filesystem::path& cache, const HubId& id);

struct SearchPaths {
  std::vector<std::filesystem::path> folders;  // FOLDER/NAME/ or FOLDER/NAME.gguf is the short name NAME
  std::vector<std::filesystem::path> hub_caches = default_hub_caches();
};

struct ModelLocation {
  FileKind kind = FileKind::unknown;  // gguf or hub_folder
  std::filesystem::path path;         // the .gguf file, or the folder of config.json
};

struct IndexerLocation {
  std::vector<std::filesystem::path> weights;       // .safetensors: one, or one for each layer or shard
  std::optional<std::filesystem::path> run_config;  // run_config.json beside it
};

// What a --model or --indexer argument means, tried in this order: an existing path, a short name, a Hub id
// (`org/name`, the snapshot refs/main names, else the newest). A folder may also hold one .gguf file. Throws
// Error{file} saying what was tried and how to get the model.
ModelLocation locate_model(std::string_view argument, const SearchPaths& search);
IndexerLocation locate_indexer(std::string_view argument, const SearchPaths& search);

// Whether all shards are there that the folder's model.safetensors.index.json names (true without one): a
// download that was stopped leaves some.
bool has_all_shards(const std::filesystem::path& folder);

}  // namespace keysieve
