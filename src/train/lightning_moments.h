#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <vector>

#include "indexer/model_shape.h"
#include "kernels/kernels.h"
#include "train/row_matrix.h"
#include "train/teacher.h"

namespace keysieve {

// What one layer's lightning indexer is calibrated from: the normed hidden state beside the model's own q and
// k before RoPE, and how much of each head's attention goes far. hidden * (hidden + q_width + kv_width)
// doubles: 6.2 MB for a layer of SmolLM2-135M, 300 MB for one of an 8B model.
// A pair of values that RoPE turns is one complex number: a position more multiplies it by e^(i frequency).
struct LightningMoments {
  double rows = 0;
  Eigen::VectorXd hidden_sum;          // [hidden]
  Eigen::MatrixXd hidden;              // sum x x^T, lower triangle, [hidden, hidden]
  Eigen::VectorXd projection_sum;      // of (q, k), [q_width + kv_width]
  Eigen::MatrixXd projections;         // sum x (q, k)^T, [hidden, q_width + kv_width]
  std::vector<Eigen::MatrixXcd> keys;  // [pairs]: sum k k^H, [kv_heads, kv_heads]
  Eigen::MatrixXd query_energy;        // sum |q|^2, [heads, pairs]
  double far_rows = 0;
  Eigen::VectorXd far;  // [heads]: sum over far_rows queries of the attention outside sinks and recent
};

// Adds one window that starts at position 0: every kRowStep-th of its tokens, and the attention of a few
// queries. `rope` is the model's. `moments` of the first window is empty.
inline constexpr size_t kRowStep = 4;
void add_window(LightningMoments& moments, const LayerView& view, const ModelShape& shape,
                const RopeTable& rope, size_t sinks, size_t recent, KernelContext& context);

}  // namespace keysieve
