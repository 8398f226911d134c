#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/json.h"
#include "model/model.h"
#include "train/checkpoint.h"
#include "train/losses.h"
#include "train/optimizer.h"
#include "train/packing.h"

namespace keysieve {

struct TrainingOptions {
  size_t steps = 300;
  size_t batch = 1;  // windows of a step
  PackingOptions packing;
  size_t queries = 128;  // a window and layer
  LossOptions loss;
  double rate = 0.01;  // peak learning rate, in units (TrainedTensor::unit)
  AdamOptions adam;
  ScoreKeys keys = ScoreKeys::as_stored;
  // Learn from the hidden states of the model as it reads sparsely with the indexer of the moment, instead of
  // the dense ones: the second phase of the published recipe.
  bool sparse_states = false;
  // Native shape: positions the indexer is made for. Windows are learnt from as if they stood anywhere below
  // it, each time at a start drawn anew. 0: the model's context, at most kMostReach of it (reach.h).
  size_t reach = 0;
  size_t evaluate_every = 25;    // steps
  size_t patience = 0;           // evaluations without a better development loss before stopping; 0: never
  size_t checkpoint_every = 20;  // steps
  uint64_t memory_limit = 0;     // bytes; 0: none
};

struct TrainingProgress {
  size_t step;  // done
  size_t steps;
  uint64_t tokens;
  double seconds;
  double learning_seconds;  // of this process: spent on anything but the model's own forward
  double forward_seconds;
  double loss;                      // mean over the rows of the step
  double captured;                  // share of attention mass
  double oracle;                    // the most there is
  const LossMeasures* development;  // of this step, or null
};

// Why a run ended.
enum class TrainingEnd : uint8_t { finished, stopped_early, cancelled };

// Runs windows of text through the frozen model and teaches every layer of `state` from each: one dense
// forward a window, all layers' losses, then one AdamW step a layer. Layers share nothing, so training a part
// of them gives the bits that training all gives. The result does not depend on the number of threads.
class Trainer {
 public:
  // `config` must be bound to the model. `development` sequences are measured, never learnt from.
  // Throws Error{usage} for options that make no sense, Error{resource} where memory_bytes() is above
  // the limit.
  Trainer(std::shared_ptr<const Model> model, IndexerConfig config, const TextPacker& texts,
          std::vector<TrainingSequence> development, const TrainingOptions& options);
  ~Trainer();

  // About what the run will hold, the model included.
  uint64_t memory_bytes(const TrainingState& state) const;

  // In positions; 0 for the lightning shape, whose windows stay where they are.
  size_t reach() const;

  // Goes on from state.step. `save` is called with a state from which the run can go on (every
  // checkpoint_every steps, and when cancelled); `log` with one line of metrics.
  TrainingEnd run(TrainingState& state, const std::function<void(const TrainingState&)>& save,
                  const std::function<void(const Json&)>& log,
                  const std::function<void(const TrainingProgress&)>& on_step,
                  const std::atomic<bool>* cancel);

  // Measures of the development sequences, summed over trained layers.
  LossMeasures evaluate(TrainingState& state);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace keysieve
