#pragma once

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/json.h"
#include "formats/safetensors.h"
#include "model/model.h"
#include "support/files.h"

namespace keysieve::testing {

// A Llama with one layer and random weights as a Hub folder, each tensor of which a test may leave out or
// misshape.
class TinyFolder {
 public:
  explicit TinyFolder(Json changes = Json::object()) {
    config_ = {{"model_type", "llama"},    {"num_hidden_layers", 1},
               {"hidden_size", 32},        {"num_attention_heads", 4},
               {"num_key_value_heads", 2}, {"intermediate_size", 48},
               {"vocab_size", 20},         {"max_position_embeddings", 64},
               {"rms_norm_eps", 1e-5},     {"tie_word_embeddings", false}};
    config_.merge_patch(changes);
    shapes_ = {{"model.embed_tokens.weight", {20, 32}},
               {"model.norm.weight", {32}},
               {"lm_head.weight", {20, 32}},
               {layer("input_layernorm.weight"), {32}},
               {layer("self_attn.q_proj.weight"), {32, 32}},
               {layer("self_attn.k_proj.weight"), {16, 32}},
               {layer("self_attn.v_proj.weight"), {16, 32}},
               {layer("self_attn.o_proj.weight"), {32, 32}},
               {layer("post_attention_layernorm.weight"), {32}},
               {layer("mlp.gate_proj.weight"), {48, 32}},
               {layer("mlp.up_proj.weight"), {48, 32}},
               {layer("mlp.down_proj.weight"), {32, 48}}};
  }
  static std::string layer(const std::string& name) { return "model.layers.0." + name; }

  std::map<std::string, std::vector<uint64_t>> shapes_;

  std::shared_ptr<const Model> load(const ModelOptions& options = {.kernels = "reference"},
                                    uint32_t seed = 1) const {
    std::mt19937 random(seed);
    std::vector<std::vector<float>> values;
    std::vector<TensorToWrite> tensors;
    for (const auto& [name, shape] : shapes_) {
      size_t count = 1;
      for (const uint64_t size : shape) count *= size;
      values.emplace_back(count);
      for (float& value : values.back()) value = static_cast<float>(random()) * 0x1p-31f - 1.0f;
      tensors.push_back({name, DType::f32, shape, {}});
    }
    for (size_t i = 0; i < tensors.size(); ++i) tensors[i].data = std::as_bytes(std::span(values[i]));
    folder_.write("config.json", config_.dump());
    write_safetensors(folder_.path() / "model.safetensors", tensors);
    return Model::load(folder_.path(), options);
  }

 private:
  Json config_;
  TempFolder folder_;
};

}  // namespace keysieve::testing
