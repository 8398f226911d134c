#include "train/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/cancel.h"
#include "core/file_io.h"
#include "core/json.h"
#include "formats/model_location.h"
#include "indexer/selection_policy.h"
#include "keysieve/error.h"
#include "model/forward.h"
#include "text/model_text.h"
#include "train/layer_budgets.h"
#include "train/lightning_calibration.h"
#include "train/low_rank.h"
#include "train/moments.h"
#include "train/reach.h"

namespace keysieve {
namespace {

size_t longest_of(std::span<const std::vector<int32_t>> windows) {
  size_t longest = 0;
  for (const std::vector<int32_t>& window : windows) longest = std::max(longest, window.size());
  return longest;
}

void check_layers(std::string_view what, std::span<const size_t> layers, const ModelConfig& model) {
  for (const size_t layer : layers) {
    if (layer < model.layers) continue;
    throw Error(ErrorKind::usage, what, fmt::format("{}", layer), fmt::format("0 to {}", model.layers - 1));
  }
}

void check(const ModelConfig& model, std::span<const std::vector<int32_t>> windows,
           const CalibrationOptions& options) {
  check_layers("dense layers", options.dense_layers, model);
  check_layers("refine layers", options.refine_layers, model);
  const bool native = options.shape == IndexerShape::native;
  if (native && (options.rank == 0 || options.rank > model.head_dim)) {
    throw Error(ErrorKind::usage, "rank", fmt::format("{}", options.rank),
                fmt::format("1 to {}, the width of the model's heads", model.head_dim));
  }
  if (native && !(options.sharpness >= 0.1f && options.sharpness <= 10.0f)) {
    throw Error(ErrorKind::usage, "sharpness", fmt::format("{}", options.sharpness), "0.1 to 10");
  }
  const size_t longest = longest_of(windows);
  if (longest <= MomentCollector::kFirstQuery) {
    throw Error(ErrorKind::mismatch, "calibration windows", fmt::format("{} tokens at most", longest),
                fmt::format("more than {}: earlier queries read everything", MomentCollector::kFirstQuery),
                "raise --window");
  }
  if (longest > model.context) {
    throw Error(ErrorKind::mismatch, "calibration windows", fmt::format("{} tokens", longest),
                fmt::format("at most {}, the model's context", model.context), "lower --window");
  }
}

void append(std::vector<float>& values, const Eigen::MatrixXd& matrix) {  // row by row
  for (Eigen::Index i = 0; i < matrix.rows(); ++i) {
    for (Eigen::Index j = 0; j < matrix.cols(); ++j) values.push_back(static_cast<float>(matrix(i, j)));
  }
}

// Runs the windows through the model. False: cancelled.
bool collect(const std::shared_ptr<const Model>& model, std::span<const std::vector<int32_t>> windows,
             const CalibrationOptions& options, MomentCollector& moments) {
  size_t total = 0;
  for (const std::vector<int32_t>& window : windows) total += window.size();
  ForwardTaps taps;
  taps.projections = [&](const TapPlace& place, const float* q, const float* k, const float*) {
    moments.add(place, q, k);
  };
  ForwardOptions forward;
  forward.logits = Logits::none;
  forward.taps = &taps;
  SequenceState state(model);
  const auto cancelled = [&] { return is_cancelled(options.cancel); };
  size_t before = 0;
  for (const std::vector<int32_t>& window : windows) {
    state.clear();
    prefill(state, window, forward, [&](size_t done) {
      if (options.on_progress) options.on_progress(before + done, total);
      return !cancelled();
    });
    if (cancelled()) return false;
    before += window.size();
  }
  return true;
}

void require_selection(const IndexerConfig& config) {
  if (std::ranges::any_of(config.budgets, [](size_t budget) { return budget > 0; })) return;
  throw Error(ErrorKind::usage, "dense layers", "all of them", "at least one that selects");
}

// Budgets of layers, as the options want them. False: cancelled.
bool choose_budgets(Calibration& result, const std::shared_ptr<const Model>& model,
                    std::span<const std::vector<int32_t>> windows, const CalibrationOptions& options) {
  IndexerConfig& config = result.config;
  if (options.budget_total == 0) {
    if (options.dense_layers.empty()) return true;
    config.budgets.assign(config.layers, config.budget);
    for (const size_t layer : options.dense_layers) config.budgets[layer] = 0;
    require_selection(config);
    return true;
  }
  constexpr size_t kWindows = 4;  // of the calibration's, from the first on
  const std::optional<BudgetCurves> curves = captured_curves(
      model, config, result.layers, windows.first(std::min(windows.size(), kWindows)), options.cancel);
  if (!curves) return false;
  config.budgets = spread_budget(*curves, options.budget_total, options.dense_layers);
  require_selection(config);
  size_t sum = 0;
  size_t selecting = 0;
  for (size_t layer = 0; layer < config.layers; ++layer) {
    const size_t budget = config.budgets[layer];
    if (budget == 0) continue;
    sum += budget;
    ++selecting;
    const auto at = std::find(curves->budgets.begin(), curves->budgets.end(), budget);
    result.captured += curves->captured[layer][static_cast<size_t>(at - curves->budgets.begin())];
  }
  result.captured /= static_cast<double>(selecting);
  config.budget = sum / selecting;
  return true;
}

Json provenance(const CalibrationJob& job, const CalibrationReport& report) {
  Json texts = Json::array();
  for (const TextSource& source : report.sources) {
    texts.push_back({{"name", source.name},
                     {"bytes", source.bytes},
                     {"fnv1a", source.fnv1a},
                     {"windows", source.windows}});
  }
  const auto rounded = [](double value) { return std::round(value * 1e6) / 1e6; };
  return {{"method", report.config.shape == IndexerShape::native
                         ? "low rank from second moments of q and k after RoPE, no training"
                         : "one key for all KV heads, pair by pair, from second moments of q and k before "
                           "RoPE, no training"},
          {"command", job.command},
          {"texts", texts},
          {"window", job.window},
          {"reach", report.reach},
          {"tokens", report.tokens},
          {"kept_energy_mean", rounded(report.kept_energy_mean)},
          {"kept_energy_least", rounded(report.kept_energy_least)}};
}

void save(const CalibrationJob& job, const Calibration& calibration, const CalibrationReport& report) {
  save_indexer(job.out, calibration.config, calibration.layers);
  Json json = to_json(calibration.config);
  json["calibration"] = provenance(job, report);
  AtomicFileWriter writer(job.out / "run_config.json");
  writer.write(json.dump(1) + "\n");
  writer.commit();
}

std::optional<Calibration> calibrate_native(const std::shared_ptr<const Model>& model,
                                            std::span<const std::vector<int32_t>> windows,
                                            const CalibrationOptions& options) {
  const ModelConfig& config = model->config();
  Calibration result;
  result.reach = reach_of(options.reach, config.context);
  result.config = IndexerConfig::native_for(model->shape(), options.rank, options.budget);
  result.config.sinks = options.sinks;
  result.config.recent = options.recent;
  result.config.key_choice = options.index_keys.value_or(IndexKeyChoice::i4);
  result.config.query_block = options.query_block;
  result.config.refine = options.refine;
  result.config.refine_prompt = options.refine_prompt;
  result.config.refine_layers = options.refine_layers;
  result.config.has_bias = true;
  SelectionPolicy::from(result.config).validate();
  MomentCollector moments(config.layers, config.heads, config.kv_heads, config.head_dim, model->threads());
  if (!collect(model, windows, options, moments)) return std::nullopt;
  for (const std::vector<int32_t>& window : windows) result.tokens += window.size();

  std::vector<LowRankMaps> maps(config.layers * config.kv_heads);
  const double scale =
      static_cast<double>(options.sharpness) / std::sqrt(static_cast<double>(config.head_dim));
  const std::vector<WindowStart> starts = window_starts(longest_of(windows), result.reach);
  std::vector<Eigen::VectorXd> key_means(maps.size());
  model->threads().run(maps.size(), [&](size_t i, int) {
    const MomentCollector::Moments seen =
        moments.moments(i / config.kv_heads, i % config.kv_heads, model->rope(), starts);
    maps[i] = low_rank_maps(seen.query, seen.key_covariance, options.rank, scale);
    key_means[i] = seen.key_mean;
  });
  result.layers.resize(config.layers);
  for (size_t i = 0; i < maps.size(); ++i) {
    append(result.layers[i / config.kv_heads].q, maps[i].query);
    append(result.layers[i / config.kv_heads].k, maps[i].key);
    // The mean key adds the same number to all scores of a query, and would take up most of a rounded key's
    // range.
    append(result.layers[i / config.kv_heads].k_bias, -maps[i].key * key_means[i]);
    result.kept_energy.push_back(maps[i].kept_energy);
  }
  return result;
}

}  // namespace

std::optional<Calibration> calibrate(const std::shared_ptr<const Model>& model,
                                     std::span<const std::vector<int32_t>> windows,
                                     const CalibrationOptions& options) {
  check(model->config(), windows, options);
  std::optional<Calibration> result = options.shape == IndexerShape::native
                                          ? calibrate_native(model, windows, options)
                                          : calibrate_lightning(model, windows, options);
  if (result && !choose_budgets(*result, model, windows, options)) return std::nullopt;
  return result;
}

std::optional<CalibrationReport> calibrate_files(const CalibrationJob& job) {
  const ModelLocation location = locate_model(job.model, {.folders = job.model_folders});
  const Tokenizer tokenizer = load_tokenizer(location);
  TextWindows text = read_text_windows(job.texts, tokenizer, job.windows, job.window);
  const std::shared_ptr<const Model> model = Model::load(location, job.model_options);
  tokenizer.check_fits(static_cast<int64_t>(model->config().vocabulary), location.path.string());
  const std::optional<Calibration> calibration = calibrate(model, text.windows, job.options);
  if (!calibration) return std::nullopt;

  CalibrationReport report;
  report.model = model->fingerprint_text();
  report.config = calibration->config;
  report.sources = std::move(text.sources);
  report.tokens = calibration->tokens;
  report.reach = calibration->reach;
  for (const IndexerLayerWeights& layer : calibration->layers)
    report.parameters += layer.q.size() + layer.k.size() + layer.head_weight.size();
  const std::vector<double>& kept = calibration->kept_energy;
  report.kept_energy_mean = std::accumulate(kept.begin(), kept.end(), 0.0) / static_cast<double>(kept.size());
  report.kept_energy_least = *std::min_element(kept.begin(), kept.end());
  report.captured = calibration->captured;
  save(job, *calibration, report);
  return report;
}

}  // namespace keysieve
