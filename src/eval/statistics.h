#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

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

// splitmix64 (Steele, Lea, Flood 2014): small, fast, the same on every machine.
class SplitMix {
 public:
  explicit SplitMix(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Uniform in [0, bound), up to a bias of bound / 2^64.
  size_t below(size_t bound) { return static_cast<size_t>(next() % bound); }

 private:
  uint64_t state_;
};

}  // namespace keysieve
