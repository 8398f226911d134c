#pragma once

#include <cstddef>
#include <cstdint>

namespace keysieve {

// Which slots each query reads. `groups` is 1 (one set for the whole layer) or the number of KV heads.
struct SelectionView {
  const uint32_t* slots;   // [queries, groups, budget], the first counts[..] of each row used, ascending
  const uint32_t* counts;  // [queries, groups]
  size_t groups;
  size_t budget;

  const uint32_t* row(size_t query, size_t group) const { return slots + (query * groups + group) * budget; }
  size_t count(size_t query, size_t group) const { return counts[query * groups + group]; }
};

}  // namespace keysieve
