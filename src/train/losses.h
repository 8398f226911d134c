#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "indexer/layer_query.h"

namespace keysieve {

// What training minimises for one query and one set of heads that share a selection, and how much of it.
// P is the indexer's distribution over the query's keys, T the attention's (the teacher's), each the mean
// over the set's heads. Sinks and recent keys are read whatever their score, so they count together as one
// outcome: the indexer must know their total, because it decides how much a head's other keys weigh, and
// nothing more.
struct LossOptions {
  // The attention to learn is softmax(sharpness * logits) of each head: docs/decisions/0017.
  float sharpness = 1.0f;
  // KL(T || P): the published indexers' loss.
  float divergence = 1.0f;
  // The mean over heads of KL(T_h || P_h), for shapes whose heads are the model's own. A head that looks for
  // one far key keeps its say where the mean would drown it.
  float head_divergence = 0.0f;
  // -log P(the teacher's best keys, as many as the budget): the published indexers' second term.
  float support = 0.1f;
  // A hinge on decisive keys, those that some head gives at least `decisive` of its attention: each must
  // score `margin` (in nats of P) above the last key selected, weighted by that head's attention.
  float cut = 0.0f;
  float margin = 1.0f;
  float decisive = 0.05f;
  // A query counts (1 - T(sinks, recent))^focus: above 0, queries that look far away count more.
  float focus = 0.0f;
  // The selection the losses are about.
  size_t budget = 256;
  size_t sinks = 4;
  size_t recent = 16;
};

// Sums over `rows` (query, set) pairs; mean() of any is the sum over rows.
struct LossMeasures {
  double rows = 0;
  double loss = 0;        // the weighted sum that is minimised
  double divergence = 0;  // its parts, unweighted
  double head_divergence = 0;
  double support = 0;
  double cut = 0;
  double captured = 0;  // teacher's mass on the keys the indexer selects
  double oracle = 0;    // and on the best selection there is
  double decisive = 0;  // decisive keys among the keys that are chosen by score
  double found = 0;     // of these, the ones selected

  void add(const LossMeasures& other);
};

// One query's candidates 0 .. keys-1 in one set.
struct LossRow {
  const float* teacher;  // [keys], sums to 1
  const float* peak;     // [keys], the largest attention of any head of the set
  const float* student;  // [keys], sums to 1
  size_t keys;
};

// Adds one row's measures and writes d loss / d student [keys] (times `weight`). The head_divergence part is
// not in it. `chosen` and `best` are working memory. Runs on the calling thread, as `worker`.
struct SelectionScratch {
  std::vector<uint32_t> chosen;
  std::vector<uint32_t> best;
};
void distribution_loss(float* gradient, const LossRow& row, const LossOptions& options, float weight,
                       SelectionScratch& working, KernelContext& context, int worker, LossMeasures& measures);

// The factor `focus` gives a row.
float focus_of(const LossRow& row, const LossOptions& options);

// KL(teacher || student) of one head with sinks and recent as one outcome. Adds weight * d KL / d logits of
// the student's softmax to `gradient` [keys].
double head_divergence(float* gradient, const float* teacher, const float* student, size_t keys,
                       const LossOptions& options, float weight);

// Turns logits [keys] into their softmax in place.
void softmax(float* row, size_t keys);

// d loss / d logits from d loss / d probabilities: out = p (g - sum p g). All [keys].
void softmax_backward(float* out, const float* probabilities, const float* gradient, size_t keys);

}  // namespace keysieve
