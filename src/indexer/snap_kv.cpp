#include "indexer/snap_kv.h"

#include <algorithm>
#include <vector>

#include "indexer/selection_recorder.h"

namespace keysieve {

bool SnapKvSelector::select(const LayerQuery& query, KernelContext&, SelectionBuffer&) {
  if (query.recorder) query.recorder->record(query, nullptr);
  return false;
}

void SnapKvSelector::scores(float* scores, const LayerQuery& query, size_t voters, KernelContext& context) {
  attention_->scores(scores, query, voters, context);
  // A step of decode drops one row; slots are then in no order, and nothing is averaged.
  if (query.inputs.tokens == 1) return;
  const size_t slots = query.slots();
  std::vector<double> sums(slots + 1, 0.0);
  for (size_t group = 0; group < groups(); ++group) {
    float* row = scores + group * slots;
    for (size_t s = 0; s < slots; ++s) sums[s + 1] = sums[s] + static_cast<double>(row[s]);
    for (size_t s = 0; s < slots; ++s) {
      const size_t first = s - std::min(s, kPool / 2);
      const size_t last = std::min(slots, s + kPool / 2 + 1);
      row[s] = static_cast<float>((sums[last] - sums[first]) / static_cast<double>(last - first));
    }
  }
}

}  // namespace keysieve
