#include "keysieve/session.h"

#include <fmt/format.h>

#include <optional>

#include "generate/answer.h"
#include "generate/session_impl.h"
#include "keysieve/error.h"

namespace keysieve {
std::string_view to_string(StopReason reason) {
  switch (reason) {
    case StopReason::end_token:
      return "end";
    case StopReason::stop_string:
      return "stop";
    case StopReason::max_tokens:
      return "length";
    case StopReason::context:
      return "context";
    case StopReason::interrupted:
      return "interrupted";
  }
  return "unknown";
}

Session::Session(const LanguageModel& model, const SessionOptions& options)
    : impl_(std::make_unique<Impl>(model, options)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

GenerateResult Session::generate(std::span<const int32_t> prompt, const GenerateOptions& options,
                                 const TextCallback& on_text) {
  RunningAnswer answer(*impl_, prompt, options, on_text);
  answer.read(prompt);
  answer.draw();
  while (const std::optional<int32_t> id = answer.take()) {
    if (!impl_->append(std::span(&*id, 1), Logits::last, options.cancel, {}, answer.decode_phase())) {
      answer.interrupt();
    }
    answer.draw();
  }
  return answer.finish();
}

bool Session::prefill(std::span<const int32_t> tokens, const std::atomic<bool>* cancel) {
  impl_->check_tokens(tokens);
  if (tokens.size() > capacity() - length()) {
    throw Error(ErrorKind::mismatch, "prompt", fmt::format("{} tokens after {}", tokens.size(), length()),
                fmt::format("at most {} in all, the context", capacity()),
                "shorten the prompt or load the model with a larger --context");
  }
  PhaseStatistics phase;
  const bool whole = impl_->append(tokens, Logits::last, cancel, {}, phase);
  impl_->prefill_sum += phase;
  return whole;
}

std::span<const float> Session::last_logits() const { return impl_->state.last_logits(); }
void Session::clear() { impl_->clear(); }
std::span<const int32_t> Session::tokens() const { return impl_->tokens; }

void Session::save(const std::filesystem::path& file) const {
  SessionFileWriter out(file, impl_->header());
  out.write(std::as_bytes(std::span(impl_->tokens)));
  impl_->state.save(out);
  out.commit();
}

void Session::load(const std::filesystem::path& file) {
  clear();
  SessionFileReader in(file);
  SessionHeader expected = impl_->header();
  require_equal(in.header(), expected, in.subject());
  const size_t positions = in.header().positions;
  if (positions > capacity()) {
    throw Error(ErrorKind::mismatch, in.subject(), fmt::format("a session of {} tokens", positions),
                fmt::format("at most {}, the context", capacity()), "load the model with a larger --context");
  }
  std::vector<int32_t> tokens(positions);
  in.read(std::as_writable_bytes(std::span(tokens)));
  if (positions > 0) impl_->check_tokens(tokens);
  impl_->state.load(in, positions);
  try {
    in.finish();
  } catch (...) {
    clear();
    throw;
  }
  impl_->tokens = std::move(tokens);
}
size_t Session::length() const { return impl_->state.position(); }
size_t Session::capacity() const { return impl_->state.context(); }
size_t Session::budget() const { return impl_->budget; }
Statistics Session::statistics() const { return impl_->statistics(impl_->prefill_sum, impl_->decode_sum); }

}  // namespace keysieve
