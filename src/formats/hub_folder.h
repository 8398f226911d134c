#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/json.h"
#include "formats/safetensors.h"
#include "formats/tensor_info.h"

namespace keysieve {

// MLX affine quantisation of one module: w = scale * code + bias.
struct MlxQuantization {
  static constexpr std::string_view kKnown = "2 to 6 or 8 bits, groups of 32, 64 or 128";
  int group_size = 64;  // columns that share a scale and a bias
  int bits = 4;
  bool known() const {  // what mx.quantize makes
    return ((bits >= 2 && bits <= 6) || bits == 8) &&
           (group_size == 32 || group_size == 64 || group_size == 128);
  }
  bool operator==(const MlxQuantization&) const = default;
};

// A model as the Hugging Face Hub lays it out: config.json beside model.safetensors, or beside shards named
// by model.safetensors.index.json. Throws Error{file} for what is missing, Error{format} for what is damaged:
// a shard outside the folder, a tensor in another shard than the index says, one name twice.
class HubFolder {
 public:
  explicit HubFolder(std::filesystem::path folder);

  const std::filesystem::path& folder() const { return folder_; }
  const Json& config() const { return config_; }  // an object
  std::string config_subject() const;             // the path of config.json, for errors
  const std::vector<SafetensorsFile>& shards() const { return shards_; }

  // All shards' tensors, shard by shard.
  const std::vector<const TensorInfo*>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;            // null if there is none
  const TensorInfo& require_tensor(std::string_view name) const;  // Error{format} if there is none

  // tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json ...; nullopt if
  // absent.
  std::optional<std::filesystem::path> file(std::string_view name) const;

  // How `module` ("model.layers.0.mlp.up_proj") is quantised: config.json's `quantization` with its entry for
  // the module, if there is one. nullopt for a module without `<module>.scales`. Throws Error{unsupported}
  // for other modes, bits or group sizes and for other quantisation methods (AWQ, GPTQ, FP8).
  std::optional<MlxQuantization> quantization(std::string_view module) const;

 private:
  void open_shards();

  std::filesystem::path folder_;
  Json config_;
  std::vector<SafetensorsFile> shards_;
  std::vector<const TensorInfo*> tensors_;
  std::unordered_map<std::string_view, const TensorInfo*> index_;
};

}  // namespace keysieve
