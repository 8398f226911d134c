#include "train/checkpoint.h"

#include <fmt/format.h>

#include <array>
#include <map>
#include <span>

#include "core/json.h"
#include "formats/matrix.h"
#include "formats/safetensors.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

std::string name_of(const TrainedLayer& layer, const TrainedTensor& tensor, std::string_view part) {
  return fmt::format("layers.{}.{}.{}", layer.index, tensor.name, part);
}

TensorToWrite to_write(std::string name, const std::vector<float>& values) {
  return {std::move(name), DType::f32, {values.size()}, std::as_bytes(std::span(values))};
}

void read_into(std::vector<float>& values, const SafetensorsFile& file, const std::string& name,
               size_t size) {
  const TensorInfo& tensor = file.require_tensor(name);
  const std::array<uint64_t, 1> shape{size};
  require_shape(tensor, shape);
  values = read_vector(tensor);
}

// The first setting that differs, as "key: one, other".
std::string first_difference(const std::string& one, const std::string& other) {
  const Json left = parse_json(one, "settings");
  const Json right = parse_json(other, "settings");
  for (const auto& [key, value] : left.items()) {
    if (!right.contains(key) || right.at(key) != value) return fmt::format("{} {}", key, value.dump());
  }
  return "other settings";
}

}  // namespace

void save_checkpoint(const std::filesystem::path& path, const TrainingState& state,
                     const std::string& settings) {
  std::vector<TensorToWrite> tensors;
  for (const TrainedLayer& layer : state.layers) {
    const std::span<const TrainedTensor> own = std::as_const(*layer.student).tensors();
    for (size_t i = 0; i < own.size(); ++i) {
      tensors.push_back(to_write(name_of(layer, own[i], "value"), own[i].value));
      tensors.push_back(to_write(name_of(layer, own[i], "mean"), own[i].mean));
      tensors.push_back(to_write(name_of(layer, own[i], "square"), own[i].square));
      if (!layer.best.empty()) tensors.push_back(to_write(name_of(layer, own[i], "best"), layer.best[i]));
    }
  }
  const Json progress{{"step", state.step},
                      {"cursor", state.cursor},
                      {"tokens", state.tokens},
                      {"seconds", state.seconds},
                      {"best_step", state.best_step},
                      {"stale", state.stale},
                      // Infinity is no JSON number; hexadecimal keeps every bit.
                      {"best_loss", fmt::format("{:a}", state.best_loss)}};
  write_safetensors(path, tensors,
                    {{"format", "keysieve-training"}, {"settings", settings}, {"progress", progress.dump()}});
}

void load_checkpoint(const std::filesystem::path& path, TrainingState& state, const std::string& settings) {
  const SafetensorsFile file(path);
  const auto entry = [&](const char* key) -> const std::string& {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end())
      throw Error(ErrorKind::format, file.subject(), fmt::format("no {}", key), "a training checkpoint");
    return found->second;
  };
  if (entry("settings") != settings) {
    throw Error(ErrorKind::mismatch, file.subject(),
                "a run with " + first_difference(entry("settings"), settings), "the settings of this command",
                "resume with the options the run was started with");
  }
  const Json progress = parse_json(entry("progress"), file.subject());
  const std::string& subject = file.subject();
  state.step = json_require<size_t>(progress, "step", subject);
  state.cursor = json_require<size_t>(progress, "cursor", subject);
  state.tokens = json_require<size_t>(progress, "tokens", subject);
  state.seconds = json_require<double>(progress, "seconds", subject);
  state.best_step = json_require<size_t>(progress, "best_step", subject);
  state.stale = json_require<size_t>(progress, "stale", subject);
  state.best_loss = std::strtod(json_require<std::string>(progress, "best_loss", subject).c_str(), nullptr);
  for (TrainedLayer& layer : state.layers) {
    layer.best.clear();
    for (TrainedTensor& tensor : layer.student->tensors()) {
      const size_t size = tensor.value.size();
      read_into(tensor.value, file, name_of(layer, tensor, "value"), size);
      read_into(tensor.mean, file, name_of(layer, tensor, "mean"), size);
      read_into(tensor.square, file, name_of(layer, tensor, "square"), size);
      const std::string best = name_of(layer, tensor, "best");
      if (file.find(best)) read_into(layer.best.emplace_back(), file, best, size);
    }
  }
}

}  // namespace keysieve
