#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"
#include "formats/safetensors.h"

namespace keysieve::testing {

// A Llama with random weights that fits in 100 kB, written as a Hub folder: for tests that need some model
// and no sense from it. Its tokens are the 256 bytes and three control tokens, so any text is a prompt, and
// what it says is mostly not UTF-8.
struct TinyModel {
  static constexpr size_t kLayers = 2, kHidden = 32, kHeads = 4, kKvHeads = 2, kHeadDim = 8, kMlp = 48;
  static constexpr size_t kVocabulary =
      259;  // the bytes, <|endoftext|> 256, <|im_start|> 257, <|im_end|> 258
  static constexpr size_t kContext = 512;
  static constexpr int32_t kEnd = 258;
};

namespace detail {

// The tensors of one file, kept until they are written.
class TensorFile {
 public:
  explicit TensorFile(uint64_t seed) : random_(seed) {}

  void add(const std::string& name, std::vector<uint64_t> shape, float spread, float mean = 0) {
    size_t count = 1;
    for (const uint64_t size : shape) count *= size;
    std::vector<float> values(count);
    for (float& value : values) {
      // 24 bits of the generator as a number in [-1, 1): the same on every machine.
      value = mean + spread * (static_cast<float>(random_() >> 40) * 0x1p-23f - 1.0f);
    }
    names_.push_back(name);
    shapes_.push_back(std::move(shape));
    values_.push_back(std::move(values));
  }
  void write(const std::filesystem::path& path) const {
    std::vector<TensorToWrite> tensors;
    for (size_t i = 0; i < names_.size(); ++i) {
      tensors.push_back({names_[i], DType::f32, shapes_[i], std::as_bytes(std::span(values_[i]))});
    }
    write_safetensors(path, tensors);
  }

