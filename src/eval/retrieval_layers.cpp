#include "eval/retrieval_layers.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "core/cancel.h"
#include "eval/needle_answer.h"
#include "eval/needle_prompt.h"
#include "eval/scoring.h"
#include "eval/statistics.h"
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

// One prompt, asked as each row has it.
struct Asked {
  const NeedlePrompt& prompt;
  std::vector<std::vector<float>> dense;  // [answer tokens][vocabulary] logits
};

// Reads the prompt's end as the row has it, asks, and adds what came of it to the row. The dense row goes
// first.
void ask(SequenceState& state, const EvalSetting& setting, const RetrievalLayersOptions& options,
         Asked& asked, RetrievalRow& row) {
  const NeedlePrompt& prompt = asked.prompt;
  const size_t shared = shared_tokens(prompt);
  state.truncate(shared);
  auto& selector = dynamic_cast<ScoringSelector&>(*state.selector());
  selector.replace_policy(policy_of(row, setting.policy(), state.context()));
  prefill(state, std::span(prompt.tokens).subspan(shared));
  double kl = 0;
  const auto compare = [&](size_t token, std::span<const float> logits) {
    if (row.kind == Kind::dense) {
      asked.dense.at(token).assign(logits.begin(), logits.end());
    } else {
      kl += kl_divergence(asked.dense.at(token), logits) / static_cast<double>(prompt.answer.size());
    }
  };
  if (row.kind == Kind::dense) asked.dense.resize(prompt.answer.size());
  compare(0, state.last_logits());
  const std::string answer =
      greedy_answer(state, setting.language_model().text(), needle_answer_tokens(options.form));
  const std::optional<CodeLikelihood> likelihood = code_likelihood(state, prompt, compare);
  if (!likelihood) {
    throw Error(ErrorKind::mismatch, "needle context",
                fmt::format("no room for an answer of {} tokens", prompt.answer.size()),
                fmt::format("room in the context of {}", state.context()), "lower --length");
  }
  row.each_passed.push_back(names_codes(answer, prompt.codes));
  row.each.push_back(likelihood->nll);
  row.each_kl.push_back(kl);
  selector.replace_policy(setting.policy());
}

std::string key_of(const RetrievalRow& row, size_t trial) {
  return fmt::format("trial {} {}", trial, name_of(row));
}

// Whether the partial results had this row's trial, which is added to it then.
bool take_known(const PartialResults* partial, size_t trial, RetrievalRow& row) {
  const std::string key = key_of(row, trial);
  const Json* const known = partial == nullptr ? nullptr : partial->find(key);
  if (known == nullptr) return false;
  row.each_passed.push_back(json_require<bool>(*known, "passed", key));
  row.each.push_back(json_require<double>(*known, "code_nll", key));
  row.each_kl.push_back(json_require<double>(*known, "kl", key));
  return true;
}

// Reads a prompt as far as all rows read it alike. False: cancelled.
bool read_shared(SequenceState& state, const NeedlePrompt& prompt, const RetrievalLayersOptions& options) {
  state.clear();
  const auto text = std::span(prompt.tokens).first(shared_tokens(prompt));
  ForwardOptions reading;
  reading.logits = Logits::none;
  reading.to_come = prompt.tokens.size() - text.size();
  if (text.empty()) return true;
  return prefill(state, text, reading, [&](size_t) { return !is_cancelled(options.cancel); }) == text.size();
}

// Before a prompt's first question: the text is read, and asked dense where that is not the question itself,
// since no file of results has its logits. False: cancelled.
bool make_ready(SequenceState& state, const EvalSetting& setting, const RetrievalLayersOptions& options,
                Asked& asked, const RetrievalRow& first) {
  if (!asked.dense.empty()) return true;
  if (!read_shared(state, asked.prompt, options)) return false;
  RetrievalRow dense{.kind = Kind::dense};
  if (first.kind != Kind::dense) ask(state, setting, options, asked, dense);
  return true;
}

void put(PartialResults* partial, size_t trial, const RetrievalRow& row) {
  if (partial == nullptr) return;
  partial->put(
      key_of(row, trial),
      {{"passed", bool{row.each_passed.back()}}, {"code_nll", row.each.back()}, {"kl", row.each_kl.back()}});
}

void finish(std::vector<RetrievalRow>& rows) {
  const auto none =
      std::find_if(rows.begin(), rows.end(), [](const auto& r) { return r.kind == Kind::none; });
  for (RetrievalRow& row : rows) {
    const auto count = static_cast<double>(row.each.size());
    row.passed = static_cast<size_t>(std::count(row.each_passed.begin(), row.each_passed.end(), true));
    row.code_nll = mean(row.each);
    row.kl = mean(row.each_kl);
    row.over_none = row.code_nll - mean(none->each);
    double squares = 0;
    for (size_t i = 0; i < row.each.size(); ++i) {
      const double apart = row.each[i] - none->each[i] - row.over_none;
      squares += apart * apart;
    }
    if (count > 1) row.over_none_error = std::sqrt(squares / (count - 1) / count);
  }
}

}  // namespace

std::string_view to_string(RetrievalRow::Kind kind) {
  switch (kind) {
    case Kind::dense:
      return "dense";
    case Kind::none:
      return "none";
    case Kind::all:
      return "all";
    case Kind::layers:
      break;
  }
  return "layers";
}

std::string name_of(const RetrievalRow& row) {
  if (row.kind != Kind::layers) return std::string(to_string(row.kind));
  return fmt::format("{}", fmt::join(row.layers, ","));
}

std::optional<std::vector<RetrievalRow>> run_retrieval_layers(const EvalSetting& setting,
                                                              const RetrievalLayersOptions& options) {
  check(setting, options);
  const size_t limit = setting.model()->config().context;
  SequenceState state = setting.sequence(AttentionMode::sparse, std::min(options.context + 64, limit));
  std::vector<RetrievalRow> rows = rows_of(options, setting.model()->config().layers);
  size_t done = 0;
  for (size_t trial = 0; trial < options.trials; ++trial) {
    const NeedlePrompt prompt =
        trial_prompt(setting.language_model().text(), options.haystacks, options.context, trial,
                     options.trials, options.seed, options.form);
    Asked asked{prompt, {}};
    for (RetrievalRow& row : rows) {
      if (is_cancelled(options.cancel)) return std::nullopt;
      if (!take_known(options.partial, trial, row)) {
        if (!make_ready(state, setting, options, asked, row)) return std::nullopt;
        ask(state, setting, options, asked, row);
        put(options.partial, trial, row);
      }
      if (options.on_progress) options.on_progress(++done, options.trials * rows.size());
    }
  }
  finish(rows);
  return rows;
}

}  // namespace keysieve
