#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "formats/safetensors.h"
#include "indexer/indexer_config.h"
#include "indexer/indexer_layout.h"

namespace keysieve {

// One layer of an indexer as plain fp32 numbers: what training changes and files hold. Row-major.
struct IndexerLayerWeights {
  std::vector<float> q;            // seed [heads * dim, hidden]; native [heads or key_heads, dim, head_dim]
  std::vector<float> k;            // seed [dim, hidden];         native [key_heads, dim, head_dim]
  std::vector<float> head_weight;  // seed [heads, hidden]
  std::vector<float> q_bias;       // seed [heads * dim] or empty
  std::vector<float> k_bias;       // seed [dim], native [key_heads * dim]; or empty
  // seed only:
  std::vector<float> q_norm;  // [heads * dim] or empty: RMS norm over all heads of a token at once
  std::vector<float> k_norm;  // [dim] or empty
  // Every matrix value is exact in this type (f32, f16 or bf16), so packed weights need no more bytes than
  // that.
  DType dtype = DType::f32;
};

// An indexer's files, opened and understood but not yet in memory: layers are read one at a time.
class IndexerFile {
 public:
  // `path`: a folder with run_config.json and one .safetensors (or one for each layer), or the .safetensors
  // itself. The seed's tensors are told apart by shape and suffix whatever their prefix; the layer is the
  // number in the name, or of the file. Layers of which there is nothing are dense.
  // Throws Error{file}; Error{format} for a tensor it does not understand, a duplicate, a layer that is there
  // in part, bad JSON, values that are not finite; Error{mismatch} for the wrong model. Messages name the
  // tensor.
  IndexerFile(const std::filesystem::path& path, const ModelShape& model);
  IndexerFile(std::span<const std::filesystem::path> weights, const std::filesystem::path& run_config,
              const ModelShape& model);

  const IndexerConfig& config() const { return config_; }
  const std::string& subject() const { return files_.front().subject(); }  // the path of the weights
  bool has_layer(size_t index) const { return !layout_.layers.at(index).empty(); }
  const std::vector<size_t>& missing_layers() const { return layout_.missing; }  // ascending
  IndexerLayerWeights layer(size_t index) const;  // throws Error{format} too where it is missing

 private:
  std::vector<SafetensorsFile> files_;
  IndexerConfig config_;
  IndexerLayout layout_;  // points into files_
};

// Writes `folder`/indexer.safetensors and run_config.json, each atomically, creating the folder. Matrices are
// rounded to `dtype` (f32, f16 or bf16); biases and norms, a few hundred values a layer, stay f32. `layers`
// must have the config's shapes and values that `dtype` can hold (Error{usage}); throws Error{file}.
void save_indexer(const std::filesystem::path& folder, const IndexerConfig& config,
                  std::span<const IndexerLayerWeights> layers, DType dtype = DType::f32);

}  // namespace keysieve