 private:
  std::mt19937_64 random_;
  std::vector<std::string> names_;
  std::vector<std::vector<uint64_t>> shapes_;
  std::vector<std::vector<float>> values_;
};

inline void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline void append_utf8(std::string& text, uint32_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else {
    text += static_cast<char>(0xc0 | (code >> 6));
    text += static_cast<char>(0x80 | (code & 0x3f));
  }
}

// GPT-2's spelling of bytes: printable ones are themselves, the others follow from U+0100.
inline std::string byte_spelling(unsigned byte) {
  const auto printable = [](unsigned b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
  };
  uint32_t code = byte;
  if (!printable(byte)) {
    code = 0x100;
    for (unsigned b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  std::string text;
  append_utf8(text, code);
  return text;
}

inline void write_tiny_tokenizer(const std::filesystem::path& folder) {
  Json vocabulary = Json::object();
  for (unsigned byte = 0; byte < 256; ++byte) vocabulary[byte_spelling(byte)] = byte;
  Json added = Json::array();
  int32_t id = 256;
  for (const char* name : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    added.push_back({{"id", id++},
                     {"content", name},
                     {"special", true},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false}});
  }
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const Json tokenizer = {{"version", "1.0"},
                          {"added_tokens", added},
                          {"normalizer", nullptr},
                          {"pre_tokenizer", byte_level},
                          {"post_processor", nullptr},
                          {"decoder", byte_level},
                          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}};
  write_file(folder / "tokenizer.json", tokenizer.dump());
  write_file(folder / "tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
  write_file(
      folder / "chat_template.jinja",
      "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
      "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
      "{% endif %}");
}

}  // namespace detail

// Writes the model into `folder` and returns it.
inline std::filesystem::path write_tiny_model(const std::filesystem::path& folder, uint64_t seed = 1) {
  using M = TinyModel;
  std::filesystem::create_directories(folder);
  detail::TensorFile file(seed);
  file.add("model.embed_tokens.weight", {M::kVocabulary, M::kHidden}, 1.0f);
  for (size_t layer = 0; layer < M::kLayers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    file.add(prefix + "input_layernorm.weight", {M::kHidden}, 0.1f, 1.0f);
    file.add(prefix + "self_attn.q_proj.weight", {M::kHeads * M::kHeadDim, M::kHidden}, 0.4f);
    file.add(prefix + "self_attn.k_proj.weight", {M::kKvHeads * M::kHeadDim, M::kHidden}, 0.4f);
    file.add(prefix + "self_attn.v_proj.weight", {M::kKvHeads * M::kHeadDim, M::kHidden}, 0.4f);
    file.add(prefix + "self_attn.o_proj.weight", {M::kHidden, M::kHeads * M::kHeadDim}, 0.4f);
    file.add(prefix + "post_attention_layernorm.weight", {M::kHidden}, 0.1f, 1.0f);
    file.add(prefix + "mlp.gate_proj.weight", {M::kMlp, M::kHidden}, 0.4f);
    file.add(prefix + "mlp.up_proj.weight", {M::kMlp, M::kHidden}, 0.4f);
    file.add(prefix + "mlp.down_proj.weight", {M::kHidden, M::kMlp}, 0.4f);
  }
  file.add("model.norm.weight", {M::kHidden}, 0.1f, 1.0f);
  file.write(folder / "model.safetensors");
  const Json config = {{"architectures", {"LlamaForCausalLM"}},
                       {"model_type", "llama"},
                       {"hidden_act", "silu"},
                       {"num_hidden_layers", M::kLayers},
                       {"hidden_size", M::kHidden},
                       {"num_attention_heads", M::kHeads},
                       {"num_key_value_heads", M::kKvHeads},
                       {"head_dim", M::kHeadDim},
                       {"intermediate_size", M::kMlp},
                       {"vocab_size", M::kVocabulary},
                       {"max_position_embeddings", M::kContext},
                       {"rms_norm_eps", 1e-5},
                       {"rope_theta", 10000.0},
                       {"tie_word_embeddings", true},
                       {"eos_token_id", M::kEnd}};
  detail::write_file(folder / "config.json", config.dump());
  detail::write_tiny_tokenizer(folder);
  return folder;
}

// A native indexer for it (per-head queries, a key of 4 values per KV head) with random maps. `fingerprint`
// is the model's, or empty for one that names no model.
inline std::filesystem::path write_tiny_indexer(const std::filesystem::path& folder,
                                                const std::string& fingerprint) {
  using M = TinyModel;
  constexpr size_t kDim = 4;
  std::filesystem::create_directories(folder);
  detail::TensorFile file(7);
  for (size_t layer = 0; layer < M::kLayers; ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".indexer.";
    file.add(prefix + "q_proj.weight", {M::kKvHeads, kDim, M::kHeadDim}, 0.5f);
    file.add(prefix + "k_proj.weight", {M::kKvHeads, kDim, M::kHeadDim}, 0.5f);
  }
  file.write(folder / "indexer.safetensors");
  Json config = {{"format", "keysieve-indexer"},
                 {"version", 1},
                 {"shape", "native"},
                 {"layers", M::kLayers},
                 {"indexer_heads", M::kHeads},
                 {"key_heads", M::kKvHeads},
                 {"head_dim", M::kHeadDim},
                 {"proj_dim", kDim},
                 {"rope_dim", 0},
                 {"combine", "softmax_sum"},
                 {"query_maps", "per_group"},
                 {"top_k", 24},
                 {"sinks", 2},
                 {"recent", 8},
                 {"selection", "per-group"}};
  if (!fingerprint.empty()) config["model"] = fingerprint;
  detail::write_file(folder / "run_config.json", config.dump());
  return folder;
}

// One of the published kind and layout for it: ReLU heads and one shared key from the hidden state, all
// layers in one file, which names no model.
inline void write_tiny_seed_indexer(const std::filesystem::path& folder) {
  using M = TinyModel;
  constexpr size_t kHeads = 3, kDim = 6;
  std::filesystem::create_directories(folder);
  detail::TensorFile file(11);
  for (size_t layer = 0; layer < M::kLayers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".self_attn.indexer.";
    file.add(prefix + "wq.weight", {kHeads * kDim, M::kHidden}, 0.5f);
    file.add(prefix + "wk.weight", {kDim, M::kHidden}, 0.5f);
    file.add(prefix + "weights_proj.weight", {kHeads, M::kHidden}, 0.5f);
  }
  file.write(folder / "lightning_indexer_best_assembled.safetensors");
  const Json config = {{"hidden_size", M::kHidden},
                       {"indexer_heads", kHeads},
                       {"proj_dim", kDim},
                       {"rope_dim", 4},
                       {"top_k", 24}};
  detail::write_file(folder / "run_config.json", config.dump());
}

}  // namespace keysieve::testing
