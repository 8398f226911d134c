#pragma once

#include "kernels/kernels.h"
#include "train/row_matrix.h"
#include "train/student.h"

namespace keysieve {

// The seed shape (DeepSeek-V3.2's lightning indexer in small): q, k and head weights from the layer's normed
// hidden state as indexer/indexer.h says, I_s = sum_h w_h max(0, q_h . k_s), P = softmax_s(I). The teacher is
// the mean over all heads of the model. Biases and norms are trained where the start has them.
class LightningStudent final : public LayerStudent {
 public:
  LightningStudent(const IndexerConfig& config, const ModelShape& shape, const IndexerLayerWeights& start,
                   ScoreKeys keys);

  LossMeasures learn(const LayerView& view, const Teacher& teacher, std::span<const uint32_t> queries,
                     const LossOptions& loss, float weight, KernelContext& context) override;
  size_t sets() const override { return 1; }
  size_t working_bytes(size_t tokens, size_t queries, int threads) const override;

 private:
  struct Work;
  // Rows [rows, width] before and after norm and rotation: a projection with what its backward needs.
  struct Projection {
    RowMatrix input;              // [rows, hidden]
    RowMatrix plain;              // with the bias, before the norm
    RowMatrix result;             // after norm and rotation
    std::vector<int32_t> places;  // [rows], positions
  };

  TrainedTensor* find(std::string_view name);
  const TrainedTensor* find(std::string_view name) const;
  void project(Projection& projection, std::string_view part, size_t heads, KernelContext& context) const;
  // d loss / d result becomes gradients of the part's tensors. `upstream` is overwritten.
  void project_back(const Projection& projection, std::string_view part, size_t heads, RowMatrix& upstream,
                    KernelContext& context);
  void prepare(Work& work) const;
  void learn_row(Work& work, size_t tile, size_t row, int worker) const;
  void backward_tile(Work& work, size_t tile, size_t rows) const;
  void add_gradients(Work& work);

  size_t model_heads_;
  size_t hidden_;
  size_t heads_;
  size_t dim_;
  float norm_eps_;
  float weight_scale_;  // heads^-0.5 dim^-0.5
  RopeTable rope_;
  IndexKeyType key_type_;
};

}  // namespace keysieve
