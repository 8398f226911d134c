#include "indexer/selection_buffer.h"

#include <algorithm>

namespace keysieve {

void SelectionBuffer::reset(size_t queries, size_t groups, size_t budget) {
  queries_ = queries;
  groups_ = groups;
  budget_ = budget;
  slots_.resize(std::max(slots_.size(), queries * groups * budget));
  counts_.assign(queries * groups, 0);
}

std::span<const uint32_t> SelectionBuffer::slots(size_t query, size_t group) const {
  const size_t row = query * groups_ + group;
  return {slots_.data() + row * budget_, counts_[row]};
}

}  // namespace keysieve
