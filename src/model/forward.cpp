#include "model/forward.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

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

void embed(Pass& pass, std::span<const int32_t> tokens) {
  const MatrixSource& embedding = *pass.model.weights().embedding;
  const size_t hidden = pass.config().hidden;
  float* x = pass.buffers.x.data();
  for_token_blocks(pass.model.threads(), tokens.size(), [&](size_t first, size_t count) {
    for (size_t t = first; t < first + count; ++t) {
      embedding.read_values(static_cast<size_t>(tokens[t]), {x + t * hidden, hidden});
    }
  });
  // Each new token maps 16 pages of the file around its row: 75 MB after a prompt of 30,000, 13 MB in 20,000
  // steps of decode.
  constexpr size_t kDecodeSteps = 256;
  if (tokens.size() >= kSpreadTokens || pass.chunks[0].first_position % kDecodeSteps == 0)
    embedding.release(0, embedding.rows());
}

// Rows of logits held at a time: 16 MiB, which keeps a 151,936-word head at 27 rows, enough for its weights
// to be read once per block instead of once per token.
size_t logits_block(size_t vocabulary) {
  constexpr size_t kBlockValues = size_t{16} * 1024 * 1024 / sizeof(float);
  return std::clamp<size_t>(kBlockValues / vocabulary, 1, 64);
}

// Work that all rows share: each chunk gets an equal part, to the byte.
void count_work(Pass& pass, uint64_t bytes, uint64_t multiply_adds) {
  const uint64_t parts = pass.chunks.size();
  for (uint64_t i = 0; i < parts; ++i) {
    WorkCounters& work = pass.chunks[i].state.work;
    work.memory_bytes_read += bytes * (i + 1) / parts - bytes * i / parts;
    work.multiply_adds += multiply_adds * (i + 1) / parts - multiply_adds * i / parts;
  }
}

// All layers. Positions and chunks are in place.
void run_layers(Pass& pass, std::span<const int32_t> tokens) {
  pass.buffers.angles.compute(pass.model.rope(), {pass.buffers.positions.data(), pass.rows});
  for (Chunk& chunk : pass.chunks) chunk.state.has_logits = false;
  embed(pass, tokens);
  const ForwardTaps* taps = pass.options.taps;
  if (taps && taps->embedding) taps->embedding(pass.place(0), pass.buffers.x.data());
  for (size_t layer = 0; layer < pass.config().layers; ++layer) decoder_layer(pass, layer);
  const ModelWeights& weights = pass.model.weights();
  count_work(pass, weights.bytes - weights.head->bytes(), pass.rows * weights.layer_multiply_adds);
}

// Final norm and head of the pass's rows [first, first + count): out [count, vocabulary].
void compute_logits(Pass& pass, float* out, size_t first, size_t count) {
  const ModelConfig& config = pass.config();
  const ModelWeights& weights = pass.model.weights();
  ForwardBuffers& b = pass.buffers;
  float* normed = b.normed.data() + first * config.hidden;
  pass.kernels().rms_norm(normed, b.x.data() + first * config.hidden, weights.final_norm.data(),
                          config.rms_norm_eps, count, config.hidden);
  const ForwardTaps* taps = pass.options.taps;
  if (taps && taps->final_norm) taps->final_norm(pass.place(0).first_position + first, count, normed);
  const std::array jobs{MatmulJob{out, config.vocabulary, weights.head.get()}};
  pass.kernels().matmul(jobs, normed, count, pass.scratch, pass.model.threads(), kExactValues);
  count_work(pass, weights.head->bytes(), uint64_t{count} * config.vocabulary * config.hidden);
}

// Logits::all, of a pass of one chunk.
void compute_all_logits(Pass& pass) {
  const size_t vocabulary = pass.config().vocabulary;
  const size_t block = logits_block(vocabulary);
  ForwardBuffers& b = pass.buffers;
  if (b.logits.size() == 0) b.logits = AlignedArray<float>(block * vocabulary);
  for (size_t first = 0; first < pass.rows; first += block) {
    const size_t count = std::min(block, pass.rows - first);
    compute_logits(pass, b.logits.data(), first, count);
    if (first + count == pass.rows) {
      std::copy_n(b.logits.data() + (count - 1) * vocabulary, vocabulary, b.last_logits.data());
    }
    if (pass.options.on_logits) {
      pass.options.on_logits(pass.place(0).first_position + first, count,
                             {b.logits.data(), count * vocabulary});
    }
  }
}

}  // namespace

