#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "formats/safetensors.h"
#include "indexer/indexer_config.h"

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
  // `path`: a folder with run_config.json and one .safetensors, or the .safetensors itself.
  // The seed's tensors are told apart by shape and suffix whatever their prefix; the layer is the number in
  // the name. Throws Error{file}; Error{format} for a tensor it does not understand, a duplicate, a missing
  // one, bad JSON, values that are not finite; Error{mismatch} for the wrong model. Messages name the tensor.
  IndexerFile(const std::filesystem::path& path, const ModelShape& model);
  IndexerFile(const std::filesystem::path& weights, const std::filesystem::path& run_config,
              const ModelShape& model);

  const IndexerConfig& config() const { return config_; }
  const std::string& subject() const { return file_.subject(); }  // the path of the weights
  IndexerLayerWeights layer(size_t index) const;

 private:
  struct LayerTensors {  // null: absent
    const TensorInfo* q = nullptr;
    const TensorInfo* k = nullptr;
    const TensorInfo* head_weight = nullptr;
    const TensorInfo* q_bias = nullptr;
    const TensorInfo* k_bias = nullptr;
    const TensorInfo* q_norm = nullptr;
    const TensorInfo* k_norm = nullptr;
  };
  void sort_tensors();
  void place(LayerTensors& layer, const TensorInfo& tensor);
  void check_complete();

  SafetensorsFile file_;
  IndexerConfig config_;
  std::vector<LayerTensors> layers_;
};

struct IndexerPaths {
  std::filesystem::path weights;     // a .safetensors file
  std::filesystem::path run_config;  // run_config.json beside it
};
// Throws Error{file} where there is no such pair, or several .safetensors to choose from.
IndexerPaths find_indexer_files(const std::filesystem::path& path);

// Writes `folder`/indexer.safetensors and run_config.json, each atomically, creating the folder. Matrices are
// rounded to `dtype` (f32, f16 or bf16); biases and norms, a few hundred values a layer, stay f32. `layers`
// must have the config's shapes and values that `dtype` can hold (Error{usage}); throws Error{file}.
void save_indexer(const std::filesystem::path& folder, const IndexerConfig& config,
                  std::span<const IndexerLayerWeights> layers, DType dtype = DType::f32);

}  // namespace keysieve
