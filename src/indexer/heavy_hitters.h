#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "indexer/key_selector.h"

namespace keysieve {

// What a fixed cache keeps by H2O's rule (arXiv 2306.14048): the positions with the most attention summed
// over all queries so far, beside the most recent ones (half of the budget each, which is the cache's
// `recent`). The prompt is read densely and cut once. A baseline for `eval`; it scores every query of the
// prompt against every key, so it costs as much again as dense attention.
class HeavyHitterSelector final : public KeySelector {
 public:
  // `attention` scores by the true probabilities.
  explicit HeavyHitterSelector(std::shared_ptr<KeySelector> attention) : attention_(std::move(attention)) {}

  size_t groups() const override { return attention_->groups(); }
  size_t budget(size_t layer) const override { return attention_->budget(layer); }
  KeyShape key_shape() const override { return attention_->key_shape(); }
  void project_keys(float* keys, size_t layer, const LayerInputs& inputs, KernelContext& context) override {
    attention_->project_keys(keys, layer, inputs, context);
  }
  bool select(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) override;
  // `voters` is not asked: all queries have voted.
  void scores(float* scores, const LayerQuery& query, size_t voters, KernelContext& context) override;

 private:
  struct Layer {
    std::vector<std::vector<float>> received;  // [groups][positions]
    int32_t newest = -1;                       // the last query counted
  };
  void count(const LayerQuery& query, KernelContext& context);
  std::shared_ptr<KeySelector> attention_;
  std::vector<Layer> layers_;
  std::vector<float> chunk_;  // [groups, slots]
};

}  // namespace keysieve