void forward(SequenceState& state, std::span<const int32_t> tokens, const ForwardOptions& options) {
  check_tokens(state, tokens);
  check_room(state, tokens.size());
  SequenceState::Impl& impl = state.impl();
  Chunk chunk{impl, impl.buffers, options, impl.position, tokens.size()};
  for (size_t t = 0; t < tokens.size(); ++t) {
    impl.buffers.positions[t] = static_cast<int32_t>(chunk.first_position + t);
  }
  Pass pass{*impl.model, impl.buffers, impl.scratch, options, {&chunk, 1}, tokens.size()};
  run_layers(pass, tokens);
  if (options.logits == Logits::last) {
    compute_logits(pass, impl.buffers.last_logits.data(), tokens.size() - 1, 1);
  } else if (options.logits == Logits::all) {
    compute_all_logits(pass);
  }
  impl.has_logits = options.logits != Logits::none;
  impl.position += tokens.size();
}

ForwardBatch::ForwardBatch(std::shared_ptr<const Model> model, size_t max_sequences)
    : model_(std::move(model)), max_sequences_(max_sequences) {
  if (max_sequences >= 1 && max_sequences <= kMaxSequences) {
    buffers_ = std::make_unique<ForwardBuffers>(model_->config(), max_sequences, KeySelector::KeyShape{});
    buffers_->logits = AlignedArray<float>(max_sequences * model_->config().vocabulary);
    scratch_ = std::make_unique<KernelScratch>(model_->threads());
    return;
  }
  throw Error(ErrorKind::usage, "batch", fmt::format("{} sequences", max_sequences),
              fmt::format("1 to {}", kMaxSequences));
}
ForwardBatch::ForwardBatch(ForwardBatch&&) noexcept = default;
ForwardBatch& ForwardBatch::operator=(ForwardBatch&&) noexcept = default;
ForwardBatch::~ForwardBatch() = default;

void ForwardBatch::check(std::span<SequenceState* const> states, std::span<const int32_t> tokens) const {
  if (states.empty()) throw Error(ErrorKind::usage, "batch", "no sequences", "at least one");
  if (states.size() != tokens.size()) {
    throw Error(ErrorKind::usage, "batch", fmt::format("{} tokens", tokens.size()),
                fmt::format("one for each of the {} sequences", states.size()));
  }
  if (states.size() > max_sequences_) {
    throw Error(ErrorKind::usage, "batch", fmt::format("{} sequences", states.size()),
                fmt::format("at most {}", max_sequences_), "make the batch for more, or take several steps");
  }
  for (size_t i = 0; i < states.size(); ++i) {
    if (&states[i]->model() != model_.get()) {
      throw Error(ErrorKind::mismatch, "batch", fmt::format("sequence {} of another model", i),
                  "sequences of the model the batch was made for");
    }
    if (std::ranges::find(states.first(i), states[i]) != states.first(i).end()) {
      throw Error(ErrorKind::usage, "batch", fmt::format("sequence {} twice", i), "each sequence once a step",
                  "a sequence's next token follows from this step's logits");
    }
    check_tokens(*states[i], tokens.subspan(i, 1));
    check_room(*states[i], 1);
  }
}

void ForwardBatch::step(std::span<SequenceState* const> states, std::span<const int32_t> tokens) {
  check(states, tokens);
  const ForwardOptions options;
  std::vector<Chunk> chunks;
  chunks.reserve(states.size());
  for (size_t i = 0; i < states.size(); ++i) {
    SequenceState::Impl& state = states[i]->impl();
    buffers_->positions[i] = static_cast<int32_t>(state.position);
    chunks.push_back({state, *buffers_, options, state.position, 1, i});
  }
  Pass pass{*model_, *buffers_, *scratch_, options, chunks, chunks.size()};
  run_layers(pass, tokens);
  compute_logits(pass, buffers_->logits.data(), 0, chunks.size());
  const size_t vocabulary = model_->config().vocabulary;
  model_->threads().run(chunks.size(), [&](size_t i, int) {
    std::copy_n(buffers_->logits.data() + i * vocabulary, vocabulary,
                chunks[i].state.buffers.last_logits.data());
  });
  for (Chunk& chunk : chunks) {
    chunk.state.has_logits = true;
    ++chunk.state.position;
  }
}

size_t prefill(SequenceState& state, std::span<const int32_t> tokens, const ForwardOptions& options,
               const std::function<bool(size_t done)>& keep_going) {
  check_room(state, tokens.size());
  size_t done = 0;
  while (done < tokens.size()) {
    const size_t count = std::min(state.max_chunk(), tokens.size() - done);
    ForwardOptions chunk_options = options;
    const size_t rest = tokens.size() - done - count;
    chunk_options.to_come = options.to_come > kMoreToCome - rest ? kMoreToCome : options.to_come + rest;
    if (options.logits == Logits::last && chunk_options.to_come > 0) chunk_options.logits = Logits::none;
    forward(state, tokens.subspan(done, count), chunk_options);
    done += count;
    if (keep_going && !keep_going(done)) break;
  }
  return done;
}

}  // namespace keysieve
