#include "model/forward.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "keysieve/error.h"
#include "model/decoder_layer.h"

namespace keysieve {
namespace {

void check_tokens(const SequenceState& state, std::span<const int32_t> tokens) {
  const size_t vocabulary = state.model().config().vocabulary;
  if (tokens.empty()) throw Error(ErrorKind::usage, "tokens", "none", "at least one");
  if (tokens.size() > state.max_chunk()) {
    throw Error(ErrorKind::usage, "chunk", fmt::format("{} tokens", tokens.size()),
                fmt::format("at most {}", state.max_chunk()), "pass a long prompt through prefill()");
  }
  for (const int32_t token : tokens) {
    if (token >= 0 && static_cast<size_t>(token) < vocabulary) continue;
    throw Error(ErrorKind::usage, "token id", fmt::format("{}", token),
                fmt::format("0 to {}", vocabulary - 1), "the tokens belong to another model");
  }
}

void check_room(const SequenceState& state, size_t tokens) {
  if (tokens <= state.context() - state.position()) return;
  throw Error(
      ErrorKind::mismatch, "context", fmt::format("{} tokens after {} positions", tokens, state.position()),
      fmt::format("room for {} in all", state.context()), "shorten the prompt or load with a larger context");
}

void embed(Chunk& chunk, std::span<const int32_t> tokens) {
  const MatrixSource& embedding = *chunk.state.model->weights().embedding;
  const size_t hidden = chunk.config().hidden;
  float* x = chunk.state.buffers.x.data();
  for_token_blocks(chunk.state.model->threads(), tokens.size(), [&](size_t first, size_t count) {
    for (size_t t = first; t < first + count; ++t) {
      embedding.read_values(static_cast<size_t>(tokens[t]), {x + t * hidden, hidden});
    }
  });
}

// Rows of logits held at a time: 16 MiB, which keeps a 151,936-word head at 27 rows, enough for its weights
// to be read once per block instead of once per token.
size_t logits_block(size_t vocabulary) {
  constexpr size_t kBlockValues = size_t{16} * 1024 * 1024 / sizeof(float);
  return std::clamp<size_t>(kBlockValues / vocabulary, 1, 64);
}

// Final norm and head of the chunk's tokens [first, first + count): out [count, vocabulary].
void compute_logits(Chunk& chunk, float* out, size_t first, size_t count) {
  const ModelConfig& config = chunk.config();
  const ModelWeights& weights = chunk.state.model->weights();
  ForwardBuffers& b = chunk.state.buffers;
  float* normed = b.normed.data() + first * config.hidden;
  chunk.kernels().rms_norm(normed, b.x.data() + first * config.hidden, weights.final_norm.data(),
                           config.rms_norm_eps, count, config.hidden);
  const ForwardTaps* taps = chunk.options.taps;
  if (taps && taps->final_norm) taps->final_norm(chunk.first_position + first, count, normed);
  const std::array jobs{MatmulJob{out, config.vocabulary, weights.head.get()}};
  chunk.state.work.memory_bytes_read += weights.head->bytes();
  chunk.state.work.multiply_adds += uint64_t{count} * config.vocabulary * config.hidden;
  chunk.kernels().matmul(jobs, normed, count, chunk.state.scratch, chunk.state.model->threads());
}

void compute_all_logits(Chunk& chunk) {
  const size_t vocabulary = chunk.config().vocabulary;
  const size_t block = logits_block(vocabulary);
  ForwardBuffers& b = chunk.state.buffers;
  if (b.logits.size() == 0) b.logits = AlignedArray<float>(block * vocabulary);
  for (size_t first = 0; first < chunk.tokens; first += block) {
    const size_t count = std::min(block, chunk.tokens - first);
    compute_logits(chunk, b.logits.data(), first, count);
    if (first + count == chunk.tokens) {
      std::copy_n(b.logits.data() + (count - 1) * vocabulary, vocabulary, b.last_logits.data());
    }
    if (chunk.options.on_logits) {
      chunk.options.on_logits(chunk.first_position + first, count, {b.logits.data(), count * vocabulary});
    }
  }
}

}  // namespace

void forward(SequenceState& state, std::span<const int32_t> tokens, const ForwardOptions& options) {
  check_tokens(state, tokens);
  check_room(state, tokens.size());
  SequenceState::Impl& impl = state.impl();
  Chunk chunk{impl, options, impl.position, tokens.size()};
  for (size_t t = 0; t < tokens.size(); ++t) {
    impl.buffers.positions[t] = static_cast<int32_t>(chunk.first_position + t);
  }
  impl.buffers.angles.compute(impl.model->rope(), {impl.buffers.positions.data(), tokens.size()});
  impl.has_logits = false;

  embed(chunk, tokens);
  if (options.taps && options.taps->embedding) options.taps->embedding(chunk.place(0), impl.buffers.x.data());
  for (size_t layer = 0; layer < chunk.config().layers; ++layer) decoder_layer(chunk, layer);
  const ModelWeights& weights = impl.model->weights();
  impl.work.memory_bytes_read += weights.bytes - weights.head->bytes();
  impl.work.multiply_adds += tokens.size() * weights.layer_multiply_adds;
  if (options.logits == Logits::last) {
    compute_logits(chunk, impl.buffers.last_logits.data(), tokens.size() - 1, 1);
  } else if (options.logits == Logits::all) {
    compute_all_logits(chunk);
  }
  impl.has_logits = options.logits != Logits::none;
  impl.position += tokens.size();
}

size_t prefill(SequenceState& state, std::span<const int32_t> tokens, const ForwardOptions& options,
               const std::function<bool(size_t done)>& keep_going) {
  check_room(state, tokens.size());
  size_t done = 0;
  while (done < tokens.size()) {
    const size_t count = std::min(state.max_chunk(), tokens.size() - done);
    ForwardOptions chunk_options = options;
    chunk_options.more_to_come = options.more_to_come || done + count < tokens.size();
    if (options.logits == Logits::last && chunk_options.more_to_come) chunk_options.logits = Logits::none;
    forward(state, tokens.subspan(done, count), chunk_options);
    done += count;
    if (keep_going && !keep_going(done)) break;
  }
  return done;
}

}  // namespace keysieve
