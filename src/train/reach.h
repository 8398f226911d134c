#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace keysieve {

// How far from a text's beginning an indexer is made to work, whatever the length of the windows it is made
// from (docs/decisions/0019).
inline constexpr size_t kMostReach = 32768;  // positions, unless asked for

// `asked`, or for 0 the model's context, at most kMostReach of it. Throws Error{usage} above the context.
size_t reach_of(size_t asked, size_t context);

// A window of text read as if this many positions came before it.
struct WindowStart {
  size_t position;
  double weight = 1;  // beside the others'; above 0
};

// Where windows of so many tokens start: one after another as far as `reach` goes, at least at 0, the n-th
// with weight 1/n. That is about how often a token stands there that is drawn from texts whose lengths are
// spread alike over powers of two; with equal weights short texts pay twice as much for the long ones.
std::vector<WindowStart> window_starts(size_t window, size_t reach);

// One of them by their weights.
size_t draw_start(const std::vector<WindowStart>& starts, uint64_t seed);

}  // namespace keysieve
