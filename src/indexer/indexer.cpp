#include "indexer/indexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "indexer/float_matrix.h"
#include "indexer/head_maps.h"
#include "keysieve/error.h"

namespace keysieve {

struct Indexer::Layer {
  bool missing = true;        // no weights: the layer is dense, its index keys are never read
  std::vector<float> k_bias;  // seed [dim], native [key_heads * dim]; or empty
  // seed
  std::unique_ptr<PackedMatrix> q;            // [heads * dim, hidden]
  std::unique_ptr<PackedMatrix> k;            // [dim, hidden]
  std::unique_ptr<PackedMatrix> head_weight;  // [heads, hidden]
  std::vector<float> q_bias;                  // [heads * dim] or empty
  std::vector<float> q_norm;                  // [heads * dim] or empty
  std::vector<float> k_norm;                  // [dim] or empty
  // native
  HeadMaps q_maps;  // [heads or key_heads, dim, head_dim]
  HeadMaps k_maps;  // [key_heads, dim, head_dim]
};

namespace {

void check_sizes(const IndexerConfig& config, const IndexerLayerWeights& layer, size_t index) {
  const bool seed = config.shape == IndexerShape::seed;
  const size_t q_width = config.heads * config.dim;
  const size_t map = config.dim * config.head_dim;
  const auto need = [&](std::string_view what, const std::vector<float>& values, size_t expected) {
    if (values.size() == expected) return;
    throw Error(ErrorKind::mismatch, fmt::format("indexer weights, layer {}, {}", index, what),
                fmt::format("{} values", values.size()), fmt::format("{}", expected));
  };
  need("q", layer.q,
       seed ? q_width * config.hidden : (config.map_per_head ? config.heads : config.key_heads) * map);
  need("k", layer.k, seed ? config.dim * config.hidden : config.key_heads * map);
  need("head weights", layer.head_weight, seed ? config.heads * config.hidden : 0);
  need("q bias", layer.q_bias, config.has_bias && seed ? q_width : 0);
  need("k bias", layer.k_bias, config.has_bias ? config.key_heads * config.dim : 0);
  need("q norm", layer.q_norm, config.has_norm ? q_width : 0);
  need("k norm", layer.k_norm, config.has_norm ? config.dim : 0);
}

void add_bias(float* rows, const std::vector<float>& bias, size_t tokens) {
  const size_t width = bias.size();  // 0: no bias
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < width; ++i) rows[t * width + i] += bias[i];
  }
}

}  // namespace

Indexer::Indexer(Indexer&&) noexcept = default;
Indexer& Indexer::operator=(Indexer&&) noexcept = default;
Indexer::~Indexer() = default;

Indexer Indexer::load(const std::filesystem::path& path, const ModelShape& model,
                      std::shared_ptr<const Kernels> kernels, const Threads& threads) {
  return {IndexerFile(path, model), model, std::move(kernels), threads};
}

Indexer::Indexer(const IndexerFile& file, const ModelShape& model, std::shared_ptr<const Kernels> kernels,
                 const Threads& threads)
    : config_(file.config()), kernels_(std::move(kernels)) {
  prepare(model);
  for (size_t i = 0; i < config_.layers; ++i) {
    layers_.push_back(file.has_layer(i) ? pack_layer(file.layer(i), threads) : Layer{});
  }
}

Indexer::Indexer(IndexerConfig config, std::span<const IndexerLayerWeights> layers, const ModelShape& model,
                 std::shared_ptr<const Kernels> kernels, const Threads& threads)
    : config_(std::move(config)), kernels_(std::move(kernels)) {
  bind_to_model(config_, model, "indexer weights");
  prepare(model);
  if (layers.size() != config_.layers) {
    throw Error(ErrorKind::mismatch, "indexer weights", fmt::format("{} layers", layers.size()),
                fmt::format("{}", config_.layers));
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    check_sizes(config_, layers[i], i);
    layers_.push_back(pack_layer(layers[i], threads));
  }
}

void Indexer::prepare(const ModelShape& model) {
  norm_eps_ = model.rms_norm_eps;
  // Frequency of pair i: theta^(-2i / rope_dim), half-split over the first rope_dim values.
  for (size_t i = 0; i < config_.rope_dim / 2; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config_.rope_dim);
    rope_.frequency.push_back(std::pow(config_.rope_theta, exponent));
  }
}

