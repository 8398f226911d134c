#pragma once

#include <memory>
#include <utility>

#include "indexer/key_selector.h"

namespace keysieve {

// A rule for what a fixed cache keeps that goes by true attention and reads the prompt densely: the base of
// such baselines for `eval`. A rule says select(), which picks nothing, and scores().
class CacheRule : public KeySelector {
 public:
  size_t groups() const override { return attention_->groups(); }
  size_t budget(size_t layer) const override { return attention_->budget(layer); }
  KeyShape key_shape() const override { return attention_->key_shape(); }
  void project_keys(float* keys, size_t layer, const LayerInputs& inputs, KernelContext& context) override {
    attention_->project_keys(keys, layer, inputs, context);
  }

 protected:
  // `attention` scores by the true probabilities.
  explicit CacheRule(std::shared_ptr<KeySelector> attention) : attention_(std::move(attention)) {}

  std::shared_ptr<KeySelector> attention_;
};

}  // namespace keysieve
