#include "train/layer_budgets.h"

#include <fmt/format.h>

#include <algorithm>

#include "keysieve/error.h"
#include "train/layer_views.h"
#include "train/student.h"

namespace keysieve {
namespace {

constexpr size_t kStep = 64;
// Attention of 32 late queries of each window: enough for curves that differ by points.
constexpr size_t kQueries = 32;

// Half as much again from one to the next, in multiples of the step.
std::vector<size_t> budgets_between(size_t least, size_t most) {
  std::vector<size_t> budgets;
  for (size_t budget = least; budget <= most;) {
    budgets.push_back(budget);
    budget = std::max(budget + kStep, budget * 3 / 2 / kStep * kStep);
  }
  return budgets;
}

}  // namespace

std::optional<BudgetCurves> captured_curves(const std::shared_ptr<const Model>& model,
                                            const IndexerConfig& config,
                                            std::span<const IndexerLayerWeights> layers,
                                            std::span<const std::vector<int32_t>> windows,
                                            const std::atomic<bool>* cancel) {
  size_t longest = 0;
  for (const std::vector<int32_t>& window : windows) longest = std::max(longest, window.size());
  BudgetCurves curves;
  const size_t least = (config.sinks + config.recent + kStep) / kStep * kStep;
  curves.budgets = budgets_between(least, longest / 2);
  if (curves.budgets.size() < 2) {
    throw Error(ErrorKind::mismatch, "budgets of layers", fmt::format("windows of {} tokens", longest),
                fmt::format("at least {}", 2 * (least + kStep)), "raise --window");
  }
  const ModelShape shape = model->shape();
  std::vector<std::unique_ptr<LayerStudent>> students;
  for (const IndexerLayerWeights& layer : layers)
    students.push_back(make_student(config, shape, layer, ScoreKeys::as_stored));
  std::vector<std::vector<LossMeasures>> sums(layers.size(),
                                              std::vector<LossMeasures>(curves.budgets.size()));
  KernelScratch scratch(model->threads());
  KernelContext context{model->kernels(), model->threads(), scratch};
  const auto see = [&](const LayerView& view) {
    const Teacher teacher(view, shape);
    const std::vector<uint32_t> queries =
        sample_queries(view.tokens, kQueries, view.tokens / 2, {}, view.layer);
    LossOptions loss;
    loss.sinks = config.sinks;
    loss.recent = config.recent;
    for (size_t i = 0; i < curves.budgets.size(); ++i) {
      loss.budget = curves.budgets[i];
      sums[view.layer][i].add(students[view.layer]->learn(view, teacher, queries, loss, 0.0f, context));
    }
  };
  if (!view_layers(model, windows, config.shape == IndexerShape::seed, cancel, see)) return std::nullopt;
  for (const std::vector<LossMeasures>& layer : sums) {
    std::vector<double>& captured = curves.captured.emplace_back();
    for (const LossMeasures& sum : layer) captured.push_back(sum.captured / std::max(sum.rows, 1.0));
  }
  return curves;
}

std::vector<size_t> spread_budget(const BudgetCurves& curves, size_t total, std::span<const size_t> dense) {
  const size_t layers = curves.captured.size();
  const size_t least = curves.budgets.front();
  std::vector<size_t> at(layers, 0);  // index into the budgets
  std::vector<bool> sparse(layers, true);
  for (const size_t layer : dense) {
    if (layer < layers) sparse[layer] = false;
  }
  const auto choosing = static_cast<size_t>(std::count(sparse.begin(), sparse.end(), true));
  if (total < choosing * least) {
    throw Error(ErrorKind::usage, "budget in all", fmt::format("{} for {} layers", total, choosing),
                fmt::format("at least {}, {} for each", choosing * least, least));
  }
  size_t left = total - choosing * least;
  for (;;) {
    double steepest = 0;
    size_t layer = layers;
    size_t target = 0;
    for (size_t i = 0; i < layers; ++i) {
      // A curve may be flat at first and rise later: any later budget counts, by its mean slope.
      for (size_t to = at[i] + 1; sparse[i] && to < curves.budgets.size(); ++to) {
        const size_t cost = curves.budgets[to] - curves.budgets[at[i]];
        if (cost > left) break;
        const double slope = (curves.captured[i][to] - curves.captured[i][at[i]]) / static_cast<double>(cost);
        if (slope > steepest) {
          steepest = slope;
          layer = i;
          target = to;
        }
      }
    }
    if (layer == layers) break;
    left -= curves.budgets[target] - curves.budgets[at[layer]];
    at[layer] = target;
  }
  std::vector<size_t> budgets;
  for (size_t i = 0; i < layers; ++i) budgets.push_back(sparse[i] ? curves.budgets[at[i]] : 0);
  return budgets;
}

}  // namespace keysieve
