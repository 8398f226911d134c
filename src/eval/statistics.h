#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/split_mix.h"

namespace keysieve {

// Wilson's score interval for a share (1927), 95%: [low, high] within [0, 1]; [0, 1] for no trials.
std::array<double, 2> wilson95(size_t passed, size_t trials);

// 95% percentile bootstrap interval (Efron 1979) of the mean over all elements of `blocks`, whole blocks
// drawn with replacement: elements of one block (neighbouring tokens) are not independent. The same seed
// gives the same interval. Throws Error{usage} for no blocks or an empty one.
std::array<double, 2> bootstrap_mean95(std::span<const std::vector<double>> blocks, uint64_t seed = 1,
                                       size_t draws = 2000);

// `values` cut into consecutive blocks of `size`; the last one may be shorter.
std::vector<std::vector<double>> blocks_of(std::span<const double> values, size_t size);

double mean(std::span<const double> values);  // 0 for none

}  // namespace keysieve
