#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "core/cancel.h"
#include "generate/sampler.h"
#include "generate/session_impl.h"
#include "keysieve/session.h"

namespace keysieve {

// One answer as it grows, alone or beside others: read() the prompt, then draw(), take() and append what
// take() gives until it gives nothing, then finish().
class RunningAnswer {
 public:
  // Checks prompt and options as Session::generate() says. `session` must outlive this.
  RunningAnswer(Session::Impl& session, std::span<const int32_t> prompt, const GenerateOptions& options,
                const Session::TextCallback& on_text);
  ~RunningAnswer();
  RunningAnswer(const RunningAnswer&) = delete;
  RunningAnswer& operator=(const RunningAnswer&) = delete;

  // Takes the prompt into the sequence.
  void read(std::span<const int32_t> prompt);
  // Draws the next token from the session's last logits, unless the answer has ended. Touches this answer
  // only: answers may draw on different threads.
  void draw();
  // Shows the token drawn; gives it where the answer goes on, to be appended to the sequence.
  std::optional<int32_t> take();
  // The append was cancelled.
  void interrupt() { result_.stop_reason = StopReason::interrupted; }
  // The end: statistics join those of the session.
  GenerateResult finish();

  Session::Impl& session() { return session_; }
  PhaseStatistics& decode_phase() { return result_.statistics.decode; }
  const std::atomic<bool>* cancel() const { return options_.cancel; }

 private:
  class Text;
  bool cancelled() const { return is_cancelled(options_.cancel); }

  Session::Impl& session_;
  GenerateOptions options_;
  Sampler sampler_;
  std::unique_ptr<Text> text_;
  GenerateResult result_;
  std::optional<int32_t> drawn_;
};

}  // namespace keysieve
