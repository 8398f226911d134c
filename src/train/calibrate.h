#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "indexer/indexer_config.h"
#include "indexer/indexer_weights.h"
#include "model/model.h"
#include "train/lightning_config.h"
#include "train/text_windows.h"

namespace keysieve {

struct CalibrationOptions {
  // seed: the published indexer's, of these sizes (lightning_calibration.h); rank and sharpness are the
  // native shape's.
  IndexerShape shape = IndexerShape::native;
  LightningSizes lightning = {};
  size_t rank = 32;     // values of an index key, 1 to head_dim
  float sharpness = 1;  // the indexer's scores over the model's logits, 0.1 to 10: docs/decisions/0017
  // Positions the maps are made for: the windows count as if they had begun all over these, the early ones
  // more. 0: the model's context, at most kMostReach of it (reach.h).
  size_t reach = 0;
  size_t budget = 512;  // written into the indexer: positions a query reads unless told otherwise
  size_t sinks = 4;     // likewise: positions always kept at the start
  size_t recent = 16;   // and at the end; see docs/decisions/0006 for why not more
  // Likewise: how keys are stored; unset: 4 bits a value for native, f32 for the published shape.
  std::optional<IndexKeyChoice> index_keys = std::nullopt;
  size_t query_block = 4;                  // likewise: neighbouring queries of a prompt that choose together
  size_t refine = 0;                       // likewise: positions that attention chooses among
  size_t refine_prompt = 0;                // likewise: for a prompt's queries before its end
  std::vector<size_t> refine_layers = {};  // likewise, ascending: layers both hold for; empty: all
  // Not 0: positions that all layers read together, spread over them by the attention they catch (see
  // layer_budgets.h) instead of `budget` for each, which becomes their mean.
  size_t budget_total = 0;
  std::vector<size_t> dense_layers = {};  // without selection; they take nothing of the total
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(size_t done, size_t total)> on_progress = {};  // tokens
};

struct Calibration {
  IndexerConfig config;
  std::vector<IndexerLayerWeights> layers;  // [layers]
  std::vector<double> kept_energy;          // [layers, kv_heads], see LowRankMaps
  double captured = 0;  // with budgets of layers: attention caught, mean over the layers that select
  size_t tokens = 0;
  size_t reach = 0;  // positions, see CalibrationOptions
};

// An indexer without training. Per KV group, from the model's own q and k after RoPE on the given windows,
// the best rank-r bilinear form under the data's second moments (low_rank.h); one map for all heads of a
// group, whose softmaxes are summed (IndexCombine::softmax_sum). Each window is a sequence of its own.
// nullopt: cancelled. Throws Error{usage} for a rank, reach or budget out of range, Error{mismatch} for
// windows that leave no queries to learn from or do not fit the context.
std::optional<Calibration> calibrate(const std::shared_ptr<const Model>& model,
                                     std::span<const std::vector<int32_t>> windows,
                                     const CalibrationOptions& options);

// From files to files.
struct CalibrationJob {
  std::string model;                                 // as locate_model takes it
  std::vector<std::filesystem::path> model_folders;  // where short names are looked up
  ModelOptions model_options;
  std::vector<std::filesystem::path> texts;
  size_t windows = 12;
  size_t window = 4096;
  CalibrationOptions options;
  std::filesystem::path out;  // folder
  std::string command;        // recorded in run_config.json
};

struct CalibrationReport {
  std::string model;  // fingerprint
  IndexerConfig config;
  std::vector<TextSource> sources;
  size_t tokens = 0;
  size_t reach = 0;  // positions
  uint64_t parameters = 0;
  double kept_energy_mean = 0;  // over layers and groups
  double kept_energy_least = 0;
  double captured = 0;  // see Calibration
};

// Loads the model, reads the texts, calibrates and writes `out`/indexer.safetensors and run_config.json,
// whose `calibration` says from what. The same inputs give the same files. nullopt: cancelled, nothing is
// written. Throws what its parts throw.
std::optional<CalibrationReport> calibrate_files(const CalibrationJob& job);

}  // namespace keysieve
