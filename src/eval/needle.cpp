#include "eval/needle.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/memory.h"
#include "eval/needle_prompt.h"
#include "eval/scoring.h"
#include "eval/statistics.h"
#include "keysieve/error.h"
#include "model/forward.h"

namespace keysieve {
namespace {

struct Cancelled {};

class NeedleRun {
 public:
  NeedleRun(const EvalSetting& setting, const NeedleOptions& options)
      : setting_(setting),
        options_(options),
        codec_(setting.language_model().text()),
        answer_tokens_(needle_answer_tokens(options.form)) {}

  // One context in all modes; mode by mode, so that the peak of memory can be told for each.
  void run_context(size_t context, NeedleResult& result) {
    std::vector<NeedlePrompt> prompts;
    for (size_t i = 0; i < options_.trials; ++i) {
      const std::string& haystack = options_.haystacks[i % options_.haystacks.size()];
      const NeedleSpec spec = needle_spec(context - answer_tokens_, i, options_.trials, haystack.size(),
                                          options_.seed, options_.form);
      prompts.push_back(make_needle_prompt(codec_, haystack, spec));
    }
    std::vector<bool> dense_passed(options_.trials, false);
    const size_t first_row = result.rows.size();
    for (const AttentionMode mode : options_.modes) {
      NeedleRow row;
      row.context = context;
      row.budget = setting_.budget(mode);
      row.mode = mode;
      restart_peak_resident();
      SequenceState state =
          setting_.sequence(mode, std::min(context + 64, setting_.model()->config().context));
      for (size_t i = 0; i < options_.trials; ++i) {
        const NeedleTrial trial = run_trial(state, prompts[i], row);
        if (mode == AttentionMode::dense) dense_passed[i] = trial.passed;
        result.trials.push_back(trial);
        if (options_.on_progress) options_.on_progress(++done_, total());
      }
      row.peak_rss_bytes = peak_resident_bytes();
      result.rows.push_back(row);
    }
    for (size_t r = first_row; r < result.rows.size(); ++r)
      finish(result.rows[r], result.trials, dense_passed);
  }

 private:
  size_t total() const { return options_.contexts.size() * options_.trials * options_.modes.size(); }
  bool cancelled() const { return options_.cancel && options_.cancel->load(std::memory_order_relaxed); }

  void feed(SequenceState& state, std::span<const int32_t> tokens) const {
    const size_t done = prefill(state, tokens, {}, [&](size_t) { return !cancelled(); });
    if (done < tokens.size() || cancelled()) throw Cancelled{};
  }

  NeedleTrial run_trial(SequenceState& state, const NeedlePrompt& prompt, NeedleRow& row) const {
    NeedleTrial trial;
    trial.context = row.context;
    trial.mode = row.mode;
    trial.depth = prompt.depth;
    trial.codes = prompt.codes;
    state.clear();
    const auto start = std::chrono::steady_clock::now();
    const std::span<const int32_t> tokens(prompt.tokens);
    if (options_.protocol == NeedleProtocol::after) {
      feed(state, tokens.first(prompt.document_tokens));
      feed(state, tokens.subspan(prompt.document_tokens));
    } else {
      feed(state, tokens);
    }
    row.prefill_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    row.positions_read += state.work().mean_positions_read();
    const std::vector<float> after_prompt(state.last_logits().begin(), state.last_logits().end());
    trial.answer = answer(state, after_prompt);
    trial.passed = names_codes(trial.answer, prompt.codes);
    // A cache that forgets cannot go back to the end of the prompt.
    if (state.truncate(prompt.tokens.size())) force(state, prompt, trial);
    return trial;
  }

  std::string answer(SequenceState& state, std::span<const float> after_prompt) const {
    const std::vector<int32_t>& ends = codec_.end_tokens();
    std::vector<int32_t> ids;
    int32_t next = greedy_choice(after_prompt);
    while (ids.size() < answer_tokens_ && !std::binary_search(ends.begin(), ends.end(), next)) {
      ids.push_back(next);
      if (ids.size() == answer_tokens_ || state.position() == state.context()) break;
      forward(state, {&next, 1});
      next = greedy_choice(state.last_logits());
    }
    return codec_.decode(ids, true);
  }

  // The codes' tokens in the task's own answer.
  void force(SequenceState& state, const NeedlePrompt& prompt, NeedleTrial& trial) const {
    const size_t first = prompt.tokens.size();
    if (state.context() - first < prompt.answer.size()) return;
    ForwardOptions options;
    options.logits = Logits::all;
    double sum = 0;
    bool greedy = true;
    options.on_logits = [&](size_t position, size_t rows, std::span<const float> values) {
      const size_t vocabulary = values.size() / rows;
      for (size_t r = 0; r < rows; ++r) {
        const size_t predicted =
            position + r + 1 - first;  // index in `answer` of the token this row predicts
        if (predicted >= prompt.answer.size() || !prompt.is_code[predicted]) continue;
        const std::span<const float> row = values.subspan(r * vocabulary, vocabulary);
        sum += negative_log_likelihood(row, prompt.answer[predicted]);
        greedy = greedy && greedy_choice(row) == prompt.answer[predicted];
      }
    };
    prefill(state, prompt.answer, options);
    trial.code_nll =
        sum / static_cast<double>(std::count(prompt.is_code.begin(), prompt.is_code.end(), true));
    trial.strict = greedy;
  }

  void finish(NeedleRow& row, std::span<const NeedleTrial> trials,
              const std::vector<bool>& dense_passed) const {
    for (const NeedleTrial& trial : trials) {
      if (trial.context != row.context || trial.mode != row.mode) continue;
      row.passed_of_dense += trial.passed && dense_passed[row.trials] ? 1 : 0;
      ++row.trials;
      row.passed += trial.passed ? 1 : 0;
      row.strict += trial.strict ? 1 : 0;
      row.code_nll += trial.code_nll;
    }
    const double count = static_cast<double>(row.trials);
    row.code_nll /= count;
    row.prefill_seconds /= count;
    row.positions_read /= count;
    row.wilson95 = keysieve::wilson95(row.passed, row.trials);
  }

  const EvalSetting& setting_;
  const NeedleOptions& options_;
  const TextCodec& codec_;
  const size_t answer_tokens_;
  size_t done_ = 0;
};

void check(const EvalSetting& setting, const NeedleOptions& options) {
  if (options.modes.empty() || options.trials == 0 || options.haystacks.empty() || options.contexts.empty()) {
    throw Error(ErrorKind::usage, "needle",
                fmt::format("{} modes, {} trials, {} haystacks, {} contexts", options.modes.size(),
                            options.trials, options.haystacks.size(), options.contexts.size()),
                "at least one of each");
  }
  for (const AttentionMode mode : options.modes) setting.require(mode);
  const size_t limit = setting.model()->config().context;
  for (const size_t context : options.contexts) {
    if (context > needle_answer_tokens(options.form) && context <= limit) continue;
    throw Error(ErrorKind::mismatch, "needle context", fmt::format("{} tokens", context),
                fmt::format("{} to {}, the model's context", needle_answer_tokens(options.form) + 1, limit),
                "change --contexts, or raise --context if the model can extrapolate");
  }
}

}  // namespace

std::optional<NeedleResult> run_needle(const EvalSetting& setting, const NeedleOptions& options) {
  check(setting, options);
  NeedleRun run(setting, options);
  NeedleResult result;
  try {
    for (const size_t context : options.contexts) run.run_context(context, result);
  } catch (const Cancelled&) {
    return std::nullopt;
  }
  return result;
}

}  // namespace keysieve
