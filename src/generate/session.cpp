#include "keysieve/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "generate/sampler.h"
#include "generate/session_impl.h"
#include "generate/stop_matcher.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

void add(PhaseStatistics& sum, const PhaseStatistics& part) {
  const size_t tokens = sum.tokens + part.tokens;
  if (tokens > 0) {
    sum.positions_read = (sum.positions_read * static_cast<double>(sum.tokens) +
                          part.positions_read * static_cast<double>(part.tokens)) /
                         static_cast<double>(tokens);
  }
  sum.tokens = tokens;
  sum.seconds += part.seconds;
  sum.kv_bytes_read += part.kv_bytes_read;
  sum.memory_bytes_read += part.memory_bytes_read;
  sum.multiply_adds += part.multiply_adds;
}

bool is_set(const std::atomic<bool>* flag) { return flag && flag->load(std::memory_order_relaxed); }

// The text of an answer as it grows: whole characters, nothing past a stop string.
class AnswerText {
 public:
  AnswerText(const Tokenizer& tokenizer, std::vector<std::string> stops, const Session::TextCallback& on_text)
      : decoder_(tokenizer), stops_(std::move(stops)), on_text_(on_text) {}

  // False: the callback wants no more.
  bool push(int32_t id) { return show(stops_.push(decoder_.push(id))); }
  // What was held back, at the end of an answer that no stop string ended.
  void finish() {
    if (!stops_.stopped()) show(stops_.push(decoder_.flush()));
    if (!stops_.stopped()) show(stops_.finish());
  }
  bool stopped() const { return stops_.stopped(); }
  std::string take() { return std::move(text_); }

 private:
  bool show(const std::string& piece) {
    text_ += piece;
    return piece.empty() || !on_text_ || on_text_(piece);
  }

  StreamDecoder decoder_;
  StopMatcher stops_;
  const Session::TextCallback& on_text_;
  std::string text_;
};

}  // namespace

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
  Impl& impl = *impl_;
  impl.check_tokens(prompt);
  if (prompt.size() >= capacity()) {
    throw Error(
        ErrorKind::mismatch, "prompt", fmt::format("{} tokens", prompt.size()),
        fmt::format("at most {}, the context of {} less one for the answer", capacity() - 1, capacity()),
        "shorten the prompt or load the model with a larger --context");
  }
  Sampler sampler(options.sampling);
  sampler.see(prompt);
  AnswerText text(impl.text().impl().tokenizer, options.stop, on_text);

  GenerateResult result;
  result.prompt_tokens = prompt.size();
  result.reused_tokens = impl.reuse(prompt);
  Statistics& statistics = result.statistics;
  const auto rest = prompt.subspan(result.reused_tokens);
  const auto report = [&](size_t done) {
    if (options.on_prefill) options.on_prefill(result.reused_tokens + done, prompt.size());
  };
  bool going = impl.append(rest, Logits::last, options.cancel, report, statistics.prefill);
  result.stop_reason = going ? StopReason::max_tokens : StopReason::interrupted;
  while (going && result.token_ids.size() < options.max_tokens) {
    const int32_t id = sampler.draw(last_logits());
    result.token_ids.push_back(id);
    const std::vector<int32_t>& ends = impl.text().end_tokens();
    if (!options.ignore_end_tokens && std::binary_search(ends.begin(), ends.end(), id)) {
      result.stop_reason = StopReason::end_token;
      break;
    }
    const bool wanted = text.push(id);
    if (text.stopped())
      result.stop_reason = StopReason::stop_string;
    else if (!wanted || is_set(options.cancel))
      result.stop_reason = StopReason::interrupted;
    else if (length() == capacity())
      result.stop_reason = StopReason::context;
    if (result.stop_reason != StopReason::max_tokens || result.token_ids.size() == options.max_tokens) break;
    going = impl.append(std::span(&id, 1), Logits::last, options.cancel, {}, statistics.decode);
    if (!going) result.stop_reason = StopReason::interrupted;
  }
  text.finish();
  result.text = text.take();
  statistics = impl.statistics(statistics.prefill, statistics.decode);
  add(impl.prefill_sum, statistics.prefill);
  add(impl.decode_sum, statistics.decode);
  return result;
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
  add(impl_->prefill_sum, phase);
  return whole;
}

std::span<const float> Session::last_logits() const { return impl_->state.last_logits(); }
void Session::clear() { impl_->clear(); }
size_t Session::length() const { return impl_->state.position(); }
size_t Session::capacity() const { return impl_->state.context(); }
size_t Session::budget() const { return impl_->budget; }
Statistics Session::statistics() const { return impl_->statistics(impl_->prefill_sum, impl_->decode_sum); }

}  // namespace keysieve
