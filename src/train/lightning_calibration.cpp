#include "train/lightning_calibration.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "indexer/indexer.h"
#include "indexer/selection_policy.h"
#include "train/layer_views.h"
#include "train/lightning_maps.h"
#include "train/student.h"

namespace keysieve {
namespace {

// Windows whose attention the thresholds and gains are chosen by, and queries of each.
constexpr size_t kAimWindows = 2;
constexpr size_t kAimQueries = 32;
constexpr size_t kAimBudget = 128;

// What products of one head's queries with their keys are like.
struct ProductSums {
  double count = 0;
  double sum = 0;
  double squares = 0;
  double mean() const { return sum / std::max(count, 1.0); }
  double deviation() const {
    return std::sqrt(std::max(squares / std::max(count, 1.0) - mean() * mean(), 0.0));
  }
};

// Adds the products of one layer's queries with their keys to sums [heads].
void add_products(std::span<ProductSums> sums, const Indexer& indexer, const LayerView& view,
                  std::span<const uint32_t> queries, KernelContext& context) {
  const size_t dim = indexer.dim();
  const size_t heads = indexer.heads();
  std::vector<int32_t> places(view.tokens);
  std::iota(places.begin(), places.end(), 0);
  RowMatrix keys(static_cast<Eigen::Index>(view.tokens), static_cast<Eigen::Index>(dim));
  indexer.project_keys(keys.data(), view.layer, {view.hidden, view.q, view.k, places.data(), view.tokens},
                       context);
  const size_t hidden = indexer.config().hidden;
  RowMatrix products(static_cast<Eigen::Index>(heads), static_cast<Eigen::Index>(dim));
  std::vector<float> weights(heads);
  for (const uint32_t query : queries) {
    const LayerInputs one{view.hidden + query * hidden, nullptr, nullptr, places.data() + query, 1};
    indexer.project_queries(products.data(), weights.data(), view.layer, one, context);
    const Eigen::MatrixXd row = (products * keys.topRows(query + 1).transpose()).cast<double>();
    for (size_t h = 0; h < heads; ++h) {
      sums[h].count += static_cast<double>(row.cols());
      sums[h].sum += row.row(static_cast<Eigen::Index>(h)).sum();
      sums[h].squares += row.row(static_cast<Eigen::Index>(h)).squaredNorm();
    }
  }
}

// Weights that differ in thresholds and gain, and how far their scores are from attention.
class Aim {
 public:
  Aim(const IndexerConfig& config, const ModelShape& shape, std::span<const LightningMaps> maps,
      const CalibrationOptions& options)
      : config_(config),
        shape_(shape),
        maps_(maps),
        products_(maps.size() * config.heads),
        candidates_(maps.size()) {
    loss_.budget = std::max(kAimBudget, options.sinks + options.recent);
    loss_.sinks = options.sinks;
    loss_.recent = options.recent;
  }

  std::vector<ProductSums>& products() { return products_; }

  // Thresholds are the mean product of a head and so many deviations more.
  void make_candidates() {
    for (size_t layer = 0; layer < maps_.size(); ++layer) {
      for (const double deviations : {-1.0, 0.0, 1.0, 2.0}) {
        std::vector<float> thresholds;
        for (size_t h = 0; h < config_.heads; ++h) {
          const ProductSums& sums = products_[layer * config_.heads + h];
          thresholds.push_back(static_cast<float>(sums.mean() + deviations * sums.deviation()));
        }
        for (const double all : {0.5, 1.0, 2.0, 4.0, 8.0}) {  // of all heads together
          candidates_[layer].push_back(
              {thresholds, static_cast<float>(all / static_cast<double>(config_.heads))});
        }
      }
    }
  }

  void measure(const LayerView& view, KernelContext& context) {
    const Teacher teacher(view, shape_);
    const std::vector<uint32_t> queries =
        sample_queries(view.tokens, kAimQueries, view.tokens / 4, {}, view.layer);
    for (Candidate& candidate : candidates_[view.layer]) {
      const auto student = make_student(config_, shape_, weights(view.layer, candidate), ScoreKeys::exact);
      candidate.divergence += student->learn(view, teacher, queries, loss_, 0.0f, context).divergence;
    }
  }

