#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "core/threads.h"
#include "formats/model_location.h"
#include "indexer/model_shape.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/weights.h"

namespace keysieve {

struct ModelOptions {
  std::string kernels = "auto";  // a name of available_kernels(), or "auto"
  int threads = 0;               // 0: one per core this process may run on
  // Positions a sequence may have; 0 keeps the file's claim. More is allowed: RoPE then extrapolates.
  size_t context = 0;
  bool dequantize = false;   // as LoadOptions::dequantize
  double yarn = 0;           // as LoadOptions::yarn
  size_t yarn_original = 0;  // as LoadOptions::yarn_original
};

// A loaded model: config, weights, the kernels and threads that run it. Immutable after loading, so any
// number of SequenceStates may use it one after another (Threads::run is not re-entrant: not at the same
// time).
class Model {
 public:
  // A .gguf file or a Hub folder. Throws what read_config and load_weights throw, Error{usage} for unknown
  // kernels.
  static std::shared_ptr<const Model> load(const ModelLocation& location, const ModelOptions& options = {});
  static std::shared_ptr<const Model> load(const std::filesystem::path& path,
                                           const ModelOptions& options = {});

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const RopeTable& rope() const { return rope_; }
  const Kernels& kernels() const { return *kernels_; }
  const std::shared_ptr<const Kernels>& shared_kernels() const { return kernels_; }
  const Threads& threads() const { return threads_; }
  const std::filesystem::path& path() const { return path_; }

  uint64_t weights_bytes() const { return weights_.bytes; }
  uint64_t fingerprint() const { return weights_.fingerprint; }
  std::string fingerprint_text() const;  // 16 hexadecimal digits, as indexer files hold it
  // The fingerprint and, where an option stretches positions, how: a sequence's rows fit only the same.
  std::string sequence_identity() const;
  ModelShape shape() const;  // what an indexer must agree with, fingerprint included
  // f16 where the weights are quantised; f32 where they are not, because rounding keys and values would then
  // be the only rounding of the whole forward.
  KvType default_kv_type() const { return weights_.quantized ? KvType::f16 : KvType::f32; }

  // Packed bytes one decode step reads: the layers and the head.
  uint64_t weight_bytes_per_token() const { return weights_.bytes; }

 private:
  Model(const ModelOptions& options);

  std::filesystem::path path_;
  std::shared_ptr<const Kernels> kernels_;
  Threads threads_;
  std::unique_ptr<GgufFile> gguf_;  // one of the two files stays mapped for the embedding's rows
  std::unique_ptr<HubFolder> hub_;
  ModelConfig config_;
  ModelWeights weights_;
  RopeTable rope_;
  bool stretched_ = false;  // by ModelOptions::yarn
};

}  // namespace keysieve
