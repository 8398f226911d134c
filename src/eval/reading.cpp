#include "eval/reading.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "core/cancel.h"
#include "indexer/selection_recorder.h"
#include "keysieve/error.h"
#include "model/forward.h"

namespace keysieve {
namespace {

constexpr std::string_view kDigits = "0123456789abcdefghijklmnopqrstuvwxyz";

// Queries and keys of every layer as attention sees them.
struct Projections {
  std::vector<std::vector<float>> q;  // [layers][queries looked at, heads, head_dim]
  std::vector<std::vector<float>> k;  // [layers][tokens, kv_heads, head_dim]
};

class Weigher {
 public:
  Weigher(const EvalSetting& setting, AttentionMode mode, const Projections& projections)
      : config_(setting.model()->config()),
        policy_(setting.policy()),
        budget_(setting.budget(mode)),
        projections_(projections) {}

  // Adds what query `index`, at position `t`, contributes to the layer's means.
  void add(LayerReading& out, size_t layer, size_t index, size_t t,
           const std::vector<std::vector<int32_t>>& sets) const {
    const size_t per_group = config_.heads / config_.kv_heads;
    std::string digits(t + 1, '0');
    std::vector<double> of_all(t + 1, 0.0);
    const bool shared = policy_.scope == SelectionScope::shared;
    for (size_t group = 0; group < config_.kv_heads; ++group) {
      std::vector<double> mass(t + 1, 0.0);
      for (size_t h = group * per_group; h < (group + 1) * per_group; ++h) add_head(mass, layer, index, h, t);
      const std::vector<int32_t>& read = sets[group < sets.size() ? group : 0];
      for (const int32_t position : read) {
        out.captured += mass[static_cast<size_t>(position)];
        char& digit = digits[static_cast<size_t>(position)];
        digit = kDigits[kDigits.find(digit) + 1];
      }
      out.recent += recent_mass(mass);
      for (size_t s = 0; s <= t; ++s) of_all[s] += mass[s];
      if (!shared) out.best += best_mass(mass);
    }
    if (shared) out.best += best_mass(of_all);
    out.reads.push_back(std::move(digits));
  }

 private:
  // The head's attention probabilities, added to `mass` [t + 1].
  void add_head(std::vector<double>& mass, size_t layer, size_t index, size_t head, size_t t) const {
    const size_t dim = config_.head_dim;
    const size_t group = head / (config_.heads / config_.kv_heads);
    const float* q = projections_.q[layer].data() + (index * config_.heads + head) * dim;
    const double scale = 1 / std::sqrt(static_cast<double>(dim));
    std::vector<double> scores(t + 1);
    for (size_t s = 0; s <= t; ++s) {
      const float* k = projections_.k[layer].data() + (s * config_.kv_heads + group) * dim;
      scores[s] = scale * std::inner_product(q, q + dim, k, 0.0);
    }
    const double greatest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - greatest);
    for (size_t s = 0; s <= t; ++s) mass[s] += scores[s] / sum;
  }

  double best_mass(std::vector<double> mass) const {
    if (budget_ == 0 || budget_ >= mass.size()) return std::accumulate(mass.begin(), mass.end(), 0.0);
    const auto end = mass.begin() + static_cast<std::ptrdiff_t>(budget_);
    std::nth_element(mass.begin(), end, mass.end(), std::greater<>());
    return std::accumulate(mass.begin(), end, 0.0);
  }

  double recent_mass(const std::vector<double>& mass) const {
    const size_t budget = budget_ == 0 ? mass.size() : std::min(budget_, mass.size());
    const auto sinks = static_cast<std::ptrdiff_t>(std::min(policy_.sinks, budget));
    const auto rest = static_cast<std::ptrdiff_t>(budget) - sinks;
    return std::accumulate(mass.begin(), mass.begin() + sinks, 0.0) +
           std::accumulate(mass.end() - rest, mass.end(), 0.0);
  }

  const ModelConfig& config_;
  const SelectionPolicy& policy_;
  size_t budget_;
  const Projections& projections_;
};

void check(const EvalSetting& setting, std::span<const int32_t> tokens, const ReadingOptions& options) {
  if (options.queries == 0 || options.queries >= tokens.size()) {
    throw Error(ErrorKind::usage, "--queries", fmt::format("{} of {} tokens", options.queries, tokens.size()),
                "at least 1, and fewer than the tokens");
  }
  const size_t heads = setting.model()->config().kv_heads;
  if (heads >= kDigits.size()) {
    throw Error(ErrorKind::unsupported, "reading", fmt::format("{} KV heads", heads),
                fmt::format("at most {}", kDigits.size() - 1));
  }
}

}  // namespace

std::optional<Reading> run_reading(const EvalSetting& setting, std::span<const int32_t> tokens,
                                   const ReadingOptions& options) {
  check(setting, tokens, options);
  const ModelConfig& config = setting.model()->config();
  const size_t first = tokens.size() - options.queries;
  Projections projections{std::vector<std::vector<float>>(config.layers),
                          std::vector<std::vector<float>>(config.layers)};
  ForwardTaps taps;
  taps.projections = [&](const TapPlace& place, const float* q, const float* k, const float*) {
    std::vector<float>& keys = projections.k[place.layer];
    keys.insert(keys.end(), k, k + place.tokens * config.kv_width());
    const size_t last = static_cast<size_t>(place.first_position) + place.tokens;
    if (last <= first) return;
    const size_t skip = first - std::min(first, static_cast<size_t>(place.first_position));
    std::vector<float>& queries = projections.q[place.layer];
    queries.insert(queries.end(), q + skip * config.q_width(), q + place.tokens * config.q_width());
  };
  SelectionRecorder recorder;
  ForwardOptions forward_options;
  forward_options.logits = Logits::none;
  forward_options.taps = &taps;
  SequenceState state = setting.sequence(options.mode, tokens.size());
  const auto cancelled = [&] { return is_cancelled(options.cancel); };
  prefill(state, tokens.first(first), forward_options, [&](size_t) { return !cancelled(); });
  if (cancelled()) return std::nullopt;
  forward_options.recorder = &recorder;
  // A cache with a budget takes the rest as in decode; others as the prompt's last chunk.
  const size_t step = state.cache().keeps_everything() ? options.queries : 1;
  for (size_t at = first; at < tokens.size(); at += step)
    forward(state, tokens.subspan(at, step), forward_options);

  Reading reading;
  reading.heads = config.kv_heads;
  for (size_t i = 0; i < options.queries; ++i) reading.queries.push_back(first + i);
  const Weigher weigher(setting, options.mode, projections);
  for (size_t layer = 0; layer < config.layers; ++layer) {
    if (cancelled()) return std::nullopt;
    LayerReading& out = reading.layers.emplace_back();
    const auto& rows = recorder.layers().at(layer);
    for (size_t i = 0; i < options.queries; ++i)
      weigher.add(out, layer, i, static_cast<size_t>(rows.at(i).query), rows.at(i).groups);
    const auto count = static_cast<double>(options.queries * config.heads);
    out.captured /= count;
    out.best /= count;
    out.recent /= count;
  }
  return reading;
}

}  // namespace keysieve
