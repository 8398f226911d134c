#pragma once

#include <cstdint>
#include <vector>

#include "core/split_mix.h"
#include "text/tokenizer.h"

namespace keysieve {

// One sequence of a training step. `marked`: queries worth learning from, ascending; the token after each can
// only be known from far back.
struct TrainingSequence {
  std::vector<int32_t> tokens;
  std::vector<uint32_t> marked;
};

// Prose in which a few keys decide: average text holds so few of them that a mean over its queries hides
// them. Turns `tokens` into a sequence no longer than it was, by a draw of `random` one of
//   facts    3 to 8 made-up facts ("the harbour of Elsin was built in 4817") put between sentences, and
//            questions about them at the end, in an order of their own, with the answers;
//   repeats  passages of 48 to 160 tokens from the first three quarters, written out again at the end.
// Texts shorter than 512 tokens stay as they are.
TrainingSequence with_retrieval(std::vector<int32_t> tokens, const Tokenizer& tokenizer, SplitMix random);

}  // namespace keysieve
