#pragma once

#include <span>

#include "indexer/indexer_config.h"
#include "indexer/indexer_weights.h"
#include "kernels/kernels.h"
#include "train/lightning_moments.h"
#include "train/reach.h"

namespace keysieve {

// A lightning layer that stands in for the model's own attention (docs/decisions/0020).
struct LightningMaps {
  IndexerLayerWeights weights;  // thresholds 0, every head's weight 1 after scaling
  // Of the energy of the logits' parts that rotate, what one key for all KV heads keeps, heads counted by how
  // far they read.
  double kept_energy = 1;
};

// RoPE turns each pair of a head's values as one complex number. Per pair j, the indexer's key is the mix
// c = sum_g conj(b_g) k_g of the KV heads' keys from which they are best told, k_g ~ a_g c with a_g =
// Cov(k_g, c) / Var(c): b is the first eigenvector of S W b = lambda b, for S the keys' covariance as far as
// a rotation leaves it (`starts`, of windows of `window` tokens) and W the energy of the queries that read
// each KV head. Query head h then becomes conj(a_g) q_h. The indexer's heads are those of the model that read
// farthest. Slow pairs' second eigenvectors fill values that do not rotate, but for the first of these, which
// is 1 in every key and holds the thresholds.
//
// Maps from the hidden state come by least squares: exact for Llama and Qwen2, the best linear map where q
// and k are normed. An indexer's pair without one that turns alike in the model gets queries of zeros:
// training may use it.
//
// `config` is of the lightning shape with biases. Throws Error{mismatch} where no pair turns alike.
LightningMaps lightning_maps(const LightningMoments& moments, const IndexerConfig& config,
                             const ModelShape& shape, const RopeTable& rope,
                             std::span<const WindowStart> starts, size_t window);

// The layer with, for each head, the product of query and key from which on it counts, and with a weight for
// all heads. `thresholds` [config.heads]. A config whose values all rotate has no place for thresholds: then
// they stay 0.
IndexerLayerWeights with_heads(const LightningMaps& maps, const IndexerConfig& config,
                               std::span<const float> thresholds, float gain);

}  // namespace keysieve
