#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "keysieve/session.h"

namespace keysieve {

// Draws the next token. Deterministic: the generator is std::mt19937_64, whose sequence the standard fixes,
// and its bits become a number in [0, 1) here rather than in a library's distribution.
class Sampler {
 public:
  // Throws Error{usage} for values out of range: a negative temperature, top_p or min_p outside [0, 1], a
  // penalty that is not positive, or any that is not finite.
  explicit Sampler(const SamplingOptions& options);

  // Tokens that count as seen by the repetition penalty: the prompt's and, after draw(), the drawn ones.
  void see(std::span<const int32_t> tokens);

  // logits [vocabulary]. Equal logits: the lower id is the likelier. A NaN is never drawn unless all are.
  int32_t draw(std::span<const float> logits);

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };
  // Penalised where seen; of a NaN the lowest there is.
  float fair_logit(float logit, size_t id) const;
  int32_t likeliest(std::span<const float> logits) const;
  int32_t sample(std::span<const float> logits);
  void keep_likely();  // top-k, top-p and min-p; leaves candidates_ sorted where one of them is on
  int32_t pick();

  SamplingOptions options_;
  std::mt19937_64 random_;
  std::vector<Candidate> candidates_;  // of sample(): 8 bytes a token of the vocabulary, which greedy spares
  std::vector<bool> seen_;             // [vocabulary] so far as ids came
};

}  // namespace keysieve
