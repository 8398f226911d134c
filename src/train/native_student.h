#pragma once

#include "train/row_matrix.h"
#include "train/student.h"

namespace keysieve {

// The native shape as softmax_sum scores it: u_h = Q q_h, w_s = K k_s, P_h = softmax_s(u_h . w_s), P the mean
// over the set's heads.
//
// Where the start has a key bias, w_s = K (k_s - m) with m a running mean of the keys seen. It changes no
// softmax and has no gradient, but centres what is rounded; the bias written is -K m.
class NativeStudent final : public LayerStudent {
 public:
  NativeStudent(const IndexerConfig& config, const ModelShape& shape, const IndexerLayerWeights& start,
                ScoreKeys keys);

  LossMeasures learn(const LayerView& view, const Teacher& teacher, std::span<const uint32_t> queries,
                     const LossOptions& loss, float weight, KernelContext& context) override;
  size_t sets() const override { return per_group_ ? groups_ : 1; }
  size_t working_bytes(size_t tokens, size_t queries, int threads) const override;
  IndexerLayerWeights weights() const override;

 private:
  struct KeyHead;
  struct Work;

  size_t map_of(size_t head) const { return map_per_head_ ? head : head / heads_per_group_; }
  ConstMatrixView query_map(size_t head) const;
  ConstMatrixView key_map(size_t group) const;
  Eigen::VectorXf key_bias(size_t group) const;  // [rank]
  void follow_key_mean(const LayerView& view);
  void prepare(Work& work) const;
  void learn_row(Work& work, size_t set, size_t tile, size_t row, int worker) const;
  void backward_tile(Work& work, size_t set, size_t tile, size_t rows) const;
  void add_gradients(Work& work);

  size_t heads_;
  size_t groups_;
  size_t heads_per_group_;
  size_t head_dim_;
  size_t rank_;
  bool map_per_head_;
  bool per_group_;
  bool centred_;
  IndexKeyType key_type_;
};

}  // namespace keysieve
