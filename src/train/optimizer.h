#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace keysieve {

// Numbers that training changes, with what the optimiser remembers of them.
struct TrainedTensor {
  std::string name;             // within its layer: "q", "k", "q_bias", ...
  std::vector<float> value;     // [count]
  std::vector<float> gradient;  // [count], of the batch so far
  std::vector<float> mean;      // [count], Adam's first moment
  std::vector<float> square;    // [count], Adam's second moment
  // Root mean square of the values at the start. Gradients are taken and steps are made in this unit, so that
  // one learning rate serves maps whose sizes differ by orders of magnitude.
  float unit = 1;
  // Kept in checkpoints with the others but never stepped: numbers that follow from the data.
  bool frozen = false;

  // `unit_of_zeros` where all values are 0 (biases).
  TrainedTensor(std::string tensor_name, std::vector<float> values, float unit_of_zeros = 0.1f);
};

struct AdamOptions {
  double first_decay = 0.9;
  double second_decay = 0.99;
  double epsilon = 1e-8;
  double weight_decay = 0.01;
  double clip = 1.0;  // largest norm of a layer's gradient, in units
};

// Learning rate of step `step` (from 0) of `steps`: up in a line over the first 5%, then a half cosine down
// to `least`.
double scheduled_rate(size_t step, size_t steps, double peak, double least = 1e-6);

// Norm of the gradients of all tensors together, in units.
double gradient_norm(std::span<const TrainedTensor> tensors);

// One step of AdamW (arXiv 1711.05101) with the gradients clipped together; clears them. `step` counts from
// 0.
void adam_step(std::span<TrainedTensor> tensors, size_t step, double rate, const AdamOptions& options);

}  // namespace keysieve