  IndexerLayerWeights best(size_t layer) const {
    return weights(layer, *std::ranges::min_element(candidates_[layer], {}, &Candidate::divergence));
  }

 private:
  struct Candidate {
    std::vector<float> thresholds;  // [heads]
    float gain;
    double divergence = 0;
  };
  IndexerLayerWeights weights(size_t layer, const Candidate& candidate) const {
    return with_heads(maps_[layer], config_, candidate.thresholds, candidate.gain);
  }
  const IndexerConfig& config_;
  ModelShape shape_;
  std::span<const LightningMaps> maps_;
  LossOptions loss_;
  std::vector<ProductSums> products_;               // [layers, heads]
  std::vector<std::vector<Candidate>> candidates_;  // [layers]
};

}  // namespace

std::optional<Calibration> calibrate_lightning(const std::shared_ptr<const Model>& model,
                                               std::span<const std::vector<int32_t>> windows,
                                               const CalibrationOptions& options) {
  const ModelShape shape = model->shape();
  Calibration result;
  result.config = lightning_config(options.lightning, shape, options.budget);
  result.config.sinks = options.sinks;
  result.config.recent = options.recent;
  result.config.key_choice = options.index_keys.value_or(IndexKeyChoice::automatic);
  result.config.query_block = options.query_block;
  result.config.refine = options.refine;
  result.config.refine_prompt = options.refine_prompt;
  result.config.refine_layers = options.refine_layers;
  result.config.has_bias = true;
  bind_to_model(result.config, shape, "lightning indexer");
  SelectionPolicy::from(result.config).validate();
  result.reach = reach_of(options.reach, model->config().context);
  size_t longest = 0;
  for (const std::vector<int32_t>& window : windows) {
    result.tokens += window.size();
    longest = std::max(longest, window.size());
  }
  KernelScratch scratch(model->threads());
  KernelContext context{model->kernels(), model->threads(), scratch};
  const std::span<const std::vector<int32_t>> aim_at = windows.last(std::min(kAimWindows, windows.size()));
  size_t total = result.tokens;
  for (const std::vector<int32_t>& window : aim_at) total += 2 * window.size();

  size_t done = 0;
  const auto look = [&](std::span<const std::vector<int32_t>> at,
                        const std::function<void(const LayerView&)>& see) {
    return view_layers(model, at, true, options.cancel, see, [&](size_t tokens) {
      done += tokens;
      if (options.on_progress) options.on_progress(done, total);
    });
  };
  std::vector<LightningMoments> moments(shape.layers);
  if (!look(windows, [&](const LayerView& view) {
        add_window(moments[view.layer], view, shape, model->rope(), options.sinks, options.recent, context);
      }))
    return std::nullopt;
  const std::vector<WindowStart> starts = window_starts(longest, result.reach);
  std::vector<LightningMaps> maps(shape.layers);
  model->threads().run(maps.size(), [&](size_t i, int) {
    maps[i] = lightning_maps(moments[i], result.config, shape, model->rope(), starts, longest);
    moments[i] = {};
  });

  Aim aim(result.config, shape, maps, options);
  std::vector<IndexerLayerWeights> plain;
  for (const LightningMaps& layer : maps) {
    plain.push_back(layer.weights);
    result.kept_energy.push_back(layer.kept_energy);
  }
  const Indexer indexer(result.config, plain, shape, model->shared_kernels(), model->threads());
  if (!look(aim_at, [&](const LayerView& view) {
        const std::vector<uint32_t> queries =
            sample_queries(view.tokens, kAimQueries, view.tokens / 4, {}, view.layer);
        add_products(std::span(aim.products()).subspan(view.layer * result.config.heads, result.config.heads),
                     indexer, view, queries, context);
      }))
    return std::nullopt;
  aim.make_candidates();
  if (!look(aim_at, [&](const LayerView& view) { aim.measure(view, context); })) return std::nullopt;
  for (size_t layer = 0; layer < maps.size(); ++layer) result.layers.push_back(aim.best(layer));
  return result;
}

}  // namespace keysieve
