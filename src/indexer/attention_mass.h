#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace keysieve {

// A query's candidates: those before `middle` and from `end` on are read in any case.
struct CandidateRange {
  size_t middle;
  size_t end;
  size_t candidates;
};

// How many of `slots` [count], the best of the middle, it takes for all that is read to have `mass` of the
// sum of `scores` [candidates], at most count; leaves these in front. The slots are ascending and stay so; of
// equal scores the later slots are read. `values`: working memory. Decision 0016.
size_t keep_mass(uint32_t* slots, size_t count, const float* scores, const CandidateRange& range, double mass,
                 std::vector<float>& values);

}  // namespace keysieve
