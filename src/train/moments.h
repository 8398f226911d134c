#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <span>
#include <vector>

#include "core/threads.h"
#include "kernels/kernels.h"
#include "model/taps.h"
#include "train/reach.h"

namespace keysieve {

// Second moments of the model's own q and k after RoPE, for every layer and KV group, summed while windows of
// text pass through the model. 2 * head_dim^2 doubles a group: 5.9 MB for 30 layers of 3 groups of 64.
//
// Left out are the first positions, which no later choice depends on: queries below kFirstQuery (they read
// everything anyway) and keys below kFirstKey (sinks, always kept, and far from all other keys).
class MomentCollector {
 public:
  static constexpr size_t kFirstQuery = 64;
  static constexpr size_t kFirstKey = 4;

  // `threads` must outlive the object.
  MomentCollector(size_t layers, size_t heads, size_t kv_heads, size_t head_dim, const Threads& threads);

  // A tap for ForwardTaps::projections: q [tokens, heads, head_dim], k [tokens, kv_heads, head_dim].
  void add(const TapPlace& place, const float* q, const float* k);

  size_t queries() const;  // tokens counted as queries in each layer
  size_t keys() const;     // tokens counted as keys in each layer

  // What one group's q and k are like.
  struct Moments {
    Eigen::MatrixXd query;     // E q q^T over tokens and the group's heads, [head_dim, head_dim]
    Eigen::VectorXd key_mean;  // [head_dim]
    // [head_dim, head_dim]. Centred, because a key direction that never varies adds the same number to all
    // scores of a query and so ranks nothing.
    Eigen::MatrixXd key_covariance;
  };
  // As if each window had passed from each of these positions on, as often as its weight says. A model with
  // RoPE computes the same there but for the rotations, which turn all of a window's q and k by the same
  // angles more: moments need no second pass. `starts` is not empty.
  Moments moments(size_t layer, size_t group, const RopeTable& rope,
                  std::span<const WindowStart> starts) const;

 private:
  struct Group {
    Eigen::MatrixXd queries;  // sum q q^T, lower triangle
    Eigen::MatrixXd keys;     // sum k k^T, lower triangle
    Eigen::VectorXd key_sum;
  };

  size_t heads_;
  size_t kv_heads_;
  size_t head_dim_;
  const Threads& threads_;
  std::vector<Group> groups_;       // [layers, kv_heads]
  std::vector<size_t> query_rows_;  // [layers]
  std::vector<size_t> key_rows_;    // [layers]
};

}  // namespace keysieve
