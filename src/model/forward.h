#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "indexer/key_selector.h"
#include "model/model.h"
#include "model/sequence_state.h"
#include "model/taps.h"

namespace keysieve {

enum class Logits : uint8_t { none, last, all };

struct ForwardOptions {
  Logits logits = Logits::last;
  // Logits::all: called with consecutive blocks of rows, so that [tokens, vocabulary] is never held:
  // first_position of the block's first token, rows [tokens, vocabulary].
  std::function<void(size_t first_position, size_t tokens, std::span<const float> rows)> on_logits = {};
  // More chunks of the same prompt follow: a cache with a budget is not cut yet (it is cut after a prompt's
  // last chunk, when the last queries have voted). prefill() sets this itself.
  bool more_to_come = false;
  SelectionRecorder* recorder = nullptr;  // gets the positions every query reads, dense ones too
  const ForwardTaps* taps = nullptr;
};

// Appends `tokens` to the sequence: one chunk through all layers. Afterwards state.last_logits() holds the
// last token's logits unless Logits::none. Throws Error{usage} for no tokens, more than state.max_chunk() or
// an id outside the vocabulary, Error{mismatch} where the context has no room; the state is then unchanged.
// After any other exception the state must be cleared.
void forward(SequenceState& state, std::span<const int32_t> tokens, const ForwardOptions& options = {});

// forward() in chunks of state.max_chunk(). With Logits::last only the last chunk computes them. `keep_going`
// (may be empty) is asked after each chunk with the tokens done so far; false ends early. Returns the tokens
// done.
size_t prefill(SequenceState& state, std::span<const int32_t> tokens, const ForwardOptions& options = {},
               const std::function<bool(size_t done)>& keep_going = {});

}  // namespace keysieve
