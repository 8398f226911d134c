#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "keysieve/model.h"
#include "keysieve/session.h"

namespace keysieve {

// Decodes several sessions of one model side by side: a step takes one token of each through the model in one
// pass, which reads the weights once for all. Sessions may differ in length, indexer, budget and cache, and
// may join and leave between steps. Each gets the logits it would get alone, bit for bit.
//
// Two ways to use it: step() appends tokens of the caller's choice; join() and advance() answer prompts, each
// with its own sampling and stop strings. Sessions must outlive their place in the decoder and are not to be
// used elsewhere while a call runs or while an answer is under way. Moving a session keeps its place.
class BatchedDecoder {
 public:
  static constexpr size_t kMaxSequences = 256;

  // Memory is taken as the batch grows: for SmolLM2-135M 0.2 MB a sequence, mostly logits. Throws
  // Error{usage} for max_sequences outside 1 to kMaxSequences, Error{resource}.
  explicit BatchedDecoder(const LanguageModel& model, size_t max_sequences = 8);
  BatchedDecoder(BatchedDecoder&&) noexcept;
  BatchedDecoder& operator=(BatchedDecoder&&) noexcept;
  ~BatchedDecoder();
  size_t max_sequences() const;

  // Appends tokens[i] to *sessions[i]; afterwards the last_logits() of each are [vocabulary]. Throws
  // Error{usage} for no sessions, more than max_sequences(), another number of tokens, a null session, one
  // given twice or one whose answer is under way, and for an id outside the vocabulary; Error{mismatch} for a
  // session of another model or one whose context is full. All sessions are then unchanged. After any other
  // exception (no memory, a failing cold store) they are all cleared.
  void step(std::span<Session* const> sessions, std::span<const int32_t> tokens);

  // Starts an answer: processes `prompt` as Session::generate() does, what the cache holds of it reused, and
  // on this session alone. Returns a number that names the answer in this decoder. Throws what generate()
  // throws, Error{usage} where max_sequences() answers are under way or this session's is, and
  // Error{mismatch} for a session of another model; no answer is then started.
  size_t join(Session& session, std::span<const int32_t> prompt, const GenerateOptions& options = {},
              const Session::TextCallback& on_text = {});

  struct Answer {
    size_t id;  // as join() returned it
    GenerateResult result;
  };
  // Takes every answer one token further and returns those that ended, in the order they joined; their
  // sessions are free again. Texts arrive on the calling thread. An answer whose `cancel` is set ends at its
  // next token. After an exception, a callback's too, no answer is under way any more; where the pass itself
  // failed, the sessions in it are cleared.
  std::vector<Answer> advance();
  size_t answering() const;  // answers under way

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace keysieve
