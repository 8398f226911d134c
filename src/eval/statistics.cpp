#include "eval/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "keysieve/error.h"

namespace keysieve {

std::array<double, 2> wilson95(size_t passed, size_t trials) {
  if (trials == 0) return {0.0, 1.0};
  constexpr double z = 1.959963984540054;
  const auto n = static_cast<double>(trials);
  const double p = static_cast<double>(passed) / n;
  const double centre = (p + z * z / (2 * n)) / (1 + z * z / n);
  const double half = z / (1 + z * z / n) * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  // At the ends centre and half agree but for rounding.
  return {passed == 0 ? 0.0 : std::max(0.0, centre - half),
          passed == trials ? 1.0 : std::min(1.0, centre + half)};
}

std::array<double, 2> bootstrap_mean95(std::span<const std::vector<double>> blocks, uint64_t seed,
                                       size_t draws) {
  struct Sum {
    double total = 0;
    double count = 0;
  };
  std::vector<Sum> sums;
  for (const std::vector<double>& block : blocks) {
    if (block.empty()) throw Error(ErrorKind::usage, "bootstrap", "an empty block", "at least one value");
    Sum sum;
    for (const double value : block) sum.total += value;
    sum.count = static_cast<double>(block.size());
    sums.push_back(sum);
  }
  if (sums.empty() || draws == 0) {
    throw Error(ErrorKind::usage, "bootstrap", fmt::format("{} blocks, {} draws", sums.size(), draws),
                "at least one of each");
  }
  SplitMix random(seed);
  std::vector<double> means(draws);
  for (double& value : means) {
    Sum drawn;
    for (size_t i = 0; i < sums.size(); ++i) {
      const Sum& sum = sums[random.below(sums.size())];
      drawn.total += sum.total;
      drawn.count += sum.count;
    }
    value = drawn.total / drawn.count;
  }
  std::sort(means.begin(), means.end());
  const auto at = [&](double share) {
    return means[static_cast<size_t>(std::lround(share * static_cast<double>(draws - 1)))];
  };
  return {at(0.025), at(0.975)};
}

std::vector<std::vector<double>> blocks_of(std::span<const double> values, size_t size) {
  std::vector<std::vector<double>> blocks;
  for (size_t at = 0; at < values.size(); at += size) {
    const auto part = values.subspan(at, std::min(size, values.size() - at));
    blocks.emplace_back(part.begin(), part.end());
  }
  return blocks;
}

double mean(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

}  // namespace keysieve
