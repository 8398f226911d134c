#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "indexer/indexer_config.h"
#include "indexer/indexer_weights.h"
#include "train/losses.h"
#include "train/optimizer.h"
#include "train/teacher.h"

namespace keysieve {

// One layer of an indexer being trained: forward and backward, written by hand.
class LayerStudent {
 public:
  virtual ~LayerStudent() = default;

  // Compares the layer's scores with the teacher's attention at `queries` (ascending positions) and returns
  // the measures summed over queries and sets. With `weight` above 0, adds weight * d(sum of losses) to the
  // tensors' gradients. The result does not depend on the number of threads. Must not be called from a task
  // of the same Threads.
  virtual LossMeasures learn(const LayerView& view, const Teacher& teacher, std::span<const uint32_t> queries,
                             const LossOptions& loss, float weight, KernelContext& context) = 0;

  // Sets of keys a query chooses: rows of measures a query.
  virtual size_t sets() const = 0;
  // Bytes of working memory learn() takes for a sequence of `tokens` and `queries` queries, about.
  virtual size_t working_bytes(size_t tokens, size_t queries, int threads) const = 0;

  std::span<TrainedTensor> tensors() { return tensors_; }
  std::span<const TrainedTensor> tensors() const { return tensors_; }
  virtual IndexerLayerWeights weights() const;  // the present values

 protected:
  std::vector<TrainedTensor> tensors_;  // named after the members of IndexerLayerWeights
};

// How keys are rounded while scores are learnt.
enum class ScoreKeys : uint8_t {
  exact,     // f32
  as_stored  // as the config says they are kept (int8, ...): gradients pass straight through the rounding
};

// `config` is bound to a model of `shape`; `start` has its sizes.
std::unique_ptr<LayerStudent> make_student(const IndexerConfig& config, const ModelShape& shape,
                                           const IndexerLayerWeights& start, ScoreKeys keys);

// Rows (queries) worked on at a time: 3 heads x 32 queries x 4,096 keys of f32 are 1.5 MB, about an L2 cache.
inline constexpr size_t kQueryTile = 32;

}  // namespace keysieve
