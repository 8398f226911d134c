#include "indexer/selection_recorder.h"

#include <algorithm>
#include <utility>

namespace keysieve {

std::vector<SelectionRecorder::Row>& SelectionRecorder::layer(size_t index) {
  if (layers_.size() <= index) layers_.resize(index + 1);
  return layers_[index];
}

void SelectionRecorder::record(size_t layer_index, int32_t query, std::vector<std::vector<int32_t>> groups) {
  layer(layer_index).push_back({query, std::move(groups)});
}

void SelectionRecorder::record(const LayerQuery& query, const SelectionBuffer* selection) {
  const size_t groups = selection ? selection->groups() : 1;
  for (size_t i = 0; i < query.inputs.tokens; ++i) {
    std::vector<std::vector<int32_t>> sets(groups);
    for (size_t g = 0; g < groups; ++g) {
      const int32_t* positions =
          query.slot_positions ? query.slot_positions + g * query.kv.capacity : nullptr;
      const size_t count = selection ? selection->slots(i, g).size() : query.candidates(i);
      for (size_t s = 0; s < count; ++s) {
        const size_t slot = selection ? selection->slots(i, g)[s] : s;
        sets[g].push_back(positions ? positions[slot] : static_cast<int32_t>(slot));
      }
      if (positions) std::sort(sets[g].begin(), sets[g].end());
    }
    record(query.layer, query.inputs.positions[i], std::move(sets));
  }
}

}  // namespace keysieve
