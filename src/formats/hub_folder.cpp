#include "formats/hub_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;  // real ones: under 10 KB
constexpr size_t kMaxIndexBytes = size_t{64} << 20;   // real ones: under 1 MB, 80 bytes a tensor
constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

// weight_map of the index: tensor name -> shard file name. A shard must be a plain name inside the folder.
std::map<std::string, std::string> read_weight_map(const std::filesystem::path& path) {
  const Json index = read_json_file(path, kMaxIndexBytes);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object()) {
    throw Error(ErrorKind::format, path.string(), "no \"weight_map\"", "{weight_map: {tensor: shard}}");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string())
      throw Error(ErrorKind::format, path.string(), "the shard of " + tensor + " is no string");
    const auto& name = shard.get_ref<const std::string&>();
    const bool inside = !name.empty() &&
                        name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos &&
                        name != "." && name.find("..") == std::string::npos;
    if (!inside) {
      throw Error(ErrorKind::format, path.string(), fmt::format("tensor {} is in \"{}\"", tensor, name),
                  "a file name inside the folder");
    }
    shards.emplace(tensor, name);
  }
  return shards;
}

MlxQuantization supported(const Json& settings, const Json& defaults, const std::string& subject,
                          std::string_view module) {
  const auto number = [&](std::string_view key) {
    return json_value<size_t>(settings, key, json_value<size_t>(defaults, key, 0, subject), subject);
  };
  const auto mode = json_value<std::string>(
      settings, "mode", json_value<std::string>(defaults, "mode", "affine", subject), subject);
  const size_t group = number("group_size");
  const size_t bits = number("bits");
  // Sizes past an int are no known ones either.
  const MlxQuantization found{.group_size = static_cast<int>(std::min<size_t>(group, 1 << 20)),
                              .bits = static_cast<int>(std::min<size_t>(bits, 1 << 20))};
  if (mode != "affine" || !found.known()) {
    throw Error(ErrorKind::unsupported, subject,
                fmt::format("{} is quantised by mode {}, {} bits, groups of {}", module, mode, bits, group),
                fmt::format("affine, {}", MlxQuantization::kKnown),
                "take an affine MLX model, or a GGUF file");
  }
  return found;
}

}  // namespace

HubFolder::HubFolder(std::filesystem::path folder) : folder_(std::move(folder)) {
  if (!std::filesystem::is_directory(folder_)) {
    throw Error(ErrorKind::file, folder_.string(), "no such folder",
                "a folder with config.json and *.safetensors");
  }
  if (!file("config.json")) {
    throw Error(ErrorKind::file, folder_.string(), "no config.json",
                "a folder as the Hugging Face Hub lays it out",
                "fetch the whole model with `keysieve pull org/name`");
  }
  config_ = read_json_file(folder_ / "config.json", kMaxConfigBytes);
  if (!config_.is_object()) throw Error(ErrorKind::format, config_subject(), "is no JSON object");
  open_shards();
}

std::string HubFolder::config_subject() const { return (folder_ / "config.json").string(); }

std::optional<std::filesystem::path> HubFolder::file(std::string_view name) const {
  std::filesystem::path path = folder_ / name;
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return std::nullopt;
  return path;
}

void HubFolder::open_shards() {
  std::map<std::string, std::string> shard_of;
  std::map<std::string, size_t> shard_index;
  if (const auto index = file(kIndexFile)) {
    shard_of = read_weight_map(*index);
    for (const auto& [tensor, shard] : shard_of) shard_index.emplace(shard, 0);
  } else {
    shard_index.emplace(kSingleFile, 0);
  }
  for (auto& [name, position] : shard_index) {
    if (!file(name)) {
      throw Error(ErrorKind::file, folder_.string(), "no " + name, "all weight files of the model",
                  "fetch the whole model with `keysieve pull org/name`");
    }
    position = shards_.size();
    shards_.emplace_back(folder_ / name);
  }
  for (const SafetensorsFile& shard : shards_) {
    for (const TensorInfo& tensor : shard.tensors()) {
      if (!index_.emplace(tensor.name, &tensor).second) {
        throw Error(ErrorKind::format, tensor.subject(), "is also in another shard", "every name once");
      }
      tensors_.push_back(&tensor);
    }
  }
  for (const auto& [tensor, shard] : shard_of) {
    if (shards_[shard_index.at(shard)].find(tensor) == nullptr) {
      throw Error(ErrorKind::format, (folder_ / shard).string(), "no tensor " + tensor,
                  fmt::format("what {} says", kIndexFile), "fetch the model again");
    }
  }
}

const TensorInfo* HubFolder::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : found->second;
}

const TensorInfo& HubFolder::require_tensor(std::string_view name) const {
  if (const TensorInfo* tensor = find(name)) return *tensor;
  throw Error(ErrorKind::format, folder_.string(), fmt::format("no tensor {}", name));
}

std::optional<MlxQuantization> HubFolder::quantization(std::string_view module) const {
  const auto settings = config_.find("quantization");
  if (settings == config_.end() || settings->is_null()) {
    const auto other = config_.find("quantization_config");
    if (other != config_.end() && other->is_object() && other->contains("quant_method")) {
      throw Error(ErrorKind::unsupported, config_subject(),
                  fmt::format("quantised by {}", other->at("quant_method").dump()),
                  "plain or MLX affine weights", "take the original, an MLX or a GGUF version of this model");
    }
    if (find(fmt::format("{}.scales", module)) != nullptr) {
      throw Error(ErrorKind::format, config_subject(),
                  fmt::format("no \"quantization\", yet {} has scales", module));
    }
    return std::nullopt;
  }
  if (!settings->is_object())
    throw Error(ErrorKind::format, config_subject(), "\"quantization\" is no object");
  const auto own = settings->find(std::string(module));
  if (own != settings->end() && own->is_boolean() && !own->get<bool>()) return std::nullopt;
  if (find(fmt::format("{}.scales", module)) == nullptr) return std::nullopt;
  if (own == settings->end() || own->is_boolean())
    return supported(*settings, *settings, config_subject(), module);
  if (!own->is_object()) {
    throw Error(ErrorKind::format, config_subject(),
                fmt::format("quantization of {} is {}", module, own->type_name()),
                "false or {group_size, bits}");
  }
  return supported(*own, *settings, config_subject(), module);
}

}  // namespace keysieve
