#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "keysieve/text_codec.h"

namespace keysieve {

// How keys and values are kept. automatic: f16 beside quantised weights; f32 beside others, where rounding
// keys and values would be the only rounding there is. i8: 8-bit codes with one f32 scale for each key and
// value of a head, about half of f16's bytes.
enum class KvPrecision : uint8_t { automatic, f16, f32, i8 };

struct LoadOptions {
  int threads = 0;               // 0: one per core this process may run on
  std::string kernels = "auto";  // "auto", "reference" or a name of kernel_families()
  size_t context = 0;  // positions a session may hold; 0: as many as the file claims. More is allowed
  KvPrecision kv = KvPrecision::automatic;
  // Quantised weights as the f32 values they stand for, 4 bytes each in memory, multiplied in f32: the
  // kernels then round no activations to int8. Slower; shows what that rounding costs.
  bool dequantize = false;
  // Positions stretched by YaRN (arXiv 2309.00071): 4 makes a model of 32768 good for 131072. 0: as the file
  // says. Only for files that do not stretch already.
  double yarn = 0;
  size_t yarn_original = 0;  // positions the model was trained for; 0: as many as the file claims
  // Where short names are looked up: FOLDER/NAME/ or FOLDER/NAME.gguf. Empty: default_model_folders().
  std::vector<std::filesystem::path> folders = {};
};

// models/ under the working directory, then models/ beside the program's folder, then $KEYSIEVE_MODELS' parts
// (separated by ':'), which come first where set. Folders that do not exist are left out.
std::vector<std::filesystem::path> default_model_folders();

struct ModelInfo {
  std::string path;
  std::string architecture;  // "llama", "qwen2", "qwen3"
  std::string name;          // from the file, may be empty
  size_t layers = 0;
  size_t hidden = 0;
  size_t heads = 0;
  size_t kv_heads = 0;
  size_t head_dim = 0;
  size_t mlp = 0;
  size_t vocabulary = 0;
  size_t context = 0;  // positions a session may hold
  uint64_t file_bytes = 0;
  uint64_t weights_bytes = 0;       // weights in memory, packed
  uint64_t kv_bytes_per_token = 0;  // keys and values of all layers
  double load_seconds = 0;
  std::string kernels;  // the family in use: "avx2"
  int threads = 0;
};

// Weights and text side of one model, read-only. Movable; sessions keep what they need alive.
class LanguageModel {
 public:
  // `model` is a GGUF file, a folder with config.json and *.safetensors, a Hub id ("org/name", looked up in
  // the Hub cache) or a short name. Throws Error{file} for what cannot be found or read, Error{format} for
  // damaged files, Error{unsupported} for architectures and types this build cannot run, Error{usage} for
  // options out of range, Error{resource} where memory runs out.
  static LanguageModel load(std::string_view model, const LoadOptions& options = {});

  LanguageModel(LanguageModel&&) noexcept;
  LanguageModel& operator=(LanguageModel&&) noexcept;
  ~LanguageModel();

  const ModelInfo& info() const;
  // Throws Error{unsupported}, {file}, {format} or {mismatch} where the model came without a tokenizer that
  // fits it; logits() of given tokens need none.
  const TextCodec& text() const;

  struct Impl;
  const std::shared_ptr<const Impl>& impl() const { return impl_; }

 private:
  explicit LanguageModel(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace keysieve
