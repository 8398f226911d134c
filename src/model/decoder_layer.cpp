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
void bias_and_head_norm(Pass& pass, const LayerWeights& w) {
  const ModelConfig& config = pass.config();
  if (!config.qk_norm && !config.qkv_bias) return;
  const Kernels& kernels = pass.kernels();
  ForwardBuffers& b = pass.buffers;
  for_token_blocks(pass.model.threads(), pass.rows, [&](size_t first, size_t count) {
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

// RoPE (arXiv 2104.09864) on every head of q and k, in place; long passes spread over the threads by head.
void rotate(Pass& pass) {
  const ModelConfig& config = pass.config();
  const Kernels& kernels = pass.kernels();
  ForwardBuffers& b = pass.buffers;
  const auto rotate_heads = [&](float* q_or_k, size_t heads, size_t first, size_t count) {
    kernels.rotate(q_or_k + first * config.head_dim, heads * config.head_dim, b.angles, pass.rows, count,
                   config.head_dim);
  };
  if (pass.rows < kSpreadTokens) {
    rotate_heads(b.q.data(), config.heads, 0, config.heads);
    rotate_heads(b.k.data(), config.kv_heads, 0, config.kv_heads);
    return;
  }
  pass.model.threads().run(config.heads + config.kv_heads, [&](size_t head, int) {
    if (head < config.heads) return rotate_heads(b.q.data(), config.heads, head, 1);
    rotate_heads(b.k.data(), config.kv_heads, head - config.heads, 1);
  });
}

// x += the bias of the output projection, which few models have
void output_bias(Pass& pass, const std::vector<float>& bias) {
  if (bias.empty()) return;
  ForwardBuffers& b = pass.buffers;
  for_token_blocks(pass.model.threads(), pass.rows, [&](size_t first, size_t count) {
    add_bias(pass.kernels(), b.x.data() + first * pass.config().hidden, bias, count);
  });
}

// normed = RMS norm of x
void norm(Pass& pass, const std::vector<float>& weight) {
  ForwardBuffers& b = pass.buffers;
  const ModelConfig& config = pass.config();
  for_token_blocks(pass.model.threads(), pass.rows, [&](size_t first, size_t count) {
    pass.kernels().rms_norm(b.normed.data() + first * config.hidden, b.x.data() + first * config.hidden,
                            weight.data(), config.rms_norm_eps, count, config.hidden);
  });
}

MatmulJob job(AlignedArray<float>& out, const std::unique_ptr<PackedMatrix>& weight) {
  return {out.data(), weight->rows(), weight.get()};
}

template <size_t kJobs>
void project(Pass& pass, const std::array<MatmulJob, kJobs>& jobs, const float* x, size_t rows,
             size_t exact_values = kExactValues) {
  pass.kernels().matmul(jobs, x, rows, pass.scratch, pass.model.threads(), exact_values);
}

// The product joins the residual stream.
MatmulJob residual_job(Pass& pass, const std::unique_ptr<PackedMatrix>& weight) {
  return {pass.buffers.x.data(), weight->rows(), weight.get(), true};
}

// x += Wdown (silu(Wgate normed) * Wup normed), mlp_rows rows at a time.
void feed_forward(Pass& pass, const LayerWeights& w) {
  ForwardBuffers& b = pass.buffers;
  const ModelConfig& config = pass.config();
  for (size_t first = 0; first < pass.rows; first += b.mlp_rows) {
    const size_t rows = std::min(b.mlp_rows, pass.rows - first);
    MatmulJob gated = job(b.gated, w.gate);
    gated.up = w.up.get();
    project(pass, std::array{gated}, b.normed.data() + first * config.hidden, rows);
    MatmulJob down = residual_job(pass, w.down);
    down.out += first * config.hidden;
    project(pass, std::array{down}, b.gated.data(), rows);
  }
}

// Attention of every chunk. As many chunks as fill all threads a whole number of times go side by side, each
// on one thread (a region within a region runs on its caller); the rest one after another on all threads.
void attend_all(Pass& pass, size_t layer) {
  const Threads& threads = pass.model.threads();
  const auto workers = static_cast<size_t>(threads.count());
  const size_t spread = pass.chunks.size() / workers * workers;
  threads.run(spread, [&](size_t index, int) { layer_attention(pass.chunks[index], layer); });
  for (Chunk& chunk : pass.chunks.subspan(spread)) layer_attention(chunk, layer);
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
// Each chunk's k and v join its cache's layer; attention reads that cache: all of it, or what the selector
// picks.
void decoder_layer(Pass& pass, size_t layer) {
  const LayerWeights& w = pass.model.weights().layers[layer];
  const ForwardTaps* taps = pass.options.taps;
  ForwardBuffers& b = pass.buffers;

  norm(pass, w.attention_norm);
  if (taps && taps->normed_input) taps->normed_input(pass.place(layer), b.normed.data());
  project(pass, std::array{job(b.q, w.q), job(b.k, w.k), job(b.v, w.v)}, b.normed.data(), pass.rows);
  bias_and_head_norm(pass, w);
  rotate(pass);
  if (taps && taps->projections) taps->projections(pass.place(layer), b.q.data(), b.k.data(), b.v.data());
  attend_all(pass, layer);
  if (taps && taps->attention) taps->attention(pass.place(layer), b.attention.data());
  project(pass, std::array{residual_job(pass, w.output)}, b.attention.data(), pass.rows, 0);
  output_bias(pass, w.output_bias);

  norm(pass, w.mlp_norm);
  feed_forward(pass, w);
  if (taps && taps->residual) taps->residual(pass.place(layer), b.x.data());
}

}  // namespace keysieve
