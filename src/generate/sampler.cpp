#include "generate/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "keysieve/error.h"

namespace keysieve {
namespace {

void require(bool fine, std::string_view name, float value, std::string_view expected) {
  if (!fine) throw Error(ErrorKind::usage, name, fmt::format("{}", value), expected);
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
  require(std::isfinite(options.temperature) && options.temperature >= 0, "temperature", options.temperature,
          "0 (greedy) or more");
  require(options.top_p > 0 && options.top_p <= 1, "top-p", options.top_p, "more than 0 and at most 1");
  require(options.min_p >= 0 && options.min_p <= 1, "min-p", options.min_p, "0 to 1");
  require(std::isfinite(options.repetition_penalty) && options.repetition_penalty > 0, "repetition penalty",
          options.repetition_penalty, "more than 0 (1 is none)");
}

void Sampler::see(std::span<const int32_t> tokens) {
  if (options_.repetition_penalty == 1) return;
  for (const int32_t id : tokens) {
    if (id < 0) continue;
    const auto index = static_cast<size_t>(id);
    if (index >= seen_.size()) seen_.resize(index + 1);
    seen_[index] = true;
  }
}

float Sampler::fair_logit(float logit, size_t id) const {
  if (std::isnan(logit)) return -std::numeric_limits<float>::infinity();
  if (options_.repetition_penalty == 1 || id >= seen_.size() || !seen_[id]) return logit;
  // A negative logit is multiplied, so that the penalty always makes the token less likely.
  return logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
}

int32_t Sampler::draw(std::span<const float> logits) {
  const int32_t id = options_.temperature == 0 ? likeliest(logits) : sample(logits);
  see(std::span(&id, 1));
  return id;
}

// The lower id among equals.
int32_t Sampler::likeliest(std::span<const float> logits) const {
  size_t best = 0;
  float highest = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = fair_logit(logits[i], i);
    if (logit > highest) {
      highest = logit;
      best = i;
    }
  }
  return static_cast<int32_t>(best);
}

int32_t Sampler::sample(std::span<const float> logits) {
  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i)
    candidates_[i] = {fair_logit(logits[i], i), static_cast<int32_t>(i)};
  keep_likely();
  return pick();
}

void Sampler::keep_likely() {
  const bool by_count = options_.top_k > 0 && options_.top_k < candidates_.size();
  const bool by_mass = options_.top_p < 1;
  if (!by_count && !by_mass && options_.min_p == 0) return;
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  // Sorting 150,000 candidates takes about 10 ms, more than many a model's step, and nucleus sets are small:
  // sort the best 256 first, and more only where they do not reach the mass asked for.
  size_t sorted = by_count ? options_.top_k : std::min<size_t>(candidates_.size(), 256);
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(sorted),
                    candidates_.end(), likelier);
  if (by_count) candidates_.resize(sorted);
  const float best = candidates_.front().logit;
  if (by_mass) {
    double total = 0;
    for (const Candidate& candidate : candidates_)
      total += std::exp(static_cast<double>(candidate.logit - best));
    const double wanted = options_.top_p * total;
    double mass = 0;
    size_t kept = 0;
    while (kept < candidates_.size()) {
      if (kept == sorted) {
        const auto begin = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted);
        sorted = std::min(candidates_.size(), sorted * 8);
        std::partial_sort(begin, candidates_.begin() + static_cast<std::ptrdiff_t>(sorted), candidates_.end(),
                          likelier);
      }
      mass += std::exp(static_cast<double>(candidates_[kept].logit - best));
      ++kept;
      if (mass >= wanted) break;
    }
    candidates_.resize(kept);
  }
  if (options_.min_p > 0) {
    const float floor = best + std::log(options_.min_p);
    std::erase_if(candidates_, [&](const Candidate& candidate) { return candidate.logit < floor; });
  }
}

int32_t Sampler::pick() {
  float best = -std::numeric_limits<float>::infinity();
  for (const Candidate& candidate : candidates_) best = std::max(best, candidate.logit);
  if (!std::isfinite(best)) return candidates_.front().id;
  const double inverse = 1.0 / options_.temperature;
  double total = 0;
  for (const Candidate& candidate : candidates_) {
    total += std::exp(static_cast<double>(candidate.logit - best) * inverse);
  }
  // The upper 53 bits fill a double's mantissa: a number in [0, 1).
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  for (const Candidate& candidate : candidates_) {
    left -= std::exp(static_cast<double>(candidate.logit - best) * inverse);
    if (left < 0) return candidate.id;
  }
  // Rounding ate the rest: the likeliest is always a fair answer.
  const auto less = [](const Candidate& a, const Candidate& b) { return a.logit < b.logit; };
  return std::max_element(candidates_.begin(), candidates_.end(), less)->id;
}

}  // namespace keysieve
