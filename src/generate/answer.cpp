#include "generate/answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "generate/stop_matcher.h"
#include "keysieve/error.h"

namespace keysieve {

// The text of an answer as it grows: whole characters, nothing past a stop string.
class RunningAnswer::Text {
 public:
  Text(const Tokenizer& tokenizer, std::vector<std::string> stops, Session::TextCallback on_text)
      : decoder_(tokenizer), stops_(std::move(stops)), on_text_(std::move(on_text)) {}

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
  Session::TextCallback on_text_;
  std::string text_;
};

namespace {

std::span<const int32_t> checked_prompt(const Session::Impl& session, std::span<const int32_t> prompt) {
  session.check_tokens(prompt);
  const size_t capacity = session.state.context();
  if (prompt.size() < capacity) return prompt;
  throw Error(ErrorKind::mismatch, "prompt", fmt::format("{} tokens", prompt.size()),
              fmt::format("at most {}, the context of {} less one for the answer", capacity - 1, capacity),
              "shorten the prompt or load the model with a larger --context");
}

}  // namespace

RunningAnswer::RunningAnswer(Session::Impl& session, std::span<const int32_t> prompt,
                             const GenerateOptions& options, const Session::TextCallback& on_text)
    : session_(session), options_(options), sampler_(options.sampling) {
  sampler_.see(checked_prompt(session, prompt));
  text_ = std::make_unique<Text>(session.text().impl().tokenizer, options.stop, on_text);
}
RunningAnswer::~RunningAnswer() = default;

void RunningAnswer::read(std::span<const int32_t> prompt) {
  result_.prompt_tokens = prompt.size();
  result_.reused_tokens = session_.reuse(prompt);
  const auto report = [&](size_t done) {
    if (options_.on_prefill) options_.on_prefill(result_.reused_tokens + done, prompt.size());
  };
  const auto rest = prompt.subspan(result_.reused_tokens);
  if (!session_.append(rest, Logits::last, options_.cancel, report, result_.statistics.prefill)) interrupt();
}

void RunningAnswer::draw() {
  drawn_.reset();
  if (result_.stop_reason != StopReason::max_tokens || result_.token_ids.size() >= options_.max_tokens)
    return;
  const std::span<const float> logits = session_.state.last_logits();
  if (logits.empty()) return interrupt();  // the session was cleared under this answer
  drawn_ = sampler_.draw(logits);
}

std::optional<int32_t> RunningAnswer::take() {
  if (!drawn_) return std::nullopt;
  const int32_t id = *drawn_;
  result_.token_ids.push_back(id);
  const std::vector<int32_t>& ends = session_.text().end_tokens();
  if (!options_.ignore_end_tokens && std::ranges::binary_search(ends, id)) {
    result_.stop_reason = StopReason::end_token;
    return std::nullopt;
  }
  const bool wanted = text_->push(id);
  if (text_->stopped()) {
    result_.stop_reason = StopReason::stop_string;
  } else if (!wanted || cancelled()) {
    result_.stop_reason = StopReason::interrupted;
  } else if (session_.state.position() == session_.state.context()) {
    result_.stop_reason = StopReason::context;
  }
  const bool ended =
      result_.stop_reason != StopReason::max_tokens || result_.token_ids.size() == options_.max_tokens;
  return ended ? std::nullopt : drawn_;
}

GenerateResult RunningAnswer::finish() {
  text_->finish();
  result_.text = text_->take();
  Statistics& statistics = result_.statistics;
  statistics = session_.statistics(statistics.prefill, statistics.decode);
  session_.prefill_sum += statistics.prefill;
  session_.decode_sum += statistics.decode;
  return std::move(result_);
}

}  // namespace keysieve
