#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "indexer/indexer_config.h"
#include "indexer/indexer_weights.h"
#include "indexer/layer_query.h"
#include "kernels/kernels.h"

namespace keysieve {

// A loaded indexer: per layer, the projections that turn a chunk's inputs into index keys and index queries.
// What is done with them (scores, top-k) is the selector's work. Immutable after loading; any number of
// sessions may share one.
//
// seed, per token with x the normed hidden state (DeepSeek-V3.2, arXiv 2512.02556, section 2.1, with one key
// head):
//   q = rope(norm?(x Wq^T + bq?))  k = rope(norm?(x Wk^T + bk?))  w = x Ww^T * heads^-0.5 * dim^-0.5
// native, with q_h, k_g the model's own after RoPE (the scale head_dim^-0.5 is folded into the query maps):
//   q'_h = Q_h q_h                 k'_g = K_g k_g
class Indexer {
 public:
  // Reads and packs layer by layer, so that only one layer is ever in memory twice. Throws as IndexerFile
  // does.
  static Indexer load(const std::filesystem::path& path, const ModelShape& model,
                      std::shared_ptr<const Kernels> kernels, const Threads& threads);
  // From weights in memory (training, calibration). Throws Error{mismatch} for the wrong model or wrong
  // sizes.
  Indexer(IndexerConfig config, std::span<const IndexerLayerWeights> layers, const ModelShape& model,
          std::shared_ptr<const Kernels> kernels, const Threads& threads);
  Indexer(const IndexerFile& file, const ModelShape& model, std::shared_ptr<const Kernels> kernels,
          const Threads& threads);
  Indexer(Indexer&&) noexcept;
  Indexer& operator=(Indexer&&) noexcept;
  ~Indexer();

  const IndexerConfig& config() const { return config_; }
  size_t layers() const { return config_.layers; }
  size_t heads() const { return config_.heads; }          // query heads
  size_t key_heads() const { return config_.key_heads; }  // keys per position
  size_t dim() const { return config_.dim; }
  size_t bytes() const;  // of the packed weights

  // keys [inputs.tokens, key_heads, dim]
  void project_keys(float* keys, size_t layer, const LayerInputs& inputs, KernelContext& context) const;

  // queries [inputs.tokens, heads, dim]; head_weights [inputs.tokens, heads], seed only (null for native)
  void project_queries(float* queries, float* head_weights, size_t layer, const LayerInputs& inputs,
                       KernelContext& context) const;

 private:
  struct Layer;
  Layer pack_layer(const IndexerLayerWeights& weights, const Threads& threads) const;
  void prepare(const ModelShape& model);
  void finish(float* rows, size_t heads, const std::vector<float>& bias, const std::vector<float>& norm,
              const LayerInputs& inputs, KernelContext& context) const;

  IndexerConfig config_;
  std::shared_ptr<const Kernels> kernels_;
  RopeTable rope_;      // seed; empty where rope_dim is 0
  float norm_eps_ = 0;  // the model's rms_norm_eps
  std::vector<Layer> layers_;
};

}  // namespace keysieve
