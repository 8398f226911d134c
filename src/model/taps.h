#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace keysieve {

// Which part of the forward a tap looks at. A prompt passes in chunks; positions count from the sequence's
// start.
struct TapPlace {
  size_t layer;
  size_t first_position;  // of the chunk's first token
  size_t tokens;          // of the chunk
};

// Looks into the forward, for calibration, training, evaluation and tests. An empty function costs one test
// per layer and chunk. The pointers are valid during the call only; calls come from the thread that runs
// forward().
struct ForwardTaps {
  // The layer's RMS-normed input: x [tokens, hidden].
  std::function<void(const TapPlace&, const float* x)> normed_input;
  // After QK norm, biases and RoPE: q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim].
  std::function<void(const TapPlace&, const float* q, const float* k, const float* v)> projections;
  // Before the output projection: out [tokens, heads, head_dim].
  std::function<void(const TapPlace&, const float* out)> attention;
  // The residual stream after the layer: x [tokens, hidden].
  std::function<void(const TapPlace&, const float* x)> residual;
  // The residual stream before the first layer: x [tokens, hidden].
  std::function<void(const TapPlace&, const float* x)> embedding;
  // After the final norm: x [tokens, hidden]. Only for the tokens whose logits are computed.
  std::function<void(size_t first_position, size_t tokens, const float* x)> final_norm;
  // What the selector thinks of one query's candidates, for every query and layer with a budget: positions
  // and scores [candidates], in slot order; group is 0 for a shared selection. Worked out a second time for
  // the tap.
  std::function<void(size_t layer, size_t query_position, size_t group, std::span<const int32_t> positions,
                     std::span<const float> scores)>
      scores;
};

}  // namespace keysieve
