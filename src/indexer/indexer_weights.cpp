#include "indexer/indexer_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <optional>
#include <system_error>
#include <utility>

#include "core/file_io.h"
#include "core/half.h"
#include "formats/model_location.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr std::string_view kConfigName = "run_config.json";
constexpr std::string_view kWeightsName = "indexer.safetensors";

// f16 and bf16 hold different values, so a layer that mixes types is kept in f32.
DType common_dtype(const LayerLayout& layer) {
  std::optional<DType> common;
  for (const TensorRole role : {TensorRole::q, TensorRole::k, TensorRole::head_weight}) {
    for (const PlacedRows& placed : layer.of(role)) {
      if (common && *common != placed.tensor->dtype) return DType::f32;
      common = placed.tensor->dtype;
    }
  }
  return common.value_or(DType::f32);
}

std::vector<SafetensorsFile> open_all(std::span<const std::filesystem::path> paths) {
  std::vector<SafetensorsFile> files;
  for (const std::filesystem::path& path : paths) files.emplace_back(path);
  return files;
}

// A path of an indexer with its run_config.json.
IndexerLocation whole_location(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    throw Error(ErrorKind::file, path.string(), "no such file or folder",
                "an indexer's folder or .safetensors file");
  }
  IndexerLocation location = locate_indexer(path.string(), {});
  if (!location.run_config) {
    throw Error(ErrorKind::file, location.weights.front().string(), "no run_config.json beside it",
                "the configuration the indexer was made with", "copy it into the same folder");
  }
  return location;
}

}  // namespace

IndexerFile::IndexerFile(const std::filesystem::path& path, const ModelShape& model) {
  const IndexerLocation location = whole_location(path);
  *this = IndexerFile(location.weights, *location.run_config, model);
}

IndexerFile::IndexerFile(std::span<const std::filesystem::path> weights,
                         const std::filesystem::path& run_config, const ModelShape& model)
    : files_(open_all(weights)), config_(read_indexer_config(run_config)) {
  bind_to_model(config_, model, subject());
  layout_ = read_layout(files_, config_);
}

IndexerLayerWeights IndexerFile::layer(size_t index) const {
  const LayerLayout& layout = layout_.layers.at(index);
  if (layout.empty()) {
    throw Error(ErrorKind::format, subject(), fmt::format("nothing of layer {}", index), "its weights",
                "use an indexer that has all layers");
  }
  IndexerLayerWeights weights;
  weights.q = read_part(layout.of(TensorRole::q));
  weights.k = read_part(layout.of(TensorRole::k));
  weights.head_weight = read_part(layout.of(TensorRole::head_weight));
  weights.q_bias = read_part(layout.of(TensorRole::q_bias));
  weights.k_bias = read_part(layout.of(TensorRole::k_bias));
  weights.q_norm = read_part(layout.of(TensorRole::q_norm));
  weights.k_norm = read_part(layout.of(TensorRole::k_norm));
  weights.dtype = common_dtype(layout);
  if (weights.dtype != DType::f16 && weights.dtype != DType::bf16) weights.dtype = DType::f32;
  return weights;
}

namespace {

// One tensor of a layer to be saved, if the layer has it.
struct SavedPart {
  std::string_view name;
  std::vector<uint64_t> shape;
  const std::vector<float>& values;
  bool wanted;
};

// `values` in two bytes each. Throws Error{usage} for one out of f16's range.
template <class Rounded, Rounded (*kRound)(float)>
std::vector<std::byte> rounded(std::span<const float> values, std::string_view subject) {
  std::vector<std::byte> bytes(values.size() * sizeof(Rounded));
  for (size_t i = 0; i < values.size(); ++i) {
    const Rounded value = kRound(values[i]);
    if (std::isfinite(values[i]) && !std::isfinite(to_float(value))) {
      throw Error(ErrorKind::usage, subject, fmt::format("the value {}", values[i]), "one that f16 can hold",
                  "save as bf16 or f32");
    }
    std::memcpy(&bytes[i * sizeof(Rounded)], &value, sizeof(Rounded));
  }
  return bytes;
}

std::vector<SavedPart> parts_of(const IndexerConfig& config, const IndexerLayerWeights& layer) {
  const uint64_t heads = config.heads;
  const uint64_t dim = config.dim;
  if (config.shape == IndexerShape::native) {
    const uint64_t maps = config.map_per_head ? heads : config.key_heads;
    return {{"q_proj", {maps, dim, config.head_dim}, layer.q, true},
            {"k_proj", {config.key_heads, dim, config.head_dim}, layer.k, true},
            {"k_bias", {config.key_heads, dim}, layer.k_bias, config.has_bias}};
  }
  return {{"wq.weight", {heads * dim, config.hidden}, layer.q, true},
          {"wk.weight", {dim, config.hidden}, layer.k, true},
          {"weights_proj.weight", {heads, config.hidden}, layer.head_weight, true},
          {"wq.bias", {heads * dim}, layer.q_bias, config.has_bias},
          {"wk.bias", {dim}, layer.k_bias, config.has_bias},
          {"q_norm.weight", {heads * dim}, layer.q_norm, config.has_norm},
          {"k_norm.weight", {dim}, layer.k_norm, config.has_norm}};
}

}  // namespace

void save_indexer(const std::filesystem::path& folder, const IndexerConfig& config,
                  std::span<const IndexerLayerWeights> layers, DType dtype) {
  if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16)
    throw Error(ErrorKind::usage, "save indexer", to_string(dtype), "f32, f16 or bf16");
  if (layers.size() != config.layers) {
    throw Error(ErrorKind::usage, "save indexer", fmt::format("{} layers of weights", layers.size()),
                fmt::format("{}", config.layers));
  }
  std::vector<TensorToWrite> tensors;
  std::deque<std::vector<std::byte>> narrow;  // what `tensors` points at; a deque moves nothing
  for (size_t i = 0; i < layers.size(); ++i) {
    for (SavedPart& part : parts_of(config, layers[i])) {
      uint64_t elements = part.wanted ? 1 : 0;
      for (const uint64_t extent : part.shape) elements *= extent;
      if (part.values.size() != elements) {
        throw Error(ErrorKind::usage, fmt::format("save indexer, layer {}, {}", i, part.name),
                    fmt::format("{} values", part.values.size()), fmt::format("{}", elements));
      }
      if (!part.wanted) continue;
      std::string name = fmt::format("layers.{}.indexer.{}", i, part.name);
      if (dtype == DType::f32 || part.shape.size() == 1 || part.name == "k_bias") {
        tensors.push_back(
            {std::move(name), DType::f32, std::move(part.shape), std::as_bytes(std::span(part.values))});
        continue;
      }
      narrow.push_back(dtype == DType::bf16 ? rounded<BFloat16, to_bfloat16>(part.values, name)
                                            : rounded<Half, to_half>(part.values, name));
      tensors.push_back({std::move(name), dtype, std::move(part.shape), narrow.back()});
    }
  }
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  if (failure)
    throw Error(ErrorKind::file, folder.string(), failure.message(), "a folder that can be written");
  write_safetensors(folder / kWeightsName, tensors, {{"format", "keysieve-indexer"}});
  AtomicFileWriter run_config(folder / kConfigName);
  run_config.write(to_json(config).dump(1) + "\n");
  run_config.commit();
}

}  // namespace keysieve
