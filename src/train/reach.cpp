#include "train/reach.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/split_mix.h"
#include "keysieve/error.h"

namespace keysieve {

size_t reach_of(size_t asked, size_t context) {
  if (asked > context) {
    throw Error(ErrorKind::usage, "reach", fmt::format("{} positions", asked),
                fmt::format("at most {}, the model's context", context), "lower --reach");
  }
  return asked > 0 ? asked : std::min(context, kMostReach);
}

std::vector<WindowStart> window_starts(size_t window, size_t reach) {
  std::vector<WindowStart> starts{{0}};
  while (window > 0 && starts.back().position + 2 * window <= reach) {
    const size_t number = starts.size() + 1;
    starts.push_back({starts.back().position + window, 1.0 / static_cast<double>(number)});
  }
  return starts;
}

size_t draw_start(const std::vector<WindowStart>& starts, uint64_t seed) {
  double sum = 0;
  for (const WindowStart& start : starts) sum += start.weight;
  double left = SplitMix(seed).unit() * sum;
  for (const WindowStart& start : starts) {
    left -= start.weight;
    if (left < 0) return start.position;
  }
  return starts.back().position;
}

}  // namespace keysieve
