#pragma once

#include <Eigen/Core>
#include <cstddef>
#include <vector>

#include "core/threads.h"
#include "model/taps.h"

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
  // E q q^T over tokens and the group's heads, [head_dim, head_dim].
  Eigen::MatrixXd query_moment(size_t layer, size_t group) const;
  Eigen::VectorXd key_mean(size_t layer, size_t group) const;  // [head_dim]
  // Covariance of the keys, [head_dim, head_dim]. Centred, because a key direction that never varies adds the
  // same number to all scores of a query and so ranks nothing.
  Eigen::MatrixXd key_covariance(size_t layer, size_t group) const;

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
