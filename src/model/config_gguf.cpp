#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "formats/matrix.h"
#include "keysieve/error.h"
#include "model/config.h"
#include "model/config_checks.h"

namespace keysieve {
namespace {

// The metadata of one architecture: keys are "<architecture>.<name>".
class ArchitectureKeys {
 public:
  ArchitectureKeys(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}
  template <class T>
  T require(std::string_view name) const {
    return file_.require<T>(key(name));
  }
  template <class T>
  T value(std::string_view name, T fallback) const {
    return file_.get<T>(key(name)).value_or(fallback);
  }
  template <class T>
  std::optional<T> get(std::string_view name) const {
    return file_.get<T>(key(name));
  }
  std::string key(std::string_view name) const { return fmt::format("{}.{}", prefix_, name); }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

void reject_unsupported(const GgufFile& file, const ArchitectureKeys& keys) {
  if (keys.value<uint64_t>("expert_count", 0) > 0) {
    throw Error(ErrorKind::unsupported, file.subject(), "a mixture of experts", "a dense model",
                "choose a dense Llama, Qwen2 or Qwen3 model");
  }
  if (keys.value<uint64_t>("attention.sliding_window", 0) > 0) {
    throw Error(ErrorKind::unsupported, file.subject(), "sliding-window attention",
                "full attention in every layer", "choose a dense Llama, Qwen2 or Qwen3 model");
  }
}

// The keys of llama.cpp: `type` none, linear or yarn; `scale_linear` in files before 2023-11.
void read_rope_scaling(const GgufFile& file, const ArchitectureKeys& keys, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.original_context = keys.value<uint64_t>("rope.scaling.original_context_length", config.context);
  const std::string_view type = keys.value<std::string_view>("rope.scaling.type", "none");
  if (type == "linear" || (type == "none" && keys.get<double>("rope.scale_linear"))) {
    rope.scaling = RopeScaling::linear;
    rope.factor =
        keys.get<double>("rope.scaling.factor").value_or(keys.value<double>("rope.scale_linear", 1.0));
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::yarn;
    rope.factor = keys.require<double>("rope.scaling.factor");
    rope.beta_fast = keys.value<double>("rope.scaling.yarn_beta_fast", 32.0);
    rope.beta_slow = keys.value<double>("rope.scaling.yarn_beta_slow", 1.0);
    // llama.cpp multiplies a stated factor with YaRN's own.
    rope.magnitude_factor = keys.value<double>("rope.scaling.attn_factor",
                                               keys.value<double>("rope.scaling.yarn_attn_factor", 1.0)) *
                            yarn_magnitude(rope.factor, 1.0);
  } else if (type != "none") {
    throw Error(ErrorKind::unsupported, file.subject(), fmt::format("rope scaling '{}'", type),
                "none, linear or yarn");
  }
  if (const TensorInfo* divisors = file.find("rope_freqs.weight")) {
    if (rope.scaling != RopeScaling::none) {
      throw Error(ErrorKind::unsupported, divisors->subject(),
                  "frequency divisors next to a rope scaling type", "one of the two");
    }
    rope.pair_divisors = read_vector(*divisors);
  }
}

void read_tokens(const GgufFile& file, ModelConfig& config) {
  config.bos = file.get<int32_t>("tokenizer.ggml.bos_token_id");
  // eot and eom end a turn in chat models that keep eos for the end of a document.
  for (const std::string_view key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const auto id = file.get<int32_t>(key);
    if (id && std::find(config.eos.begin(), config.eos.end(), *id) == config.eos.end())
      config.eos.push_back(*id);
  }
}

}  // namespace

ModelConfig read_config(const GgufFile& file) {
  ModelConfig config;
  const std::string name(file.require<std::string_view>("general.architecture"));
  config.architecture = parse_architecture(name, file.subject());
  const ArchitectureKeys keys(file, name);
  reject_unsupported(file, keys);
  config.layers = keys.require<uint64_t>("block_count");
  config.hidden = keys.require<uint64_t>("embedding_length");
  config.heads = keys.require<uint64_t>("attention.head_count");
  config.kv_heads = keys.value<uint64_t>("attention.head_count_kv", config.heads);
  config.mlp = keys.require<uint64_t>("feed_forward_length");
  config.context = keys.require<uint64_t>("context_length");
  config.rms_norm_eps = keys.require<float>("attention.layer_norm_rms_epsilon");
  const uint64_t derived_head_dim = config.heads == 0 ? 0 : config.hidden / config.heads;
  config.head_dim = keys.value<uint64_t>("attention.key_length", derived_head_dim);
  const uint64_t value_dim = keys.value<uint64_t>("attention.value_length", config.head_dim);
  if (value_dim != config.head_dim) {
    throw Error(ErrorKind::unsupported, file.subject(), fmt::format("value heads of {}", value_dim),
                fmt::format("the key heads' {}", config.head_dim));
  }
  config.rope.theta = keys.value<double>("rope.freq_base", 10000.0);
  config.rope.rotary_dim = keys.value<uint64_t>("rope.dimension_count", config.head_dim);
  read_rope_scaling(file, keys, config);

  const TensorInfo& embedding = file.require_tensor("token_embd.weight");
  if (embedding.shape.size() != 2) {
    throw Error(ErrorKind::mismatch, embedding.subject(), shape_text(embedding.shape),
                "[vocabulary, hidden]");
  }
  config.vocabulary = embedding.shape[0];
  config.tied_head = file.find("output.weight") == nullptr;
  config.qk_norm = config.architecture == Architecture::qwen3;
  config.qkv_bias = config.architecture == Architecture::qwen2 || file.find("blk.0.attn_q.bias") != nullptr;
  config.output_bias = file.find("blk.0.attn_output.bias") != nullptr;
  read_tokens(file, config);
  check_config(config, file.subject());
  return config;
}

}  // namespace keysieve
