#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/selection.h"

namespace keysieve {

// The selections of one chunk, in the layout attention reads. Memory is kept between chunks.
class SelectionBuffer {
 public:
  void reset(size_t queries, size_t groups, size_t budget);
  uint32_t* row(size_t query, size_t group) { return slots_.data() + (query * groups_ + group) * budget_; }
  uint32_t& count(size_t query, size_t group) { return counts_[query * groups_ + group]; }
  std::span<const uint32_t> slots(size_t query, size_t group) const;  // [count], ascending
  SelectionView view() const { return {slots_.data(), counts_.data(), groups_, budget_}; }
  size_t queries() const { return queries_; }
  size_t groups() const { return groups_; }

 private:
  size_t queries_ = 0;
  size_t groups_ = 1;
  size_t budget_ = 0;
  std::vector<uint32_t> slots_;   // [queries, groups, budget], the first counts[..] of each row used
  std::vector<uint32_t> counts_;  // [queries, groups]
};

}  // namespace keysieve
