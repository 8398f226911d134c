#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace keysieve {
namespace {

float root_mean_square(const std::vector<float>& values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return values.empty() ? 0.0f : static_cast<float>(std::sqrt(sum / static_cast<double>(values.size())));
}

}  // namespace

TrainedTensor::TrainedTensor(std::string tensor_name, std::vector<float> values, float unit_of_zeros)
    : name(std::move(tensor_name)),
      value(std::move(values)),
      gradient(value.size()),
      mean(value.size()),
      square(value.size()),
      unit(root_mean_square(value)) {
  if (!(unit > 0)) unit = unit_of_zeros;
}

double scheduled_rate(size_t step, size_t steps, double peak, double least) {
  const size_t warm = std::max<size_t>(1, (steps + 19) / 20);
  if (step < warm) return peak * static_cast<double>(step + 1) / static_cast<double>(warm);
  if (steps <= warm) return peak;
  const double way = std::min(1.0, static_cast<double>(step - warm) / static_cast<double>(steps - warm));
  return least + 0.5 * (peak - least) * (1 + std::cos(std::numbers::pi * way));
}

double gradient_norm(std::span<const TrainedTensor> tensors) {
  double sum = 0;
  for (const TrainedTensor& tensor : tensors) {
    double own = 0;
    for (const float g : tensor.gradient) own += static_cast<double>(g) * static_cast<double>(g);
    sum += own * static_cast<double>(tensor.unit) * static_cast<double>(tensor.unit);
  }
  return std::sqrt(sum);
}

void adam_step(std::span<TrainedTensor> tensors, size_t step, double rate, const AdamOptions& options) {
  const double norm = gradient_norm(tensors);
  // A gradient that is not finite (a model that overflowed) must not reach the weights.
  const bool usable = std::isfinite(norm);
  const double factor = norm > options.clip ? options.clip / norm : 1.0;
  const double count = static_cast<double>(step + 1);
  const double first_bias = 1 - std::pow(options.first_decay, count);
  const double second_bias = 1 - std::pow(options.second_decay, count);
  const auto keep_first = static_cast<float>(options.first_decay);
  const auto keep_second = static_cast<float>(options.second_decay);
  const auto shrink = static_cast<float>(1 - rate * options.weight_decay);
  for (TrainedTensor& tensor : tensors) {
    const auto scale = static_cast<float>(factor * static_cast<double>(tensor.unit));
    const auto stride = static_cast<float>(rate * static_cast<double>(tensor.unit) / first_bias);
    const auto root = static_cast<float>(1 / std::sqrt(second_bias));
    const auto epsilon = static_cast<float>(options.epsilon);
    for (size_t i = 0; usable && !tensor.frozen && i < tensor.value.size(); ++i) {
      const float g = tensor.gradient[i] * scale;
      tensor.mean[i] = keep_first * tensor.mean[i] + (1 - keep_first) * g;
      tensor.square[i] = keep_second * tensor.square[i] + (1 - keep_second) * g * g;
      tensor.value[i] =
          shrink * tensor.value[i] - stride * tensor.mean[i] / (std::sqrt(tensor.square[i]) * root + epsilon);
    }
    std::fill(tensor.gradient.begin(), tensor.gradient.end(), 0.0f);
  }
}

}  // namespace keysieve
