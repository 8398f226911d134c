#include "eval/needle.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "core/cancel.h"
#include "core/json.h"
#include "core/memory.h"
#include "eval/needle_answer.h"
#include "eval/needle_prompt.h"
#include "eval/scoring.h"
#include "eval/statistics.h"
#include "keysieve/error.h"
#include "model/forward.h"

namespace keysieve {
Json or_null(std::optional<double> value) { return value ? Json(*value) : Json(); }

namespace {

struct Cancelled {};

Json to_json(const NeedleTrial& trial) {
  return {{"depth", trial.depth},
          {"codes", trial.codes},
          {"answer", trial.answer},
          {"passed", trial.passed},
          {"strict", trial.strict},
          {"code_nll", or_null(trial.code_nll)},
          {"prefill_seconds", trial.prefill_seconds},
          {"positions_read", trial.positions_read},
          {"peak_rss_bytes", trial.peak_rss_bytes}};
}

// Throws Error{format} naming `key` for what to_json did not write.
void fill_from(NeedleTrial& trial, const Json& json, const std::string& key) {
  trial.answer = json_require<std::string>(json, "answer", key);
  trial.passed = json_require<bool>(json, "passed", key);
  trial.strict = json_require<bool>(json, "strict", key);
  if (!json.contains("code_nll") || !json.at("code_nll").is_null())
    trial.code_nll = json_require<double>(json, "code_nll", key);
  trial.prefill_seconds = json_require<double>(json, "prefill_seconds", key);
  trial.positions_read = json_require<double>(json, "positions_read", key);
  trial.peak_rss_bytes = json_require<size_t>(json, "peak_rss_bytes", key);
}

// One mode at one budget each: a row for each context.
std::vector<EvalPass> passes_of(const EvalSetting& setting, const NeedleOptions& options) {
  const std::vector<EvalSetting> settings = setting.at_budgets(options.budgets);
  std::vector<EvalPass> passes;
  for (size_t s = 0; s < settings.size(); ++s) {
    for (const AttentionMode mode : options.modes) {
      if (mode != AttentionMode::dense || s == 0) passes.push_back({settings[s], mode});
    }
  }
  return passes;
}

class NeedleRun {
 public:
  NeedleRun(const EvalSetting& setting, const NeedleOptions& options)
      : setting_(setting),
        options_(options),
        passes_(passes_of(setting, options)),
        codec_(setting.language_model().text()),
        answer_tokens_(needle_answer_tokens(options.form)) {}

  // One context in all modes; mode by mode, so that the peak of memory can be told for each.
  void run_context(size_t context, NeedleResult& result) {
    std::vector<NeedlePrompt> prompts;
    for (size_t i = 0; i < options_.trials; ++i) {
      prompts.push_back(trial_prompt(codec_, options_.haystacks, context, i, options_.trials, options_.seed,
                                     options_.form));
    }
    std::vector<bool> dense_passed;  // [trials]; empty without dense
    const size_t first_row = result.rows.size();
    for (const EvalPass& pass : passes_) {
      run_row(pass, context, prompts, result);
      if (pass.mode != AttentionMode::dense) continue;
      const auto trials = std::span(result.trials).last(options_.trials);
      for (const NeedleTrial& trial : trials) dense_passed.push_back(trial.passed);
    }
    for (size_t r = first_row; r < result.rows.size(); ++r) {
      const auto trials = std::span(result.trials).subspan(r * options_.trials, options_.trials);
      finish(result.rows[r], trials, dense_passed);
    }
  }

 private:
  size_t total() const { return options_.contexts.size() * options_.trials * passes_.size(); }
  bool cancelled() const { return is_cancelled(options_.cancel); }

