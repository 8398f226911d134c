#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "keysieve/error.h"
#include "model/config.h"
#include "model/config_checks.h"

namespace keysieve {
namespace {

bool has_value(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found != object.end() && !found->is_null();
}

// A decoder layer of Mistral is one of Llama.
Architecture architecture_of(const Json& json, std::string_view subject) {
  const auto name = json_require<std::string>(json, "model_type", subject);
  return name == "mistral" ? Architecture::llama : parse_architecture(name, subject);
}

void reject_unsupported(const Json& json, std::string_view subject) {
  const std::string_view way_out = "choose a dense Llama, Qwen2 or Qwen3 model";
  for (const std::string_view key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    if (json_value<size_t>(json, key, 0, subject) > 1) {
      throw Error(ErrorKind::unsupported, subject, fmt::format("a mixture of experts ({})", key),
                  "a dense model", way_out);
    }
  }
  // Where Mistral names a window, it has one; the others say so.
  bool sliding = json_value<bool>(json, "use_sliding_window", false, subject) ||
                 (json["model_type"] == "mistral" && has_value(json, "sliding_window"));
  if (const auto types = json.find("layer_types"); types != json.end() && types->is_array()) {
    sliding |=
        std::any_of(types->begin(), types->end(), [](const Json& type) { return type != "full_attention"; });
  }
  if (sliding) {
    throw Error(ErrorKind::unsupported, subject, "sliding-window attention", "full attention in every layer",
                way_out);
  }
  const std::string activation = json_value<std::string>(json, "hidden_act", "silu", subject);
  if (activation != "silu") {
    throw Error(ErrorKind::unsupported, subject, fmt::format("activation '{}'", activation), "silu", way_out);
  }
  if (json_value<bool>(json, "mlp_bias", false, subject)) {
    throw Error(ErrorKind::unsupported, subject, "biases in the MLP", "an MLP without biases", way_out);
  }
}

void read_yarn(const Json& scaling, const ModelConfig& config, RopeConfig& rope, std::string_view subject) {
  rope.scaling = RopeScaling::yarn;
  // Without a factor the ratio of the two contexts is meant.
  const double ratio =
      static_cast<double>(config.context) / static_cast<double>(std::max<size_t>(rope.original_context, 1));
  rope.factor = json_value<double>(scaling, "factor", ratio, subject);
  rope.beta_fast = json_value<double>(scaling, "beta_fast", 32.0, subject);
  rope.beta_slow = json_value<double>(scaling, "beta_slow", 1.0, subject);
  rope.truncate = json_value<bool>(scaling, "truncate", true, subject);
  const double mscale = json_value<double>(scaling, "mscale", 0.0, subject);
  const double mscale_all_dim = json_value<double>(scaling, "mscale_all_dim", 0.0, subject);
  const double derived =
      mscale != 0.0 && mscale_all_dim != 0.0
          ? yarn_magnitude(rope.factor, mscale) / yarn_magnitude(rope.factor, mscale_all_dim)
          : yarn_magnitude(rope.factor, 1.0);
  rope.magnitude_factor = json_value<double>(scaling, "attention_factor", derived, subject);
}

// `rope_scaling` (transformers 4; `type` in its older files) or `rope_parameters` (transformers 5, which also
// moves rope_theta and partial_rotary_factor there).
void read_rope(const Json& json, ModelConfig& config, std::string_view subject) {
  RopeConfig& rope = config.rope;
  Json scaling = Json::object();
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    if (!has_value(json, key)) continue;
    if (!json.at(key).is_object()) {
      throw Error(ErrorKind::format, subject, fmt::format("{} is no object", key), "an object or null");
    }
    scaling.update(json.at(key));
  }
  rope.theta = json_value<double>(scaling, "rope_theta",
                                  json_value<double>(json, "rope_theta", 10000.0, subject), subject);
  const double part =
      json_value<double>(scaling, "partial_rotary_factor",
                         json_value<double>(json, "partial_rotary_factor", 1.0, subject), subject);
  if (!(part > 0.0 && part <= 1.0)) {
    throw Error(ErrorKind::format, subject, fmt::format("partial_rotary_factor is {}", part),
                "more than 0, up to 1");
  }
  // Absurd sizes are check_config's to refuse; here they must only survive the conversion.
  rope.rotary_dim =
      static_cast<size_t>(static_cast<double>(std::min<size_t>(config.head_dim, 1 << 20)) * part);
  rope.original_context = json_value<size_t>(
      scaling, "original_max_position_embeddings",
      json_value<size_t>(json, "original_max_position_embeddings", config.context, subject), subject);
  const std::string type = json_value<std::string>(
      scaling, "rope_type", json_value<std::string>(scaling, "type", "default", subject), subject);
  if (type == "default") return;
  if (type == "linear") {
    rope.scaling = RopeScaling::linear;
    rope.factor = json_require<double>(scaling, "factor", subject);
  } else if (type == "llama3") {
    rope.scaling = RopeScaling::llama3;
    rope.factor = json_require<double>(scaling, "factor", subject);
    rope.low_frequency_factor = json_require<double>(scaling, "low_freq_factor", subject);
    rope.high_frequency_factor = json_require<double>(scaling, "high_freq_factor", subject);
  } else if (type == "yarn") {
    read_yarn(scaling, config, rope, subject);
  } else {
    throw Error(ErrorKind::unsupported, subject, fmt::format("rope scaling '{}'", type),
                "default, linear, llama3 or yarn");
  }
}

void add_token(std::vector<int32_t>& ids, const Json& value, std::string_view subject) {
  if (!value.is_number_integer() || value < 0 || value > INT32_MAX) {
    throw Error(ErrorKind::format, subject, "eos_token_id holds something else than token ids",
                "an integer or a list of integers");
  }
  const auto id = value.get<int32_t>();
  if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
}

void read_eos(const Json& json, std::vector<int32_t>& ids, std::string_view subject) {
  if (!json.is_object() || !has_value(json, "eos_token_id")) return;
  const Json& eos = json.at("eos_token_id");
  if (!eos.is_array()) return add_token(ids, eos, subject);
  for (const Json& id : eos) add_token(ids, id, subject);
}

void read_tokens(const HubFolder& folder, ModelConfig& config) {
  const std::string subject = folder.config_subject();
  const Json& json = folder.config();
  if (has_value(json, "bos_token_id") && json.at("bos_token_id").is_number_integer()) {
    const auto bos = json.at("bos_token_id").get<int64_t>();
    if (bos >= 0 && bos <= INT32_MAX) config.bos = static_cast<int32_t>(bos);
  }
  read_eos(json, config.eos, subject);
  // Chat models name the ends of a turn only here.
  if (const auto generation = folder.file("generation_config.json")) {
    read_eos(read_json_file(*generation), config.eos, generation->string());
  }
}

}  // namespace

