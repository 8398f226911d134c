#pragma once

#include <cstddef>
#include <functional>

#include "model/forward.h"
#include "model/sequence_impl.h"

namespace keysieve {

// One chunk on its way through the layers.
struct Chunk {
  SequenceState::Impl& state;
  const ForwardOptions& options;
  size_t first_position;  // of the first token
  size_t tokens;

  const ModelConfig& config() const { return state.model->config(); }
  const Kernels& kernels() const { return state.model->kernels(); }
  TapPlace place(size_t layer) const { return {layer, first_position, tokens}; }
};

// Work that goes token by token, spread over the threads in blocks; a chunk of a few tokens stays on this
// thread, where it takes less time than waking the others (some 5 us against 1 us per thousand values).
void for_token_blocks(const Threads& threads, size_t tokens,
                      const std::function<void(size_t first, size_t count)>& block);

// One decoder layer, in place on the chunk's residual stream (buffers.x).
void decoder_layer(Chunk& chunk, size_t layer);

// The layer's memory and attention: appends buffers.k and v (and index keys), selects, and fills
// buffers.attention from buffers.q. Forgets what a cache with a budget must forget.
void layer_attention(Chunk& chunk, size_t layer);

}  // namespace keysieve
