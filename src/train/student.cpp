#include "train/student.h"

#include <array>
#include <utility>

#include "train/lightning_student.h"
#include "train/native_student.h"

namespace keysieve {

IndexerLayerWeights LayerStudent::weights() const {
  IndexerLayerWeights weights;
  const std::array<std::pair<std::string_view, std::vector<float>*>, 7> places{
      {{"q", &weights.q},
       {"k", &weights.k},
       {"head_weight", &weights.head_weight},
       {"q_bias", &weights.q_bias},
       {"k_bias", &weights.k_bias},
       {"q_norm", &weights.q_norm},
       {"k_norm", &weights.k_norm}}};
  for (const TrainedTensor& tensor : tensors_) {
    for (const auto& [name, place] : places) {
      if (tensor.name == name) *place = tensor.value;
    }
  }
  return weights;
}

std::unique_ptr<LayerStudent> make_student(const IndexerConfig& config, const ModelShape& shape,
                                           const IndexerLayerWeights& start, ScoreKeys keys) {
  if (config.shape == IndexerShape::native) {
    return std::make_unique<NativeStudent>(config, shape, start, keys);
  }
  return std::make_unique<LightningStudent>(config, shape, start, keys);
}

}  // namespace keysieve
