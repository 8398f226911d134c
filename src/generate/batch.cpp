#include "keysieve/batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "generate/answer.h"
#include "keysieve/error.h"

namespace keysieve {

static_assert(BatchedDecoder::kMaxSequences == ForwardBatch::kMaxSequences);

struct BatchedDecoder::Impl {
  Impl(const LanguageModel& for_model, size_t max_sequences)
      : model(for_model.impl()), batch(model->model, max_sequences) {}

  struct Joined {
    size_t id;
    std::unique_ptr<RunningAnswer> answer;
  };

  bool is_answering(const Session::Impl& session) const {
    return std::ranges::any_of(joined, [&](const Joined& j) { return &j.answer->session() == &session; });
  }

  // One pass; phases[i] gets what it took. Sessions are unchanged where it throws an Error about the request,
  // and cleared after any other exception.
  void pass(std::span<Session::Impl* const> sessions, std::span<const int32_t> tokens,
            std::span<PhaseStatistics* const> phases);

  std::shared_ptr<const LanguageModel::Impl> model;
  ForwardBatch batch;
  std::vector<Joined> joined;
  size_t next_id = 0;
};

void BatchedDecoder::Impl::pass(std::span<Session::Impl* const> sessions, std::span<const int32_t> tokens,
                                std::span<PhaseStatistics* const> phases) {
  std::vector<SequenceState*> states;
  for (Session::Impl* session : sessions) states.push_back(&session->state);
  batch.check(states, tokens);
  std::vector<WorkCounters> before;
  for (const SequenceState* state : states) before.push_back(state->work());
  const auto start = std::chrono::steady_clock::now();
  try {
    batch.step(states, tokens);
  } catch (...) {
    for (Session::Impl* session : sessions) {
      session->state.clear();
      session->tokens.clear();
    }
    throw;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (size_t i = 0; i < sessions.size(); ++i) {
    sessions[i]->count_appended(tokens.subspan(i, 1), seconds, before[i], *phases[i]);
  }
}

BatchedDecoder::BatchedDecoder(const LanguageModel& model, size_t max_sequences)
    : impl_(std::make_unique<Impl>(model, max_sequences)) {}
BatchedDecoder::BatchedDecoder(BatchedDecoder&&) noexcept = default;
BatchedDecoder& BatchedDecoder::operator=(BatchedDecoder&&) noexcept = default;
BatchedDecoder::~BatchedDecoder() = default;

size_t BatchedDecoder::max_sequences() const { return impl_->batch.max_sequences(); }
size_t BatchedDecoder::answering() const { return impl_->joined.size(); }

void BatchedDecoder::step(std::span<Session* const> sessions, std::span<const int32_t> tokens) {
  std::vector<Session::Impl*> impls;
  for (Session* session : sessions) {
    if (session == nullptr || impl_->is_answering(session->impl())) {
      throw Error(ErrorKind::usage, "batch",
                  session == nullptr ? "a null session" : "a session whose answer is under way",
                  "sessions that no one else decodes", "let advance() end the answer first");
    }
    impls.push_back(&session->impl());
  }
  std::vector<PhaseStatistics> phases(impls.size());
  std::vector<PhaseStatistics*> places;
  for (PhaseStatistics& phase : phases) places.push_back(&phase);
  impl_->pass(impls, tokens, places);
  for (size_t i = 0; i < impls.size(); ++i) impls[i]->decode_sum += phases[i];
}

size_t BatchedDecoder::join(Session& session, std::span<const int32_t> prompt, const GenerateOptions& options,
                            const Session::TextCallback& on_text) {
  if (impl_->joined.size() == max_sequences()) {
    throw Error(ErrorKind::usage, "batch", fmt::format("{} answers under way", answering()),
                fmt::format("at most {}", max_sequences()),
                "make the decoder for more, or advance() until one ends");
  }
  if (session.impl().model->model != impl_->model->model) {
    throw Error(ErrorKind::mismatch, "batch", "a session of another model",
                "sessions of the model the decoder was made for");
  }
  if (impl_->is_answering(session.impl())) {
    throw Error(ErrorKind::usage, "batch", "a session whose answer is under way",
                "one answer a session at a time");
  }
  auto answer = std::make_unique<RunningAnswer>(session.impl(), prompt, options, on_text);
  answer->read(prompt);
  impl_->joined.push_back({impl_->next_id, std::move(answer)});
  return impl_->next_id++;
}

std::vector<BatchedDecoder::Answer> BatchedDecoder::advance() {
  std::vector<Impl::Joined> going = std::exchange(impl_->joined, {});  // put back at the end
  impl_->model->model->threads().run(going.size(), [&](size_t i, int) { going[i].answer->draw(); });
  std::vector<Answer> ended;
  std::vector<Session::Impl*> sessions;
  std::vector<int32_t> tokens;
  std::vector<PhaseStatistics*> phases;
  std::vector<Impl::Joined> still;
  for (Impl::Joined& joined : going) {
    const std::optional<int32_t> token = joined.answer->take();
    if (!token) {
      ended.push_back({joined.id, joined.answer->finish()});
      continue;
    }
    sessions.push_back(&joined.answer->session());
    tokens.push_back(*token);
    phases.push_back(&joined.answer->decode_phase());
    still.push_back(std::move(joined));
  }
  if (!sessions.empty()) impl_->pass(sessions, tokens, phases);
  impl_->joined = std::move(still);
  return ended;
}

}  // namespace keysieve
