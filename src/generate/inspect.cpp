#include "keysieve/inspect.h"

#include <fmt/format.h>

#include <utility>

#include "core/json.h"
#include "formats/gguf.h"
#include "formats/hub_folder.h"
#include "formats/model_location.h"
#include "formats/safetensors.h"
#include "generate/handles.h"
#include "indexer/indexer_layout.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {
namespace fs = std::filesystem;

// GGUF vocabularies have 150,000 entries; the first show what the array holds.
constexpr size_t kShownElements = 8;

TensorDescription describe(const TensorInfo& tensor, std::string file = {}) {
  return {tensor.name, std::string(tensor.type_name()), tensor.shape, tensor.data.size(), std::move(file)};
}

void count(Description& description, const TensorInfo& tensor) {
  description.parameters += tensor.elements();
}

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Description inspect_gguf(const fs::path& path) {
  const GgufFile file(path);
  Description description;
  description.file_bytes = file.file_bytes();
  if (file.has("general.architecture")) {
    description.architecture = file.require<std::string_view>("general.architecture");
  }
  Json metadata = Json::object();
  metadata["gguf.version"] = file.version();
  for (const GgufEntry& entry : file.metadata()) {
    Json value = to_json(entry, kShownElements);
    if (entry.is_array) value = {{"count", entry.count}, {"first", std::move(value)}};
    metadata[std::string(entry.key)] = std::move(value);
  }
  description.metadata = dump(metadata);
  for (const TensorInfo& tensor : file.tensors()) {
    description.tensors.push_back(describe(tensor));
    count(description, tensor);
  }
  return description;
}

void add_safetensors(Description& description, const SafetensorsFile& file, const std::string& name) {
  description.file_bytes += file.file_bytes();
  for (const TensorInfo& tensor : file.tensors()) {
    description.tensors.push_back(describe(tensor, name));
    count(description, tensor);
  }
}

Description inspect_safetensors(const fs::path& path) {
  const SafetensorsFile file(path);
  Description description;
  description.metadata = dump(Json(file.metadata()));
  add_safetensors(description, file, {});
  return description;
}

Description inspect_hub_folder(const fs::path& path) {
  const HubFolder folder(path);
  Description description;
  description.metadata = dump(folder.config());
  if (const auto type = folder.config().find("model_type");
      type != folder.config().end() && type->is_string()) {
    description.architecture = type->get<std::string>();
  }
  for (const SafetensorsFile& shard : folder.shards()) {
    add_safetensors(description, shard, fs::path(shard.subject()).filename().string());
  }
  return description;
}

Description::Understanding understand(const std::vector<SafetensorsFile>& files, const Json& run_config,
                                      const std::string& subject) {
  Description::Understanding result;
  try {
    IndexerConfig config = parse_indexer_config(run_config, subject);
    const bool told = config.layers != 0;
    const IndexerLayout layout = read_layout(
        files, config, [&](const Error& error) { result.not_understood.emplace_back(error.what()); });
    result.assumed = layout.assumed;
    result.ignored = layout.ignored;
    const bool seed = config.shape == IndexerShape::seed;
    result.found.push_back(fmt::format("shape {}: {} query heads and {} key{} of {} values{}",
                                       to_string(config.shape), config.heads, config.key_heads,
                                       config.key_heads == 1 ? "" : "s", config.dim,
                                       seed ? fmt::format(", the first {} rotated", config.rope_dim) : ""));
    result.found.push_back(fmt::format("{} layers{}{}", config.layers - layout.missing.size(),
                                       config.has_bias ? ", with biases" : "",
                                       config.has_norm ? ", with norms" : ""));
    if (!layout.missing.empty()) {
      result.found.push_back(
          fmt::format("nothing of layers {}: they run dense", layer_ranges(layout.missing)));
    }
    if (!told) result.assumed.push_back(fmt::format("the model has {} layers", config.layers));
    if (seed && config.rope_theta == 0) result.assumed.emplace_back("RoPE's theta is the model's");
    if (config.model.empty()) {
      result.assumed.emplace_back(
          "it belongs to the model it is used with: no fingerprint is in run_config.json");
    }
  } catch (const Error& error) {
    result.not_understood.emplace_back(error.what());
  }
  return result;
}

// run_config.json and the weights beside it, in whatever shape: what does not fit shows.
Description inspect_indexer(const IndexerLocation& location) {
  std::vector<SafetensorsFile> files;
  for (const fs::path& path : location.weights) files.emplace_back(path);
  Description description;
  description.architecture = "indexer";
  description.metadata = dump(Json(files.front().metadata()));
  for (const SafetensorsFile& file : files) {
    add_safetensors(description, file, files.size() == 1 ? "" : fs::path(file.subject()).filename().string());
  }
  if (location.run_config) {
    const Json run_config = read_json_file(*location.run_config);
    description.metadata = dump(run_config);
    description.understanding = understand(files, run_config, location.run_config->string());
  } else {
    description.understanding.emplace();
    description.understanding->not_understood.emplace_back(
        "no run_config.json beside it: heads and sizes are not known");
  }
  return description;
}

struct Found {
  FileKind kind;
  fs::path path;
  IndexerLocation indexer;
};

Found find(std::string_view argument, std::span<const fs::path> folders) {
  std::error_code ignored;
  if (fs::exists(argument, ignored)) {
    const FileKind kind = detect_kind(argument);
    if (kind == FileKind::indexer_folder)
      return {kind, argument, locate_indexer(argument, indexer_search(folders))};
    if (kind != FileKind::unknown) return {kind, argument, {}};
    // A folder may hold one .gguf file; a damaged file is reported by its own reader.
    const ModelLocation location = locate_model(argument, model_search(folders));
    return {location.kind, location.path, {}};
  }
  try {
    const ModelLocation location = locate_model(argument, model_search(folders));
    return {location.kind, location.path, {}};
  } catch (const Error& no_model) {
    try {
      IndexerLocation location = locate_indexer(argument, indexer_search(folders));
      return {FileKind::indexer_folder, location.weights.front(), location};
    } catch (const Error&) {
      throw no_model;
    }
  }
}

}  // namespace

Description inspect(std::string_view argument, std::span<const fs::path> folders) {
  const Found found = find(argument, folders);
  Description description;
  switch (found.kind) {
    case FileKind::gguf:
      description = inspect_gguf(found.path);
      break;
    case FileKind::safetensors:
      description = inspect_safetensors(found.path);
      break;
    case FileKind::hub_folder:
      description = inspect_hub_folder(found.path);
      break;
    case FileKind::indexer_folder:
      description = inspect_indexer(found.indexer);
      break;
    case FileKind::unknown:
      throw Error(ErrorKind::format, found.path.string(), "no known format",
                  "GGUF, safetensors or a model folder");
  }
  description.kind = to_string(found.kind);
  description.path = found.path.string();
  return description;
}

}  // namespace keysieve
