#pragma once

#include "kernels/kernels.h"

namespace keysieve::reference {

// The scalar twin of every family's index scoring: the SIMD kernels do these operations in this order, so
// their scores are bitwise equal to these.
void map_heads(const HeadMapArgs& args);
void add_softmax(float* out, float* scores, size_t count, bool accumulate);
void index_scores(const IndexScoreArgs& args, KernelScratch& scratch, int worker);

}  // namespace keysieve::reference