  void run_row(const EvalPass& pass, size_t context, std::span<const NeedlePrompt> prompts,
               NeedleResult& result) {
    NeedleRow row;
    row.context = context;
    row.budget = pass.setting.budget(pass.mode);
    row.mode = pass.mode;
    restart_peak_resident();
    std::optional<SequenceState> state;    // made for the first trial that is not known already
    const NeedlePrompt* before = nullptr;  // of the same text, where its prompt is what the state holds
    for (size_t i = 0; i < prompts.size(); ++i) {
      if (i % needle_questions(options_.form) == 0) before = nullptr;
      NeedleTrial trial;
      trial.context = context;
      trial.mode = pass.mode;
      trial.budget = row.budget;
      trial.depth = prompts[i].depth;
      trial.codes = prompts[i].codes;
      const std::string key = fmt::format("{} {} {} trial {}", context, to_string(pass.mode), row.budget, i);
      if (const Json* known = options_.partial ? options_.partial->find(key) : nullptr) {
        fill_from(trial, *known, key);
      } else {
        if (!state) {
          state.emplace(
              pass.setting.sequence(pass.mode, std::min(context + 64, setting_.model()->config().context)));
        }
        run_trial(*state, before, prompts[i], trial);
        // The few positions of another question are not told apart from those of the text.
        if (before != nullptr) trial.positions_read = result.trials.back().positions_read;
        before = &prompts[i];
        if (options_.partial) options_.partial->put(key, to_json(trial));
      }
      result.trials.push_back(std::move(trial));
      if (options_.on_progress) options_.on_progress(++done_, total());
    }
    result.rows.push_back(row);
  }

  void feed(SequenceState& state, std::span<const int32_t> tokens) const {
    const size_t done = prefill(state, tokens, {}, [&](size_t) { return !cancelled(); });
    if (done < tokens.size() || cancelled()) throw Cancelled{};
  }

  // Goes back to what the prompt has in common with the one read before, and returns how many tokens that
  // is. What was the end of a prompt is read again, since it was read otherwise, and so is a block of
  // neighbouring queries that this would cut.
  static size_t keep_common(SequenceState& state, const NeedlePrompt* before, const NeedlePrompt& prompt) {
    if (before != nullptr) {
      const std::span<const int32_t> old(before->tokens), now(prompt.tokens);
      const size_t most = std::min(old.size(), now.size());
      const auto differs =
          std::mismatch(old.begin(), old.begin() + static_cast<ptrdiff_t>(most), now.begin());
      const size_t common = std::min({static_cast<size_t>(differs.first - old.begin()),
                                      prompt.document_tokens, most - std::min(most, kPromptEnd)});
      const size_t kept = common / SessionOptions::kMostQueryBlock * SessionOptions::kMostQueryBlock;
      if (kept > 0 && state.truncate(kept)) return kept;
    }
    state.clear();
    return 0;
  }

  void run_trial(SequenceState& state, const NeedlePrompt* before, const NeedlePrompt& prompt,
                 NeedleTrial& trial) const {
    const auto start = std::chrono::steady_clock::now();
    const std::span<const int32_t> tokens(prompt.tokens);
    const size_t kept = keep_common(state, before, prompt);
    trial.tokens_read = tokens.size() - kept;
    if (options_.protocol == NeedleProtocol::after) {
      feed(state, tokens.first(prompt.document_tokens).subspan(kept));
      feed(state, tokens.subspan(prompt.document_tokens));
    } else {
      feed(state, tokens.subspan(kept));
    }
    trial.prefill_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    trial.positions_read = state.work().mean_positions_read();
    trial.answer = greedy_answer(state, codec_, answer_tokens_);
    trial.passed = names_codes(trial.answer, prompt.codes);
    if (const auto likelihood = code_likelihood(state, prompt)) {
      trial.code_nll = likelihood->nll;
      trial.strict = likelihood->greedy;
    }
    trial.peak_rss_bytes = peak_resident_bytes();
  }

  static void finish(NeedleRow& row, std::span<const NeedleTrial> trials,
                     const std::vector<bool>& dense_passed) {
    double nll = 0;
    size_t with_nll = 0;
    if (!dense_passed.empty()) row.passed_of_dense = 0;
    for (const NeedleTrial& trial : trials) {
      if (!dense_passed.empty()) *row.passed_of_dense += trial.passed && dense_passed[row.trials] ? 1 : 0;
      ++row.trials;
      row.passed += trial.passed ? 1 : 0;
      row.strict += trial.strict ? 1 : 0;
      if (trial.code_nll) nll += *trial.code_nll;
      with_nll += trial.code_nll ? 1 : 0;
      row.prefill_seconds += trial.prefill_seconds;
      row.positions_read += trial.positions_read;
      row.peak_rss_bytes = std::max(row.peak_rss_bytes, trial.peak_rss_bytes);
    }
    const double count = static_cast<double>(row.trials);
    if (with_nll == row.trials) row.code_nll = nll / count;
    row.prefill_seconds /= count;
    row.positions_read /= count;
    row.wilson95 = keysieve::wilson95(row.passed, row.trials);
  }

  const EvalSetting& setting_;
  const NeedleOptions& options_;
  const std::vector<EvalPass> passes_;
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
