#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "indexer/key_selector.h"
#include "model/model.h"
#include "model/sequence_state.h"
#include "model/taps.h"

namespace keysieve {

enum class Logits : uint8_t { none, last, all };

inline constexpr size_t kMoreToCome = SIZE_MAX;

struct ForwardOptions {
  Logits logits = Logits::last;
  // Logits::all: called with consecutive blocks of rows, so that [tokens, vocabulary] is never held:
  // first_position of the block's first token, rows [tokens, vocabulary].
  std::function<void(size_t first_position, size_t tokens, std::span<const float> rows)> on_logits = {};
  // How many tokens of the same prompt follow, kMoreToCome: some. As long as there are any, a cache with a
  // budget is not cut (it is cut after a prompt's last chunk, when the last queries have voted). prefill()
  // adds what it cuts off itself.
  size_t to_come = 0;
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

struct ForwardBuffers;

// Decodes several sequences of one model side by side: one token of each in one pass, so that the weights are
// read once for all. Sequences may differ in length, cache and selector, and come and go between steps. Each
// computes what forward() would have computed for it alone, bit for bit: no row's products, norms or
// attention depend on the other rows.
class ForwardBatch {
 public:
  // Logits of 256 sequences of a vocabulary of 151,936 are 156 MB; memory is taken for the sequences of the
  // largest step so far.
  static constexpr size_t kMaxSequences = 256;

  // Throws Error{usage} for a number of sequences outside 1 to kMaxSequences, Error{resource}.
  ForwardBatch(std::shared_ptr<const Model> model, size_t max_sequences);
  ForwardBatch(ForwardBatch&&) noexcept;
  ForwardBatch& operator=(ForwardBatch&&) noexcept;
  ~ForwardBatch();
  size_t max_sequences() const { return max_sequences_; }

  // Appends tokens[i] to states[i]; afterwards each state's last_logits() are there. Throws Error{usage} for
  // no states, more than max_sequences(), one of them twice, another number of tokens or an id outside the
  // vocabulary, Error{mismatch} for a state of another model or without room; all states are then unchanged.
  // After any other exception they must all be cleared.
  void step(std::span<SequenceState* const> states, std::span<const int32_t> tokens);
  // Throws what step() would throw before it starts.
  void check(std::span<SequenceState* const> states, std::span<const int32_t> tokens) const;

 private:
  std::shared_ptr<const Model> model_;
  size_t max_sequences_;
  std::unique_ptr<ForwardBuffers> buffers_;  // a row a sequence
  std::unique_ptr<KernelScratch> scratch_;
};

}  // namespace keysieve
