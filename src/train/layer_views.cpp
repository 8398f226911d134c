#include "train/layer_views.h"

#include <algorithm>

#include "core/cancel.h"
#include "model/forward.h"

namespace keysieve {

bool view_layers(const std::shared_ptr<const Model>& model, std::span<const std::vector<int32_t>> windows,
                 bool hidden, const std::atomic<bool>* cancel,
                 const std::function<void(const LayerView&)>& see,
                 const std::function<void(size_t tokens)>& read) {
  SequenceOptions sequence;
  for (const std::vector<int32_t>& window : windows)
    sequence.context = std::max(sequence.context, window.size());
  sequence.max_chunk = sequence.context;
  SequenceState state(model, sequence);
  std::vector<float> input;
  ForwardTaps taps;
  if (hidden) {
    taps.normed_input = [&](const TapPlace& place, const float* x) {
      input.assign(x, x + place.tokens * model->config().hidden);
    };
  }
  taps.projections = [&](const TapPlace& place, const float* q, const float* k, const float*) {
    see({place.layer, place.tokens, hidden ? input.data() : nullptr, q, k});
  };
  for (const std::vector<int32_t>& window : windows) {
    if (is_cancelled(cancel)) return false;
    state.clear();
    forward(state, window, {.logits = Logits::none, .taps = &taps});
    if (read) read(window.size());
  }
  return !is_cancelled(cancel);
}

}  // namespace keysieve
