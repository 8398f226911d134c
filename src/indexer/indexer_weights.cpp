#include "indexer/indexer_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <system_error>
#include <utility>

#include "core/file_io.h"
#include "core/half.h"
#include "formats/matrix.h"
#include "indexer/tensor_role.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr std::string_view kConfigName = "run_config.json";
constexpr std::string_view kWeightsName = "indexer.safetensors";
constexpr std::string_view kSeedWeightsName = "lightning_indexer_best_assembled.safetensors";

std::vector<float> read_finite(const TensorInfo& tensor) {
  std::vector<float> values = read_vector(tensor);
  if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
    throw Error(ErrorKind::format, tensor.subject(), "a value that is not finite", "finite weights",
                "get the file again");
  }
  return values;
}

std::vector<float> read_optional(const TensorInfo* tensor) {
  return tensor ? read_finite(*tensor) : std::vector<float>{};
}

// f16 and bf16 hold different values, so a layer that mixes types is kept in f32.
DType common_dtype(std::initializer_list<const TensorInfo*> matrices) {
  std::optional<DType> common;
  for (const TensorInfo* matrix : matrices) {
    if (!matrix) continue;
    if (common && *common != matrix->dtype) return DType::f32;
    common = matrix->dtype;
  }
  return common.value_or(DType::f32);
}

std::optional<std::filesystem::path> only_weights_file(const std::filesystem::path& folder) {
  for (const std::string_view name : {kWeightsName, kSeedWeightsName}) {
    std::error_code ignored;
    if (std::filesystem::is_regular_file(folder / name, ignored)) return folder / name;
  }
  std::vector<std::filesystem::path> found;
  std::error_code failure;
  for (const auto& entry : std::filesystem::directory_iterator(folder, failure)) {
    if (entry.path().extension() == ".safetensors") found.push_back(entry.path());
  }
  if (failure) throw Error(ErrorKind::file, folder.string(), failure.message(), "a readable folder");
  if (found.size() > 1) {
    throw Error(ErrorKind::file, folder.string(), fmt::format("{} .safetensors files", found.size()), "one",
                "name the file instead of the folder");
  }
  return found.empty() ? std::nullopt : std::optional(found.front());
}

}  // namespace

IndexerPaths find_indexer_files(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    throw Error(ErrorKind::file, path.string(), "no such file or folder",
                "an indexer's folder or .safetensors file");
  }
  std::filesystem::path weights = path;
  if (std::filesystem::is_directory(path, ignored)) {
    const auto found = only_weights_file(path);
    if (!found) throw Error(ErrorKind::file, path.string(), "no .safetensors file", "an indexer's weights");
    weights = *found;
  }
  std::filesystem::path run_config = weights.parent_path() / kConfigName;
  if (!std::filesystem::is_regular_file(run_config, ignored)) {
    throw Error(ErrorKind::file, weights.string(), "no run_config.json beside it",
                "the configuration the indexer was made with", "copy it into the same folder");
  }
  return {std::move(weights), std::move(run_config)};
}

IndexerFile::IndexerFile(const std::filesystem::path& path, const ModelShape& model)
    : IndexerFile(find_indexer_files(path).weights, find_indexer_files(path).run_config, model) {}

IndexerFile::IndexerFile(const std::filesystem::path& weights, const std::filesystem::path& run_config,
                         const ModelShape& model)
    : file_(weights), config_(read_indexer_config(run_config)) {
  bind_to_model(config_, model, file_.subject());
  layers_.resize(config_.layers);
  sort_tensors();
  check_complete();
}

void IndexerFile::sort_tensors() {
  for (const TensorInfo& tensor : file_.tensors()) {
    require_readable(tensor);
    const std::optional<size_t> layer = layer_in_name(tensor.name);
    if (!layer) {
      throw Error(ErrorKind::format, tensor.subject(), "a name without a layer number",
                  "names like layers.0.indexer.wq.weight", "rename or remove the tensor");
    }
    if (*layer >= config_.layers) {
      throw Error(ErrorKind::mismatch, tensor.subject(), fmt::format("layer {}", *layer),
                  fmt::format("layers 0 to {} as the model has", config_.layers - 1),
                  "use an indexer made for this model");
    }
    place(layers_[*layer], tensor);
  }
}

void IndexerFile::place(LayerTensors& layer, const TensorInfo& tensor) {
  // Indexed by TensorRole.
  const std::array<const TensorInfo**, 7> places{
      &layer.q, &layer.k, &layer.head_weight, &layer.q_bias, &layer.k_bias, &layer.q_norm, &layer.k_norm};
  const TensorRole role =
      config_.shape == IndexerShape::seed ? seed_role(tensor, config_) : native_role(tensor, config_);
  const TensorInfo*& target = *places[static_cast<size_t>(role)];
  if (target) {
    throw Error(ErrorKind::format, tensor.subject(),
                fmt::format("a second {} of its layer beside {}", to_string(role), target->name), "one",
                "remove one of the two");
  }
  target = &tensor;
}

void IndexerFile::check_complete() {
  // A part some layer has, every layer must have: a file cut short would otherwise pass for one without
  // biases.
  const auto any = [&](const TensorInfo* LayerTensors::* part) {
    return std::any_of(layers_.begin(), layers_.end(),
                       [&](const LayerTensors& layer) { return layer.*part; });
  };
  config_.has_bias = any(&LayerTensors::q_bias) || any(&LayerTensors::k_bias);
  config_.has_norm = any(&LayerTensors::q_norm) || any(&LayerTensors::k_norm);
  const bool seed = config_.shape == IndexerShape::seed;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerTensors& layer = layers_[i];
    const auto need = [&](const TensorInfo* tensor, bool wanted, TensorRole role) {
      if (tensor || !wanted) return;
      throw Error(ErrorKind::format, subject(), fmt::format("no {} for layer {}", to_string(role), i),
                  fmt::format("all {} layers complete", config_.layers), "get the whole file again");
    };
    need(layer.q, true, TensorRole::q);
    need(layer.k, true, TensorRole::k);
    need(layer.head_weight, seed, TensorRole::head_weight);
    need(layer.q_bias, config_.has_bias && seed, TensorRole::q_bias);
    need(layer.k_bias, config_.has_bias, TensorRole::k_bias);
    need(layer.q_norm, config_.has_norm, TensorRole::q_norm);
    need(layer.k_norm, config_.has_norm, TensorRole::k_norm);
  }
}

IndexerLayerWeights IndexerFile::layer(size_t index) const {
  const LayerTensors& tensors = layers_.at(index);
  IndexerLayerWeights weights;
  weights.q = read_finite(*tensors.q);
  weights.k = read_finite(*tensors.k);
  weights.head_weight = read_optional(tensors.head_weight);
  weights.q_bias = read_optional(tensors.q_bias);
  weights.k_bias = read_optional(tensors.k_bias);
  weights.q_norm = read_optional(tensors.q_norm);
  weights.k_norm = read_optional(tensors.k_norm);
  weights.dtype = common_dtype({tensors.q, tensors.k, tensors.head_weight});
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
