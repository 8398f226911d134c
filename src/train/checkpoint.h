#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "train/student.h"

namespace keysieve {

struct TrainedLayer {
  size_t index;  // in the model
  std::unique_ptr<LayerStudent> student;
  std::vector<std::vector<float>>
      best;  // [tensors], the values of the best development loss; empty: none yet
};

// Everything a run needs to go on as if it had never stopped: random numbers follow from seed, step and
// layer, data from the cursor.
struct TrainingState {
  size_t step = 0;                                             // steps done
  uint64_t cursor = 0;                                         // of the text packer
  uint64_t tokens = 0;                                         // read so far
  double seconds = 0;                                          // spent so far
  double best_loss = std::numeric_limits<double>::infinity();  // on the development split
  size_t best_step = 0;
  size_t stale = 0;  // evaluations since
  std::vector<TrainedLayer> layers;
};

// One .safetensors, written atomically: values, both moments and best values of every tensor, the scalars in
// its metadata. `settings` describes the run (model, texts, options).
void save_checkpoint(const std::filesystem::path& path, const TrainingState& state,
                     const std::string& settings);

// Fills `state`, whose layers must be made already. Throws Error{mismatch} where the checkpoint was written
// by a run with other settings or other tensors, Error{format} for a damaged file.
void load_checkpoint(const std::filesystem::path& path, TrainingState& state, const std::string& settings);

}  // namespace keysieve
