#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "model/forward.h"
#include "model/sequence_impl.h"

namespace keysieve {

// One sequence's tokens on their way through the layers: rows [first_row, first_row + tokens) of the pass's
// buffers.
struct Chunk {
  SequenceState::Impl& state;
  ForwardBuffers& buffers;  // of the pass; the state's own where it is alone
  const ForwardOptions& options;
  size_t first_position;  // of the first token
  size_t tokens;
  size_t first_row = 0;

  const ModelConfig& config() const { return state.model->config(); }
  const Kernels& kernels() const { return state.model->kernels(); }
  TapPlace place(size_t layer) const { return {layer, first_position, tokens}; }

  // The chunk's rows.
  int32_t* positions() const { return buffers.positions.data() + first_row; }            // [tokens]
  float* normed() const { return buffers.normed.data() + first_row * config().hidden; }  // [tokens, hidden]
  float* q() const { return buffers.q.data() + first_row * config().q_width(); }  // [tokens, heads, head_dim]
  float* k() const {
    return buffers.k.data() + first_row * config().kv_width();
  }  // [tokens, kv_heads, head_dim]
  float* v() const {
    return buffers.v.data() + first_row * config().kv_width();
  }  // [tokens, kv_heads, head_dim]
  float* attention() const {
    return buffers.attention.data() + first_row * config().q_width();
  }  // [tokens, heads, head_dim]
};

// One pass through the layers: the rows of one or several sequences, which share every matrix product (the
// weights are read once) and differ in their attention. Only a pass of one chunk has taps.
struct Pass {
  const Model& model;
  ForwardBuffers& buffers;
  KernelScratch& scratch;
  const ForwardOptions& options;
  std::span<Chunk> chunks;
  size_t rows;  // of all chunks

  const ModelConfig& config() const { return model.config(); }
  const Kernels& kernels() const { return model.kernels(); }
  TapPlace place(size_t layer) const { return chunks.front().place(layer); }
};

// Of each token's inputs to quantised weights, so many stay unrounded: in SmolLM2 two channels of the normed
// states make two thirds of the rounding noise before q, k and v (docs/decisions/0018). The output projection
// has none: exact products there gained nothing.
inline constexpr size_t kExactValues = 2;

// Chunks below this stay on the calling thread for elementwise work: 16 rows of 576 values take a few
// microseconds, as long as waking another thread does.
inline constexpr size_t kSpreadTokens = 16;

// Work that goes token by token, spread over the threads in blocks of tokens.
void for_token_blocks(const Threads& threads, size_t tokens,
                      const std::function<void(size_t first, size_t count)>& block);

// One decoder layer, in place on the pass's residual stream (buffers.x).
void decoder_layer(Pass& pass, size_t layer);

// The layer's memory and attention: appends the chunk's k and v (and index keys), selects, and fills
// its attention from its q. Forgets what a cache with a budget must forget.
void layer_attention(Chunk& chunk, size_t layer);

}  // namespace keysieve
