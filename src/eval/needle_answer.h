#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "eval/needle_prompt.h"
#include "keysieve/text_codec.h"
#include "model/sequence_state.h"

namespace keysieve {

// The greedy answer of a sequence that has read a prompt, at most `most` tokens, without the end token.
std::string greedy_answer(SequenceState& state, const TextCodec& codec, size_t most);

// How likely the codes' tokens are in the task's own answer.
struct CodeLikelihood {
  double nll = 0;       // mean negative log likelihood, nats
  bool greedy = false;  // each of them is the greedy choice there
};
// Goes back to the prompt's end first. nullopt: a cache that forgets cannot, or the context has no room for
// the answer. `on_logits`: called with the logits [vocabulary] that predict token `predicted` of the answer,
// for each but the first, which the prompt's end predicts.
std::optional<CodeLikelihood> code_likelihood(
    SequenceState& state, const NeedlePrompt& prompt,
    const std::function<void(size_t predicted, std::span<const float> logits)>& on_logits = {});

}  // namespace keysieve
