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

// Chunks below this stay on the calling thread for elementwise work: 16 rows of 576 values take a few
// microseconds, as long as waking another thread does.
inline constexpr size_t kSpreadTokens = 16;

// Work that goes token by token, spread over the threads in blocks of tokens.
void for_token_blocks(const Threads& threads, size_t tokens,
                      const std::function<void(size_t first, size_t count)>& block);

// One decoder layer, in place on the chunk's residual stream (buffers.x).
void decoder_layer(Chunk& chunk, size_t layer);

// The layer's memory and attention: appends buffers.k and v (and index keys), selects, and fills
// buffers.attention from buffers.q. Forgets what a cache with a budget must forget.
void layer_attention(Chunk& chunk, size_t layer);

}  // namespace keysieve
