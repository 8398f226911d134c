#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "generate/handles.h"
#include "generate/session_file.h"
#include "keysieve/session.h"
#include "model/forward.h"
#include "model/sequence_state.h"

namespace keysieve {

// Thrown between two layers when `cancel` was set in the middle of a chunk: the sequence is then unusable and
// is cleared. Never leaves this room.
struct Cancelled {};

// Sums; the mean of positions is weighted by tokens.
PhaseStatistics& operator+=(PhaseStatistics& sum, const PhaseStatistics& part);

struct Session::Impl {
  Impl(const LanguageModel& for_model, const SessionOptions& options);

  std::shared_ptr<const LanguageModel::Impl> model;
  size_t budget = 0;    // 0: dense
  size_t groups = 1;    // sets of positions per query
  std::string indexer;  // identity; empty: dense
  SequenceState state;
  std::vector<int32_t> tokens;  // what the sequence holds, one for each position
  PhaseStatistics prefill_sum;  // since the last clear()
  PhaseStatistics decode_sum;

  const TextCodec& text() const;
  SessionHeader header() const;  // of a file that holds this session
  void clear();
  void check_tokens(std::span<const int32_t> ids) const;
  // Makes the sequence a beginning of `prompt` as long as can be kept: shorter than the prompt by at least
  // one token, unless it is the whole prompt with its logits.
  size_t reuse(std::span<const int32_t> prompt);
  // Appends tokens and counts the work into `phase`. False: cancelled. The sequence is then a beginning of
  // what was asked for, possibly empty.
  bool append(std::span<const int32_t> ids, Logits logits, const std::atomic<bool>* cancel,
              const std::function<void(size_t done)>& on_chunk, PhaseStatistics& phase,
              const ForwardOptions& base = {});
  // Afterwards: `ids` are in the state; what they took since `before` joins `phase`.
  void count_appended(std::span<const int32_t> ids, double seconds, const WorkCounters& before,
                      PhaseStatistics& phase);
  Statistics statistics(const PhaseStatistics& prefill, const PhaseStatistics& decode) const;
};

}  // namespace keysieve
