#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "model/model.h"
#include "model/sequence_state.h"
#include "model/taps.h"

namespace keysieve {

enum class Logits : uint8_t { none, last, all };

struct ForwardOptions {
  Logits logits = Logits::last;
  // Logits::all: called with consecutive blocks of rows, so that [tokens, vocabulary] is never held:
  // first_position of the block's first token, rows [tokens, vocabulary].
  std::function<void(size_t first_position, size_t tokens, std::span<const float> rows)> on_logits;
  const ForwardTaps* taps = nullptr;
};

// Appends `tokens` to the sequence: one chunk through all layers. Afterwards state.last_logits() holds the
// last token's logits unless Logits::none. Throws Error{usage} for no tokens, more than state.max_chunk() or
// an id outside the vocabulary, Error{mismatch} where the context has no room; the state is then unchanged.
// After any other exception the state must be cleared.
void forward(const Model& model, SequenceState& state, std::span<const int32_t> tokens,
             const ForwardOptions& options = {});

// forward() in chunks of state.max_chunk(). With Logits::last only the last chunk computes them. `keep_going`
// (may be empty) is asked after each chunk with the tokens done so far; false ends early. Returns the tokens
// done.
size_t prefill(const Model& model, SequenceState& state, std::span<const int32_t> tokens,
               const ForwardOptions& options = {}, const std::function<bool(size_t done)>& keep_going = {});

}  // namespace keysieve