ModelConfig read_config(const HubFolder& folder) {
  const std::string subject = folder.config_subject();
  const Json& json = folder.config();
  ModelConfig config;
  config.architecture = architecture_of(json, subject);
  reject_unsupported(json, subject);
  config.layers = json_require<size_t>(json, "num_hidden_layers", subject);
  config.hidden = json_require<size_t>(json, "hidden_size", subject);
  config.heads = json_require<size_t>(json, "num_attention_heads", subject);
  config.kv_heads = json_value<size_t>(json, "num_key_value_heads", config.heads, subject);
  config.head_dim =
      json_value<size_t>(json, "head_dim", config.heads == 0 ? 0 : config.hidden / config.heads, subject);
  config.mlp = json_require<size_t>(json, "intermediate_size", subject);
  config.vocabulary = json_require<size_t>(json, "vocab_size", subject);
  config.context = json_require<size_t>(json, "max_position_embeddings", subject);
  config.rms_norm_eps = json_value<float>(json, "rms_norm_eps", 1e-6f, subject);
  read_rope(json, config, subject);

  const bool attention_bias = json_value<bool>(json, "attention_bias", false, subject);
  config.qk_norm = config.architecture == Architecture::qwen3;
  config.qkv_bias = config.architecture == Architecture::qwen2 || attention_bias;
  config.output_bias = config.architecture != Architecture::qwen2 && attention_bias;
  config.tied_head =
      json_value<bool>(json, "tie_word_embeddings", folder.find("lm_head.weight") == nullptr, subject);
  read_tokens(folder, config);
  check_config(config, subject);
  return config;
}

}  // namespace keysieve
