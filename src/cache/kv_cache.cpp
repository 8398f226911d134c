#include "cache/kv_cache.h"

#include <algorithm>
#include <numeric>

#include "keysieve/error.h"

namespace keysieve {

std::vector<int32_t> KvCache::positions(size_t layer, size_t set) const {
  std::vector<int32_t> positions(size(layer));
  if (const int32_t* slots = slot_positions(layer)) {
    std::copy_n(slots + set * kv(layer).capacity, positions.size(), positions.begin());
    std::sort(positions.begin(), positions.end());
  } else {
    std::iota(positions.begin(), positions.end(), 0);
  }
  return positions;
}

void KvCache::save(StateWriter&) const {
  throw Error(ErrorKind::unsupported, "cache", "of a kind that cannot be saved", "full, fixed or tiered");
}

void KvCache::load(StateReader&, size_t) {
  throw Error(ErrorKind::unsupported, "cache", "of a kind that cannot be loaded", "full, fixed or tiered");
}

}  // namespace keysieve
