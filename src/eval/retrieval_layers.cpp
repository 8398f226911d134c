#include "eval/retrieval_layers.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "core/cancel.h"
#include "eval/needle_answer.h"
#include "eval/needle_prompt.h"
#include "indexer/scoring_selector.h"
#include "keysieve/error.h"
#include "model/forward.h"

namespace keysieve {
namespace {

using Kind = RetrievalRow::Kind;

void check(const EvalSetting& setting, const RetrievalLayersOptions& options) {
  if (options.trials == 0 || options.haystacks.empty()) {
    throw Error(ErrorKind::usage, "retrieval",
                fmt::format("{} trials, {} haystacks", options.trials, options.haystacks.size()),
                "at least one of each");
  }
  setting.require(AttentionMode::sparse);
  const SelectionPolicy& policy = setting.policy();
  if (policy.refine <= policy.budget) {
    throw Error(ErrorKind::usage, "refine", fmt::format("{}", policy.refine),
                fmt::format("more than the budget of {}", policy.budget), "give --refine");
  }
  if (setting.cache() != CacheKind::full) {
    throw Error(ErrorKind::usage, "retrieval", "a cache whose keys are not all in place", "a full cache",
                "leave out --cache");
  }
  const size_t layers = setting.model()->config().layers;
  for (const std::vector<size_t>& set : options.sets) {
    if (set.empty()) throw Error(ErrorKind::usage, "layers", "an empty list", "layers such as 3,5-7");
    for (const size_t layer : set) {
      if (layer < layers) continue;
      throw Error(ErrorKind::usage, "layers", fmt::format("layer {}", layer),
                  fmt::format("layers 0 to {} of this model", layers - 1));
    }
  }
  const size_t answer = needle_answer_tokens(options.form), limit = setting.model()->config().context;
  if (options.context <= answer || options.context > limit) {
    throw Error(ErrorKind::mismatch, "needle context", fmt::format("{} tokens", options.context),
                fmt::format("{} to {}, the model's context", answer + 1, limit), "change --length");
  }
}

std::vector<RetrievalRow> rows_of(const RetrievalLayersOptions& options, size_t layers) {
  std::vector<RetrievalRow> rows;
  for (const Kind kind : {Kind::dense, Kind::none, Kind::all}) rows.push_back({.kind = kind});
  for (const std::vector<size_t>& set : options.sets) rows.push_back({.layers = set});
  if (!options.sets.empty()) return rows;
  for (size_t layer = 0; layer < layers; ++layer) rows.push_back({.layers = {layer}});
  return rows;
}

SelectionPolicy policy_of(const RetrievalRow& row, SelectionPolicy policy, size_t context) {
  policy.refine_layers = row.layers;
  if (row.kind == Kind::none) policy.refine = 0;
  if (row.kind == Kind::dense) {
    policy.budget = context;
    policy.budgets.clear();
  }
  return policy;
}

// Where rows begin to differ: before what a prompt's end refines, and where no block of neighbours is cut.
size_t shared_tokens(const NeedlePrompt& prompt) {
  const size_t before_end = prompt.tokens.size() - std::min(prompt.tokens.size(), kPromptEnd);
  return std::min(prompt.document_tokens, before_end) / SessionOptions::kMostQueryBlock *
         SessionOptions::kMostQueryBlock;
}

// Reads the prompt's end as the row has it and asks.
void ask(SequenceState& state, const EvalSetting& setting, const NeedlePrompt& prompt,
         const RetrievalLayersOptions& options, RetrievalRow& row) {
  const size_t shared = shared_tokens(prompt);
  state.truncate(shared);
  auto& selector = dynamic_cast<ScoringSelector&>(*state.selector());
  selector.replace_policy(policy_of(row, setting.policy(), state.context()));
  prefill(state, std::span(prompt.tokens).subspan(shared));
  const std::string answer =
      greedy_answer(state, setting.language_model().text(), needle_answer_tokens(options.form));
  row.passed += names_codes(answer, prompt.codes) ? 1 : 0;
  const std::optional<CodeLikelihood> likelihood = code_likelihood(state, prompt);
  if (!likelihood) {
    throw Error(ErrorKind::mismatch, "needle context",
                fmt::format("no room for an answer of {} tokens", prompt.answer.size()),
                fmt::format("room in the context of {}", state.context()), "lower --length");
  }
  row.each.push_back(likelihood->nll);
  selector.replace_policy(setting.policy());
}

}  // namespace

std::optional<std::vector<RetrievalRow>> run_retrieval_layers(const EvalSetting& setting,
                                                              const RetrievalLayersOptions& options) {
  check(setting, options);
  const size_t limit = setting.model()->config().context;
  SequenceState state = setting.sequence(AttentionMode::sparse, std::min(options.context + 64, limit));
  std::vector<RetrievalRow> rows = rows_of(options, setting.model()->config().layers);
  const auto cancelled = [&] { return is_cancelled(options.cancel); };
  size_t done = 0;
  for (size_t trial = 0; trial < options.trials; ++trial) {
    const NeedlePrompt prompt =
        trial_prompt(setting.language_model().text(), options.haystacks, options.context, trial,
                     options.trials, options.seed, options.form);
    state.clear();
    const auto text = std::span(prompt.tokens).first(shared_tokens(prompt));
    ForwardOptions reading;
    reading.logits = Logits::none;
    reading.to_come = prompt.tokens.size() - text.size();
    if (!text.empty()) prefill(state, text, reading, [&](size_t) { return !cancelled(); });
    for (RetrievalRow& row : rows) {
      if (cancelled()) return std::nullopt;
      ask(state, setting, prompt, options, row);
      if (options.on_progress) options.on_progress(++done, options.trials * rows.size());
    }
  }
  for (RetrievalRow& row : rows) {
    for (const double nll : row.each) row.code_nll += nll / static_cast<double>(row.each.size());
  }
  return rows;
}

}  // namespace keysieve