Indexer::Layer Indexer::pack_layer(const IndexerLayerWeights& weights, const Threads& threads) const {
  Layer layer;
  layer.missing = false;
  const size_t dim = config_.dim;
  if (config_.shape == IndexerShape::native) {
    const size_t maps = config_.map_per_head ? config_.heads : config_.key_heads;
    layer.q_maps = HeadMaps(weights.q, maps, dim, config_.head_dim);
    layer.k_maps = HeadMaps(weights.k, config_.key_heads, dim, config_.head_dim);
    layer.k_bias = weights.k_bias;
    return layer;
  }
  const auto pack = [&](const std::vector<float>& values, size_t rows) {
    return kernels_->pack(FloatMatrix(values, rows, weights.dtype), {}, threads);
  };
  layer.q = pack(weights.q, config_.heads * dim);
  layer.k = pack(weights.k, dim);
  layer.head_weight = pack(weights.head_weight, config_.heads);
  layer.q_bias = weights.q_bias;
  layer.k_bias = weights.k_bias;
  layer.q_norm = weights.q_norm;
  layer.k_norm = weights.k_norm;
  return layer;
}

size_t Indexer::bytes() const {
  size_t total = 0;
  for (const Layer& layer : layers_) {
    for (const auto* matrix : {layer.q.get(), layer.k.get(), layer.head_weight.get()}) {
      if (matrix) total += matrix->bytes();
    }
    total += (layer.q_bias.size() + layer.k_bias.size() + layer.q_norm.size() + layer.k_norm.size()) *
             sizeof(float);
    total += layer.q_maps.bytes() + layer.k_maps.bytes();
  }
  return total;
}

void Indexer::project_keys(float* keys, size_t layer_index, const LayerInputs& inputs,
                           KernelContext& context) const {
  const Layer& layer = layers_[layer_index];
  if (layer.missing) {
    std::fill_n(keys, inputs.tokens * config_.key_heads * config_.dim, 0.0f);
    return;
  }
  if (config_.shape == IndexerShape::native) {
    layer.k_maps.apply(keys, inputs.k, inputs.tokens, 1, context);
    return add_bias(keys, layer.k_bias, inputs.tokens);
  }
  const size_t dim = config_.dim;
  const MatmulJob job{keys, dim, layer.k.get()};
  context.kernels.matmul({&job, 1}, inputs.hidden, inputs.tokens, context.scratch, context.threads);
  finish(keys, 1, layer.k_bias, layer.k_norm, inputs, context);
}

void Indexer::project_queries(float* queries, float* head_weights, size_t layer_index,
                              const LayerInputs& inputs, KernelContext& context) const {
  const Layer& layer = layers_[layer_index];
  const size_t heads = config_.heads;
  const size_t dim = config_.dim;
  if (config_.shape == IndexerShape::native) {
    const size_t heads_per_map = config_.map_per_head ? 1 : heads / config_.key_heads;
    return layer.q_maps.apply(queries, inputs.q, inputs.tokens, heads_per_map, context);
  }
  const std::array jobs{MatmulJob{queries, heads * dim, layer.q.get()},
                        MatmulJob{head_weights, heads, layer.head_weight.get()}};
  context.kernels.matmul(jobs, inputs.hidden, inputs.tokens, context.scratch, context.threads);
  finish(queries, heads, layer.q_bias, layer.q_norm, inputs, context);
  const float scale = 1.0f / std::sqrt(static_cast<float>(heads) * static_cast<float>(dim));
  for (size_t i = 0; i < inputs.tokens * heads; ++i) head_weights[i] *= scale;
}

// Bias, norm over a token's whole row, RoPE per head. rows [tokens, heads, dim]
void Indexer::finish(float* rows, size_t heads, const std::vector<float>& bias,
                     const std::vector<float>& norm, const LayerInputs& inputs,
                     KernelContext& context) const {
  const size_t width = heads * config_.dim;
  add_bias(rows, bias, inputs.tokens);
  if (!norm.empty()) {
    context.kernels.rms_norm(rows, rows, norm.data(), norm_eps_, inputs.tokens, width);
  }
  if (!rope_.frequency.empty()) {
    context.kernels.rope(rows, width, inputs.positions, inputs.tokens, heads, config_.dim, rope_);
  }
}

}  // namespace keysieve
