#include <cmath>

#include "kernels/kernels.h"

namespace keysieve {

void RopeAngles::compute(const RopeTable& table, std::span<const int32_t> positions) {
  pairs = table.frequency.size();
  cosine.resize(positions.size() * pairs);
  sine.resize(positions.size() * pairs);
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(positions[t]) * table.frequency[i];
      cosine[t * pairs + i] = static_cast<float>(std::cos(angle)) * table.scale;
      sine[t * pairs + i] = static_cast<float>(std::sin(angle)) * table.scale;
    }
  }
}

}  // namespace keysieve
