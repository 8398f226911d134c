#include "indexer/attention_mass.h"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <span>

namespace keysieve {
namespace {

// In eight sums side by side, which the compiler puts into vectors.
double sum_of(const float* values, size_t count) {
  std::array<double, 8> sums{};
  size_t i = 0;
  for (; i + sums.size() <= count; i += sums.size()) {
    for (size_t lane = 0; lane < sums.size(); ++lane) sums[lane] += values[i + lane];
  }
  for (; i < count; ++i) sums[0] += values[i];
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// How many of the largest values it takes to reach `wanted`; puts the last of these at that place (counted
// from 1). All of them where all are not enough. Halving, not sorting, since there
// is one such choice for each layer, set and block of queries (decision 0016).
size_t fewest_to_reach(std::span<float> values, double wanted) {
  size_t begin = 0, end = values.size();
  while (begin < end) {
    const size_t middle = (begin + end) / 2;
    const auto at = [&values](size_t i) { return values.begin() + static_cast<std::ptrdiff_t>(i); };
    std::nth_element(at(begin), at(middle), at(end), std::greater<>());
    const double sum = sum_of(values.data() + begin, middle + 1 - begin);
    if (sum >= wanted) {
      end = middle;
    } else {
      wanted -= sum;
      begin = middle + 1;
    }
  }
  return std::min(begin + 1, values.size());
}

}  // namespace

size_t keep_mass(uint32_t* slots, size_t count, const float* scores, const CandidateRange& range, double mass,
                 std::vector<float>& values) {
  const double always =
      sum_of(scores, range.middle) + sum_of(scores + range.end, range.candidates - range.end);
  const double all = always + sum_of(scores + range.middle, range.end - range.middle);
  if (always >= mass * all) return 0;
  values.resize(count);
  for (size_t i = 0; i < count; ++i) values[i] = scores[slots[i]];
  const size_t kept = fewest_to_reach(values, mass * all - always);
  if (kept == count) return count;
  // The slots are ascending and stay so; of equal scores the later slots are read.
  const float least = values[kept - 1];
  size_t above = 0, equal = 0;
  for (const float value : values) {
    above += value > least;
    equal += value == least;
  }
  size_t passed_over = equal - (kept - above);
  size_t out = 0;
  for (size_t i = 0; i < count; ++i) {
    const float score = scores[slots[i]];
    if (score < least) continue;
    if (score == least && passed_over > 0) {
      --passed_over;
      continue;
    }
    slots[out++] = slots[i];
  }
  return out;
}

}  // namespace keysieve
