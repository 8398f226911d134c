#include "model/decoder_layer.h"

#include <algorithm>
#include <array>

namespace keysieve {
namespace {

// x[token] += bias for the block's rows; bias [width] or empty.
void add_bias(const Kernels& kernels, float* x, const std::vector<float>& bias, size_t rows) {
  if (bias.empty()) return;
  for (size_t row = 0; row < rows; ++row) kernels.add(x + row * bias.size(), bias.data(), bias.size());
}

// Biases (Qwen2) and the RMS norm over each q and k head (Qwen3); in place.
void bias_and_head_norm(Chunk& chunk, const LayerWeights& w) {
  const ModelConfig& config = chunk.config();
  if (!config.qk_norm && !config.qkv_bias) return;
  const Kernels& kernels = chunk.kernels();
  ForwardBuffers& b = chunk.state.buffers;
  for_token_blocks(chunk.state.model->threads(), chunk.tokens, [&](size_t first, size_t count) {
    float* q = b.q.data() + first * config.q_width();
    float* k = b.k.data() + first * config.kv_width();
    add_bias(kernels, q, w.q_bias, count);
    add_bias(kernels, k, w.k_bias, count);
    add_bias(kernels, b.v.data() + first * config.kv_width(), w.v_bias, count);
    if (config.qk_norm) {
      kernels.rms_norm(q, q, w.q_norm.data(), config.rms_norm_eps, count * config.heads, config.head_dim);
      kernels.rms_norm(k, k, w.k_norm.data(), config.rms_norm_eps, count * config.kv_heads, config.head_dim);
    }
  });
}

// RoPE (arXiv 2104.09864) on every head of q and k, in place; long chunks spread over the threads by head.
void rotate(Chunk& chunk) {
  const ModelConfig& config = chunk.config();
  const Kernels& kernels = chunk.kernels();
  ForwardBuffers& b = chunk.state.buffers;
  const auto rotate_heads = [&](float* q_or_k, size_t heads, size_t first, size_t count) {
    kernels.rotate(q_or_k + first * config.head_dim, heads * config.head_dim, b.angles, chunk.tokens, count,
                   config.head_dim);
  };
  if (chunk.tokens < kSpreadTokens) {
    rotate_heads(b.q.data(), config.heads, 0, config.heads);
    rotate_heads(b.k.data(), config.kv_heads, 0, config.kv_heads);
    return;
  }
  chunk.state.model->threads().run(config.heads + config.kv_heads, [&](size_t head, int) {
    if (head < config.heads) return rotate_heads(b.q.data(), config.heads, head, 1);
    rotate_heads(b.k.data(), config.kv_heads, head - config.heads, 1);
  });
}

// x += the bias of the output projection, which few models have
void output_bias(Chunk& chunk, const std::vector<float>& bias) {
  if (bias.empty()) return;
  ForwardBuffers& b = chunk.state.buffers;
  for_token_blocks(chunk.state.model->threads(), chunk.tokens, [&](size_t first, size_t count) {
    add_bias(chunk.kernels(), b.x.data() + first * chunk.config().hidden, bias, count);
  });
}

// normed = RMS norm of x
void norm(Chunk& chunk, const std::vector<float>& weight) {
  ForwardBuffers& b = chunk.state.buffers;
  const ModelConfig& config = chunk.config();
  for_token_blocks(chunk.state.model->threads(), chunk.tokens, [&](size_t first, size_t count) {
    chunk.kernels().rms_norm(b.normed.data() + first * config.hidden, b.x.data() + first * config.hidden,
                             weight.data(), config.rms_norm_eps, count, config.hidden);
  });
}

// gate = silu(gate) * up
void swiglu(Chunk& chunk) {
  ForwardBuffers& b = chunk.state.buffers;
  const size_t mlp = chunk.config().mlp;
  for_token_blocks(chunk.state.model->threads(), chunk.tokens, [&](size_t first, size_t count) {
    float* gate = b.gate.data() + first * mlp;
    chunk.kernels().swiglu(gate, gate, b.up.data() + first * mlp, count * mlp);
  });
}

template <size_t kJobs>
void project(Chunk& chunk, const std::array<MatmulJob, kJobs>& jobs, const AlignedArray<float>& x) {
  chunk.kernels().matmul(jobs, x.data(), chunk.tokens, chunk.state.scratch, chunk.state.model->threads());
}

MatmulJob job(AlignedArray<float>& out, const std::unique_ptr<PackedMatrix>& weight) {
  return {out.data(), weight->rows(), weight.get()};
}

// The product joins the residual stream.
MatmulJob residual_job(Chunk& chunk, const std::unique_ptr<PackedMatrix>& weight) {
  return {chunk.state.buffers.x.data(), weight->rows(), weight.get(), true};
}

}  // namespace

void for_token_blocks(const Threads& threads, size_t tokens,
                      const std::function<void(size_t first, size_t count)>& block) {
  constexpr size_t kBlock = kSpreadTokens / 2;
  if (tokens < kSpreadTokens || threads.count() == 1) return block(0, tokens);
  threads.run((tokens + kBlock - 1) / kBlock,
              [&](size_t index, int) { block(index * kBlock, std::min(kBlock, tokens - index * kBlock)); });
}

// The pre-norm decoder of Llama (arXiv 2302.13971), Qwen2 and Qwen3:
//   h = x + Wo attention(rope(norm(Wq n)), rope(norm(Wk n)), Wv n)   with n = RMSNorm(x)
//   x = h + Wdown (silu(Wgate m) * Wup m)                            with m = RMSNorm(h)
// The chunk's k and v join the layer's cache; attention reads the cache: all of it, or what the selector
// picks.
void decoder_layer(Chunk& chunk, size_t layer) {
  const LayerWeights& w = chunk.state.model->weights().layers[layer];
  const ForwardTaps* taps = chunk.options.taps;
  ForwardBuffers& b = chunk.state.buffers;

  norm(chunk, w.attention_norm);
  if (taps && taps->normed_input) taps->normed_input(chunk.place(layer), b.normed.data());
  project(chunk, std::array{job(b.q, w.q), job(b.k, w.k), job(b.v, w.v)}, b.normed);
  bias_and_head_norm(chunk, w);
  rotate(chunk);
  if (taps && taps->projections) taps->projections(chunk.place(layer), b.q.data(), b.k.data(), b.v.data());
  layer_attention(chunk, layer);
  if (taps && taps->attention) taps->attention(chunk.place(layer), b.attention.data());
  project(chunk, std::array{residual_job(chunk, w.output)}, b.attention);
  output_bias(chunk, w.output_bias);

  norm(chunk, w.mlp_norm);
  project(chunk, std::array{job(b.gate, w.gate), job(b.up, w.up)}, b.normed);
  swiglu(chunk);
  project(chunk, std::array{residual_job(chunk, w.down)}, b.gate);
  if (taps && taps->residual) taps->residual(chunk.place(layer), b.x.data());
}

}  // namespace keysieve
