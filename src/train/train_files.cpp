#include "train/train_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <system_error>
#include <utility>

#include "core/file_io.h"
#include "core/json.h"
#include "core/split_mix.h"
#include "formats/model_location.h"
#include "indexer/selection_policy.h"
#include "keysieve/error.h"
#include "text/model_text.h"
#include "train/calibrate.h"
#include "train/metrics_log.h"

namespace keysieve {
namespace {

struct Start {
  IndexerConfig config;
  std::vector<IndexerLayerWeights> layers;
};

bool is_there(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

std::vector<float> random_matrix(size_t rows, size_t columns, SplitMix& random) {
  std::vector<float> values(rows * columns);
  const double spread = 2.0 / std::sqrt(static_cast<double>(columns));
  for (float& value : values)  // about normal, with a standard deviation of columns^-0.5
    value = static_cast<float>(spread * (random.unit() + random.unit() + random.unit() - 1.5));
  return values;
}

Start random_start(const TrainingJob& job, const ModelShape& shape) {
  Start start;
  SplitMix random(job.options.packing.seed);
  if (job.shape == IndexerShape::native) {
    start.config = IndexerConfig::native_for(shape, job.rank, job.budget);
    for (size_t i = 0; i < shape.layers; ++i) {
      IndexerLayerWeights layer;
      layer.q = random_matrix(shape.kv_heads * job.rank, shape.head_dim, random);
      layer.k = random_matrix(shape.kv_heads * job.rank, shape.head_dim, random);
      start.layers.push_back(std::move(layer));
    }
    return start;
  }
  start.config = lightning_config(job.lightning, shape, job.budget);
  const IndexerConfig& config = start.config;
  for (size_t i = 0; i < shape.layers; ++i) {
    IndexerLayerWeights layer;
    layer.q = random_matrix(config.heads * config.dim, config.hidden, random);
    layer.k = random_matrix(config.dim, config.hidden, random);
    layer.head_weight = random_matrix(config.heads, config.hidden, random);
    start.layers.push_back(std::move(layer));
  }
  return start;
}

Start load_start(const std::filesystem::path& path, const ModelShape& shape) {
  const IndexerFile file(path, shape);
  Start start{file.config(), {}};
  for (size_t i = 0; i < shape.layers; ++i) start.layers.push_back(file.layer(i));
  return start;
}

Start calibrated_start(const TrainingJob& job, const std::shared_ptr<const Model>& model,
                       const Tokenizer& tokenizer) {
  const size_t windows = CalibrationJob{}.windows;
  const TextWindows text = read_text_windows(job.texts, tokenizer, windows, job.options.packing.window);
  CalibrationOptions options;
  options.shape = job.shape;
  options.lightning = job.lightning;
  options.rank = job.rank;
  options.sharpness = job.options.loss.sharpness;
  options.budget = job.budget;
  options.sinks = job.options.loss.sinks;
  options.recent = job.options.loss.recent;
  options.reach = job.options.reach;
  std::optional<Calibration> made = calibrate(model, text.windows, options);
  return {std::move(made->config), std::move(made->layers)};
}

Start make_start(const TrainingJob& job, const std::shared_ptr<const Model>& model,
                 const Tokenizer& tokenizer) {
  const ModelShape shape = model->shape();
  Start start = job.start == "calibrate" ? calibrated_start(job, model, tokenizer)
                : job.start == "random"  ? random_start(job, shape)
                                         : load_start(job.start, shape);
  if (job.scope) start.config.scope = *job.scope;
  start.config.sinks = job.options.loss.sinks;
  start.config.recent = job.options.loss.recent;
  start.config.budget = job.budget;
  bind_to_model(start.config, shape, "the start of training");
  SelectionPolicy::from(start.config).validate();
  return start;
}

Json to_json(const std::vector<TextSource>& sources) {
  Json list = Json::array();
  for (const TextSource& source : sources) {
    list.push_back({{"name", source.name},
                    {"bytes", source.bytes},
                    {"fnv1a", source.fnv1a},
                    {"pieces", source.windows}});
  }
  return list;
}

// Of a folder its own name: files that are passed on should not tell where they were made.
std::string name_of_start(const std::string& start) {
  const std::filesystem::path path(start);
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

// What a run is: two runs with the same settings on the same machine give the same bits.
Json settings_of(const TrainingJob& job, const Model& model, const TextPacker& texts,
                 const std::vector<TextSource>& development) {
  const TrainingOptions& o = job.options;
  return {{"model", model.sequence_identity()},
          {"start", name_of_start(job.start)},
          {"dtype", job.dtype ? to_string(*job.dtype) : "by shape"},
          {"texts", to_json(texts.sources())},
          {"development", to_json(development)},
          {"development_windows", development.empty() ? 0 : job.development_windows},
          {"layers", job.layers},
          {"steps", o.steps},
          {"batch", o.batch},
          {"window", o.packing.window},
          {"shortest", o.packing.shortest},
          {"retrieval", o.packing.retrieval},
          {"seed", o.packing.seed},
          {"queries", o.queries},
          {"rate", o.rate},
          {"weight_decay", o.adam.weight_decay},
          {"clip", o.adam.clip},
          {"loss",
           {{"sharpness", o.loss.sharpness},
            {"divergence", o.loss.divergence},
            {"head_divergence", o.loss.head_divergence},
            {"support", o.loss.support},
            {"cut", o.loss.cut},
            {"margin", o.loss.margin},
            {"decisive", o.loss.decisive},
            {"focus", o.loss.focus},
            {"budget", o.loss.budget},
            {"sinks", o.loss.sinks},
            {"recent", o.loss.recent}}},
          {"keys", o.keys == ScoreKeys::exact ? "exact" : "as stored"},
          {"states", o.sparse_states ? "sparse" : "dense"},
          {"evaluate_every", o.evaluate_every},
          {"patience", o.patience}};
}

std::vector<TrainedLayer> make_layers(const TrainingJob& job, const Start& start, const ModelShape& shape) {
  std::vector<size_t> wanted = job.layers;
  if (wanted.empty()) {
    for (size_t i = 0; i < shape.layers; ++i) wanted.push_back(i);
  }
  std::vector<TrainedLayer> layers;
  for (const size_t index : wanted) {
    if (index >= shape.layers) {
      throw Error(ErrorKind::usage, "layers", fmt::format("{}", index),
                  fmt::format("0 to {}", shape.layers - 1));
    }
    layers.push_back({index, make_student(start.config, shape, start.layers[index], job.options.keys), {}});
  }
  return layers;
}

void write_indexer(const TrainingJob& job, Start& start, const TrainingState& state, const Json& settings,
                   const TrainingReport& report) {
  for (const TrainedLayer& layer : state.layers) {
    IndexerLayerWeights& target = start.layers[layer.index];
    if (layer.best.empty()) {
      target = layer.student->weights();
      continue;
    }
    for (size_t i = 0; i < layer.best.size(); ++i) layer.student->tensors()[i].value = layer.best[i];
    target = layer.student->weights();
  }
  const DType by_shape = start.config.shape == IndexerShape::native ? DType::f32 : DType::bf16;
  save_indexer(job.out, start.config, start.layers, job.dtype.value_or(by_shape));
  Json json = to_json(start.config);
  Json training = settings;
  training["command"] = job.command;
  training["steps_done"] = report.steps;
  training["best_step"] = report.best_step;
  training["tokens"] = report.tokens;
  training["seconds"] = std::round(report.seconds);
  json["training"] = std::move(training);
  AtomicFileWriter writer(job.out / "run_config.json");
  writer.write(json.dump(1) + "\n");
  writer.commit();
}

// Every second window is made a retrieval task where training has some: plain prose alone would not show
// whether rare keys are found.
std::vector<TrainingSequence> development_sequences(const TrainingJob& job, TextWindows text,
                                                    const Tokenizer& tokenizer) {
  std::vector<TrainingSequence> sequences;
  for (size_t i = 0; i < text.windows.size(); ++i) {
    sequences.push_back(i % 2 == 1 && job.options.packing.retrieval > 0
                            ? with_retrieval(std::move(text.windows[i]), tokenizer, SplitMix(i))
                            : TrainingSequence{std::move(text.windows[i]), {}});
  }
  return sequences;
}

void check_folder(const TrainingJob& job, const std::filesystem::path& checkpoint) {
  if (job.resume && !is_there(checkpoint)) {
    throw Error(ErrorKind::usage, job.out.string(), "no checkpoint.safetensors", "a run to resume",
                "leave --resume out to start one");
  }
  if (!job.resume && is_there(checkpoint)) {
    throw Error(ErrorKind::usage, job.out.string(), "an unfinished run", "an empty folder",
                "give --resume to go on, or another --out");
  }
}

}  // namespace

TrainingReport train_files(const TrainingJob& job) {
  const std::filesystem::path checkpoint = job.out / "checkpoint.safetensors";
  check_folder(job, checkpoint);
  const ModelLocation location = locate_model(job.model, {.folders = job.model_folders});
  const Tokenizer tokenizer = load_tokenizer(location);
  const TextPacker texts(job.texts, tokenizer, job.options.packing);
  TextWindows development;
  if (!job.development.empty()) {
    development =
        read_text_windows(job.development, tokenizer, job.development_windows, job.options.packing.window);
  }
  const std::shared_ptr<const Model> model = Model::load(location, job.model_options);
  tokenizer.check_fits(static_cast<int64_t>(model->config().vocabulary), location.path.string());

  Json settings = settings_of(job, *model, texts, development.sources);
  Start start =
      job.resume ? load_start(job.out / "start", model->shape()) : make_start(job, model, tokenizer);
  Trainer trainer(model, start.config, texts, development_sequences(job, std::move(development), tokenizer),
                  job.options);
  if (trainer.reach() > 0) settings["reach"] = trainer.reach();
  TrainingState state;
  state.layers = make_layers(job, start, model->shape());
  const auto save = [&](const TrainingState& now) { save_checkpoint(checkpoint, now, settings.dump()); };
  if (job.resume) {
    load_checkpoint(checkpoint, state, settings.dump());
  } else {
    save_indexer(job.out / "start", start.config, start.layers);
    save(state);
  }
  TrainingReport report;
  report.model = model->fingerprint_text();
  report.config = start.config;
  report.layers = state.layers.size();
  for (const TrainedLayer& layer : state.layers) {
    for (const TrainedTensor& tensor : std::as_const(*layer.student).tensors())
      report.parameters += tensor.value.size();
  }
  MetricsLog metrics(job.out / "metrics.jsonl", state.step);
  if (job.on_start) job.on_start(trainer.memory_bytes(state), report.parameters, state.step);
  report.end =
      trainer.run(state, save, [&](const Json& line) { metrics.write(line); }, job.on_step, job.cancel);
  report.steps = state.step;
  report.tokens = state.tokens;
  report.seconds = state.seconds;
  const bool has_best = std::isfinite(state.best_loss);
  report.best_step = has_best ? state.best_step : state.step;
  if (report.end == TrainingEnd::cancelled) return report;
  write_indexer(job, start, state, settings, report);
  std::error_code ignored;
  std::filesystem::remove(checkpoint, ignored);
  return report;
}

}  // namespace keysieve
