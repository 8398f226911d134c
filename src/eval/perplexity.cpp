#include "eval/perplexity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "core/cancel.h"
#include "eval/scoring.h"
#include "eval/statistics.h"
#include "keysieve/error.h"
#include "model/forward.h"

namespace keysieve {
namespace {

constexpr size_t kBlock = 128;          // tokens one bootstrap block holds
constexpr size_t kWindowsToDraw = 8;    // fewer windows than this: blocks are drawn
constexpr size_t kRowsSideBySide = 64;  // logits rows run_agreement holds

// The first token of the last quarter.
size_t last_quarter(std::span<const int32_t> window) { return window.size() - window.size() / 4; }

// The first token whose prediction counts.
size_t first_counted(std::span<const int32_t> window, CountedTokens counted) {
  switch (counted) {
    case CountedTokens::whole:
      return 1;
    case CountedTokens::second_half:
      return window.size() / 2 + 1;
    case CountedTokens::last_quarter:
      break;
  }
  return last_quarter(window);
}

// Feeds everything before the row that predicts token `first`, the first that counts. A cache with a budget
// is cut there, as it is after a prompt.
bool feed_context(SequenceState& state, std::span<const int32_t> window, size_t first,
                  const std::atomic<bool>* cancel) {
  ForwardOptions options;
  options.logits = Logits::none;
  options.to_come = state.cache().keeps_everything() ? kMoreToCome : 0;
  state.clear();
  const std::span<const int32_t> before = window.first(first - 1);
  return prefill(state, before, options, [&](size_t) { return !is_cancelled(cancel); }) == before.size();
}

// Feeds the tokens that count; a cache with a budget gets them one by one, as in decode: within a chunk their
// queries would still see each other's rows and all that the cut has yet to drop. A text's end is no prompt's
// end, so only SelectionPolicy::refine_prompt holds for it.
bool feed_counted(SequenceState& state, std::span<const int32_t> tokens, const ForwardOptions& options,
                  const std::atomic<bool>* cancel) {
  const auto going = [&](size_t) { return !is_cancelled(cancel); };
  if (state.cache().keeps_everything()) {
    ForwardOptions reading = options;
    reading.to_come = kMoreToCome;
    return prefill(state, tokens, reading, going) == tokens.size();
  }
  for (const int32_t& token : tokens) {
    forward(state, std::span(&token, 1), options);
    if (is_cancelled(cancel)) return false;
  }
  return true;
}

// NLL of the window's tokens from `first` on; empty: cancelled.
std::vector<double> losses_from(SequenceState& state, std::span<const int32_t> window, size_t first,
                                const std::atomic<bool>* cancel) {
  if (!feed_context(state, window, first, cancel)) return {};
  std::vector<double> losses;
  ForwardOptions options;
  options.logits = Logits::all;
  options.on_logits = [&](size_t position, size_t rows, std::span<const float> values) {
    const size_t vocabulary = values.size() / rows;
    for (size_t r = 0; r < rows; ++r) {
      losses.push_back(
          negative_log_likelihood(values.subspan(r * vocabulary, vocabulary), window[position + r + 1]));
    }
  };
  const size_t begin = first - 1;
  const std::span<const int32_t> counted = window.subspan(begin, window.size() - 1 - begin);
  return feed_counted(state, counted, options, cancel) ? losses : std::vector<double>{};
}

double percent(double mean_difference) { return 100 * (std::exp(mean_difference) - 1); }

using Losses = std::vector<std::vector<double>>;  // [windows][positions]

double mean_of(const Losses& losses) {
  double sum = 0;
  size_t count = 0;
  for (const std::vector<double>& window : losses) {
    for (const double value : window) sum += value;
    count += window.size();
  }
  return sum / static_cast<double>(count);
}

PerplexityRow compare(AttentionMode mode, const Losses& dense, const Losses& losses) {
  PerplexityRow row;
  row.mode = mode;
  row.perplexity = std::exp(mean_of(losses));
  Losses differences = losses;
  Losses blocks;
  for (size_t w = 0; w < losses.size(); ++w) {
    for (size_t i = 0; i < losses[w].size(); ++i) differences[w][i] -= dense[w][i];
    row.window_delta_percent.push_back(percent(mean(differences[w])));
    for (std::vector<double>& block : blocks_of(differences[w], kBlock)) blocks.push_back(std::move(block));
  }
  row.delta_percent = percent(mean_of(differences));
  const auto interval = bootstrap_mean95(losses.size() >= kWindowsToDraw ? differences : blocks);
  row.delta_ci95_percent = {percent(interval[0]), percent(interval[1])};
  return row;
}

// Dense first, then every mode at every budget.
std::vector<EvalPass> passes_of(const EvalSetting& setting, const PerplexityOptions& options) {
  std::vector<EvalPass> passes{{setting, AttentionMode::dense}};
  for (const EvalSetting& at : setting.at_budgets(options.budgets)) {
    for (const AttentionMode mode : options.modes) {
      at.require(mode);
      passes.push_back({at, mode});
    }
  }
  return passes;
}

// Losses of one window, from the partial results where they are there; empty: cancelled.
std::vector<double> window_losses(const EvalPass& pass, std::span<const int32_t> window, size_t index,
                                  const PerplexityOptions& options) {
  const std::string key =
      fmt::format("{} {} window {}", to_string(pass.mode), pass.setting.budget(pass.mode), index);
  const size_t first = first_counted(window, options.counted);
  if (const Json* known = options.partial ? options.partial->find(key) : nullptr) {
    const size_t count = window.size() - first;
    if (!known->is_array() || known->size() != count ||
        !std::all_of(known->begin(), known->end(), [](const Json& loss) { return loss.is_number(); })) {
      throw Error(ErrorKind::format, "partial results", "\"" + key + "\"", fmt::format("{} losses", count));
    }
    return known->get<std::vector<double>>();
  }
  SequenceState state = pass.setting.sequence(pass.mode, window.size());
  std::vector<double> losses = losses_from(state, window, first, options.cancel);
  if (is_cancelled(options.cancel)) return {};
  if (options.partial) options.partial->put(key, losses);
  return losses;
}

}  // namespace

std::optional<PerplexityResult> run_perplexity(const EvalSetting& setting,
                                               std::span<const std::vector<int32_t>> windows,
                                               const PerplexityOptions& options) {
  if (windows.empty()) throw Error(ErrorKind::usage, "perplexity", "no windows", "at least one");
  const std::vector<EvalPass> passes = passes_of(setting, options);
  std::vector<Losses> losses(passes.size());
  size_t done = 0;
  for (size_t p = 0; p < passes.size(); ++p) {
    for (size_t w = 0; w < windows.size(); ++w) {
      losses[p].push_back(window_losses(passes[p], windows[w], w, options));
      if (losses[p].back().empty()) return std::nullopt;
      if (options.on_progress) options.on_progress(++done, passes.size() * windows.size());
    }
  }
  PerplexityResult result;
  result.perplexity_dense = std::exp(mean_of(losses[0]));
  for (const std::vector<double>& window : losses[0]) result.tokens += window.size();
  result.interval = windows.size() >= kWindowsToDraw ? "windows" : "blocks of 128 tokens";
  for (size_t p = 1; p < passes.size(); ++p) {
    result.rows.push_back(compare(passes[p].mode, losses[0], losses[p]));
    result.rows.back().budget = passes[p].setting.budget(passes[p].mode);
  }
  return result;
}

namespace {

// Sums over the counted positions of one window.
struct WindowAgreement {
  double kl_sum = 0;
  double kl_max = 0;
  size_t same = 0;
  size_t tokens = 0;
};

// Two sequences over the same tokens, some rows of logits at a time. nullopt: cancelled.
std::optional<WindowAgreement> compare_window(SequenceState& dense, SequenceState& other,
                                              std::span<const int32_t> window,
                                              const std::atomic<bool>* cancel) {
  WindowAgreement sums;
  std::vector<float> dense_rows;
  ForwardOptions keep;
  keep.logits = Logits::all;
  keep.on_logits = [&](size_t, size_t, std::span<const float> values) {
    dense_rows.insert(dense_rows.end(), values.begin(), values.end());
  };
  ForwardOptions weigh;
  weigh.logits = Logits::all;
  size_t weighed = 0;  // of the rows kept
  weigh.on_logits = [&](size_t, size_t rows, std::span<const float> values) {
    const size_t vocabulary = values.size() / rows;
    for (size_t r = 0; r < rows; ++r, ++weighed) {
      const std::span<const float> p(dense_rows.data() + weighed * vocabulary, vocabulary);
      const std::span<const float> q = values.subspan(r * vocabulary, vocabulary);
      const double kl = kl_divergence(p, q);
      sums.kl_sum += kl;
      sums.kl_max = std::max(sums.kl_max, kl);
      sums.same += greedy_choice(p) == greedy_choice(q) ? 1 : 0;
      ++sums.tokens;
    }
  };
  const size_t first = last_quarter(window);
  if (!feed_context(dense, window, first, cancel) || !feed_context(other, window, first, cancel)) {
    return std::nullopt;
  }
  for (size_t at = first - 1; at + 1 < window.size(); at += kRowsSideBySide) {
    const auto part = window.subspan(at, std::min(kRowsSideBySide, window.size() - 1 - at));
    dense_rows.clear();
    weighed = 0;
    if (!feed_counted(dense, part, keep, cancel) || !feed_counted(other, part, weigh, cancel)) {
      return std::nullopt;
    }
  }
  return sums;
}

std::optional<WindowAgreement> known_window(const PartialResults* partial, const std::string& key) {
  const Json* known = partial ? partial->find(key) : nullptr;
  if (known == nullptr) return std::nullopt;
  const auto number = [&](const char* name) {
    return known->is_object() && known->contains(name) && known->at(name).is_number();
  };
  if (!number("kl_sum") || !number("kl_max") || !number("same") || !number("tokens")) {
    throw Error(ErrorKind::format, "partial results", "\"" + key + "\"", "kl_sum, kl_max, same and tokens");
  }
  return WindowAgreement{known->at("kl_sum").get<double>(), known->at("kl_max").get<double>(),
                         known->at("same").get<size_t>(), known->at("tokens").get<size_t>()};
}

}  // namespace

std::optional<AgreementResult> run_agreement(const EvalSetting& setting, AttentionMode mode,
                                             std::span<const std::vector<int32_t>> windows,
                                             const AgreementOptions& options) {
  if (windows.empty()) throw Error(ErrorKind::usage, "agreement", "no windows", "at least one");
  size_t longest = 0;
  for (const std::vector<int32_t>& window : windows) longest = std::max(longest, window.size());
  SequenceState dense = setting.sequence(AttentionMode::dense, longest);
  SequenceState other = setting.sequence(mode, longest);
  AgreementResult result;
  size_t same = 0;
  for (size_t w = 0; w < windows.size(); ++w) {
    const std::string key = fmt::format("{} {} window {}", to_string(mode), setting.budget(mode), w);
    std::optional<WindowAgreement> sums = known_window(options.partial, key);
    if (!sums) {
      sums = compare_window(dense, other, windows[w], options.cancel);
      if (!sums) return std::nullopt;
      if (options.partial) {
        options.partial->put(key, {{"kl_sum", sums->kl_sum},
                                   {"kl_max", sums->kl_max},
                                   {"same", sums->same},
                                   {"tokens", sums->tokens}});
      }
    }
    result.kl_mean += sums->kl_sum;
    result.kl_max = std::max(result.kl_max, sums->kl_max);
    same += sums->same;
    result.tokens += sums->tokens;
    if (options.on_progress) options.on_progress(w + 1, windows.size());
  }
  result.kl_mean /= static_cast<double>(result.tokens);
  result.top1_agreement = static_cast<double>(same) / static_cast<double>(result.tokens);
  return result;
}

}  // namespace keysieve
