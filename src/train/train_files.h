#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "indexer/indexer_config.h"
#include "model/model.h"
#include "train/lightning_config.h"
#include "train/trainer.h"

namespace keysieve {

// From files to files.
struct TrainingJob {
  std::string model;                                 // as locate_model takes it
  std::vector<std::filesystem::path> model_folders;  // where short names are looked up
  ModelOptions model_options;
  std::vector<std::filesystem::path> texts;
  std::vector<std::filesystem::path> development;  // texts to measure on; empty: none
  size_t development_windows = 4;

  // Where the weights start: "calibrate", "random", or an indexer's folder.
  std::string start = "calibrate";
  IndexerShape shape = IndexerShape::native;  // of a start that is no folder
  size_t rank = 32;                           // native
  LightningSizes lightning = {};
  std::optional<SelectionScope> scope;  // what a start that is no folder leaves to choose
  // Of the matrices in the file written: f32, f16 or bf16. By default bf16 for the lightning shape, which has
  // a hundred times the weights of the native one, whose few are f32.
  std::optional<DType> dtype;
  size_t budget = 512;         // written into the indexer; options.loss.budget is trained for
  std::vector<size_t> layers;  // to train, ascending; empty: all. The others keep their start
  TrainingOptions options;

  std::filesystem::path out;  // folder
  bool resume = false;
  std::string command;  // recorded in run_config.json
  const std::atomic<bool>* cancel = nullptr;
  // Before the first step: bytes the run will hold, weights to train, steps already done.
  std::function<void(uint64_t memory_bytes, uint64_t parameters, size_t step)> on_start = {};
  std::function<void(const TrainingProgress&)> on_step = {};
};

struct TrainingReport {
  TrainingEnd end = TrainingEnd::finished;
  std::string model;  // fingerprint
  IndexerConfig config;
  uint64_t parameters = 0;
  size_t layers = 0;  // trained
  size_t steps = 0;
  uint64_t tokens = 0;
  double seconds = 0;
  size_t best_step = 0;  // whose weights were written; the last step without a development split
};

// Trains and writes `out`/indexer.safetensors and run_config.json, whose `training` says how and from what.
// While it runs, `out` holds `start/` (the indexer before training), `checkpoint.safetensors` and
// `metrics.jsonl`; the checkpoint goes when the indexer is written. A run killed at any moment and resumed
// with the same options gives the same indexer to the last bit. When cancelled, the checkpoint is the only
// result. Throws what its parts throw; Error{usage} where `out` holds an unfinished run and resume is not
// asked for, or where there is none to resume.
TrainingReport train_files(const TrainingJob& job);

}  // namespace keysieve
