#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "core/cancel.h"
#include "core/split_mix.h"
#include "indexer/indexer.h"
#include "indexer/selection_policy.h"
#include "indexer/selectors.h"
#include "keysieve/error.h"
#include "model/forward.h"
#include "train/reach.h"

namespace keysieve {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double mean(double sum, const LossMeasures& measures) {
  return measures.rows > 0 ? sum / measures.rows : 0.0;
}

// Six digits: what a plot can show, the same on every machine that computed the same.
double rounded(double value) {
  return std::isfinite(value) ? std::round(value * 1e6) / 1e6 : std::numeric_limits<double>::max();
}

// One layer's rows as they would be further from the text's beginning. RoPE is relative: all of them are
// turned by the same angles more, and what attention reads stays the same.
class MovedRows {
 public:
  MovedRows(const Model& model, size_t tokens, size_t start) : model_(model) {
    if (start == 0) return;
    RopeTable turn = model.rope();
    turn.scale = 1.0f;  // YaRN's factor is in the rows already
    const std::vector<int32_t> positions(tokens, static_cast<int32_t>(start));
    angles_.compute(turn, positions);
  }

  // The same view where the start is 0. Its pointers last until the next call.
  LayerView move(const LayerView& view) {
    if (angles_.pairs == 0) return view;
    const ModelConfig& c = model_.config();
    q_.assign(view.q, view.q + view.tokens * c.q_width());
    k_.assign(view.k, view.k + view.tokens * c.kv_width());
    model_.kernels().rotate(q_.data(), c.q_width(), angles_, view.tokens, c.heads, c.head_dim);
    model_.kernels().rotate(k_.data(), c.kv_width(), angles_, view.tokens, c.kv_heads, c.head_dim);
    LayerView moved = view;
    moved.q = q_.data();
    moved.k = k_.data();
    return moved;
  }

 private:
  const Model& model_;
  RopeAngles angles_;     // of no pairs: nothing moves
  std::vector<float> q_;  // [tokens, heads, head_dim]
  std::vector<float> k_;  // [tokens, kv_heads, head_dim]
};

Json to_json(const LossMeasures& measures) {
  return {{"loss", rounded(mean(measures.loss, measures))},
          {"divergence", rounded(mean(measures.divergence, measures))},
          {"head_divergence", rounded(mean(measures.head_divergence, measures))},
          {"support", rounded(mean(measures.support, measures))},
          {"cut", rounded(mean(measures.cut, measures))},
          {"captured", rounded(mean(measures.captured, measures))},
          {"oracle", rounded(mean(measures.oracle, measures))},
          {"decisive_found", measures.decisive > 0 ? rounded(measures.found / measures.decisive) : 1.0}};
}

}  // namespace

struct Trainer::Impl {
  Impl(std::shared_ptr<const Model> for_model, IndexerConfig for_config, const TextPacker& from,
       std::vector<TrainingSequence> sequences, const TrainingOptions& with)
      : model(std::move(for_model)),
        config(std::move(for_config)),
        texts(from),
        development(std::move(sequences)),
        options(with),
        shape(model->shape()),
        reach(config.shape == IndexerShape::native ? reach_of(options.reach, model->config().context) : 0),
        starts(window_starts(options.packing.window, reach)),
        scratch(model->threads()) {}

  // One sequence through the model, every trained layer learning from it. `weight` 0: only measured.
  LossMeasures learn_sequence(TrainingState& state, const TrainingSequence& sequence, size_t queries,
                              float weight, uint64_t seed);
  LossMeasures step(TrainingState& state);
  void new_sequence_state(TrainingState& state);

  std::shared_ptr<const Model> model;
  IndexerConfig config;
  const TextPacker& texts;
  std::vector<TrainingSequence> development;
  TrainingOptions options;
  ModelShape shape;
  size_t reach;  // positions
  std::vector<WindowStart> starts;
  KernelScratch scratch;
  std::optional<SequenceState> sequence_state;
  double learning_seconds = 0;
  double forward_seconds = 0;
};

// A chunk is a whole window: every layer then shows itself in one piece and only one layer is held at a time.
void Trainer::Impl::new_sequence_state(TrainingState& state) {
  SequenceOptions sequence;
  sequence.context = options.packing.window;
  sequence.max_chunk = options.packing.window;
  if (options.sparse_states) {
    std::vector<IndexerLayerWeights> layers(shape.layers);
    for (const TrainedLayer& layer : state.layers) layers[layer.index] = layer.student->weights();
    SelectionPolicy policy = SelectionPolicy::from(config);
    policy.budget = options.loss.budget;
    policy.budgets.clear();
    const auto indexer =
        std::make_shared<const Indexer>(config, layers, shape, model->shared_kernels(), model->threads());
    sequence.selector = std::make_shared<LearnedSelector>(indexer, policy);
  }
  sequence_state.emplace(model, sequence);
}

LossMeasures Trainer::Impl::learn_sequence(TrainingState& state, const TrainingSequence& sequence,
                                           size_t queries, float weight, uint64_t seed) {
  LossMeasures sum;
  KernelContext context{model->kernels(), model->threads(), scratch};
  std::vector<float> hidden;
  ForwardTaps taps;
  const auto trained = [&](size_t layer) -> TrainedLayer* {
    for (TrainedLayer& candidate : state.layers) {
      if (candidate.index == layer) return &candidate;
    }
    return nullptr;
  };
  if (config.shape == IndexerShape::seed) {
    taps.normed_input = [&](const TapPlace& place, const float* x) {
      if (trained(place.layer)) hidden.assign(x, x + place.tokens * shape.hidden);
    };
  }
  MovedRows rows(*model, sequence.tokens.size(), draw_start(starts, ~seed));
  double learning = 0;
  taps.projections = [&](const TapPlace& place, const float* q, const float* k, const float*) {
    TrainedLayer* const layer = trained(place.layer);
    if (!layer) return;
    const double start = now();
    const LayerView view = rows.move({place.layer, place.tokens, hidden.data(), q, k});
    const Teacher teacher(view, shape, options.loss.sharpness);
    const uint64_t own_seed = SplitMix(seed ^ (place.layer * 0xd1342543de82ef95u)).next();
    const std::vector<uint32_t> chosen =
        sample_queries(place.tokens, queries, options.loss.budget, sequence.marked, own_seed);
    sum.add(layer->student->learn(view, teacher, chosen, options.loss, weight, context));
    learning += now() - start;
  };
  const double start = now();
  sequence_state->clear();
  forward(*sequence_state, sequence.tokens, {.logits = Logits::none, .taps = &taps});
  learning_seconds += learning;
  forward_seconds += now() - start - learning;
  return sum;
}

LossMeasures Trainer::Impl::step(TrainingState& state) {
  if (options.sparse_states || !sequence_state) new_sequence_state(state);
  LossMeasures sum;
  const size_t sets = state.layers.front().student->sets();
  const auto weight = static_cast<float>(
      1.0 / (static_cast<double>(options.queries) * static_cast<double>(sets * options.batch)));
  for (size_t b = 0; b < options.batch; ++b) {
    const uint64_t seed = options.packing.seed * 0x9e3779b97f4a7c15u + state.cursor;
    const std::vector<TrainingSequence> sequences = texts.next(state.cursor);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const size_t share = options.queries * sequences[i].tokens.size() / options.packing.window;
      sum.add(
          learn_sequence(state, sequences[i], std::max<size_t>(share, 1), weight, seed + i * 0x2545f491u));
      state.tokens += sequences[i].tokens.size();
    }
  }
  const double start = now();
  const double rate = scheduled_rate(state.step, options.steps, options.rate);
  for (TrainedLayer& layer : state.layers)
    adam_step(layer.student->tensors(), state.step, rate, options.adam);
  ++state.step;
  learning_seconds += now() - start;
  return sum;
}

Trainer::Trainer(std::shared_ptr<const Model> model, IndexerConfig config, const TextPacker& texts,
                 std::vector<TrainingSequence> development, const TrainingOptions& options)
    : impl_(std::make_unique<Impl>(std::move(model), std::move(config), texts, std::move(development),
                                   options)) {
  const TrainingOptions& o = impl_->options;
  const auto need = [](bool fine, const char* what, const std::string& found, const char* expected) {
    if (!fine) throw Error(ErrorKind::usage, what, found, expected);
  };
  need(o.steps > 0 && o.batch > 0 && o.queries > 0, "training",
       fmt::format("{} steps of {} windows with {} queries", o.steps, o.batch, o.queries),
       "at least 1 of each");
  need(std::isfinite(o.rate) && o.rate > 0 && o.rate <= 1, "learning rate", fmt::format("{}", o.rate),
       "above 0, at most 1: it is relative to the size of each matrix");
  need(o.loss.budget >= o.loss.sinks + o.loss.recent, "budget", fmt::format("{}", o.loss.budget),
       "at least sinks and recent together");
  need(o.loss.sharpness >= 0.1f && o.loss.sharpness <= 10.0f, "sharpness",
       fmt::format("{}", o.loss.sharpness), "0.1 to 10");
  need(impl_->config.combine != IndexCombine::linear_sum, "indexer", "linear_sum",
       "an indexer whose heads' softmaxes are summed");
  need(o.evaluate_every > 0 && o.checkpoint_every > 0, "training", "evaluation or checkpoints every 0 steps",
       "at least 1");
  if (o.packing.window > impl_->model->config().context) {
    throw Error(ErrorKind::mismatch, "training windows", fmt::format("{} tokens", o.packing.window),
                fmt::format("at most {}, the model's context", impl_->model->config().context),
                "lower --window");
  }
}

Trainer::~Trainer() = default;

size_t Trainer::reach() const { return impl_->reach; }

uint64_t Trainer::memory_bytes(const TrainingState& state) const {
  const ModelConfig& c = impl_->model->config();
  const uint64_t window = impl_->options.packing.window;
  const uint64_t row = 3 * c.hidden + 2 * c.q_width() + 2 * c.kv_width() + 2 * c.mlp;
  const uint64_t kv = 2 * c.kv_width() * c.layers * (impl_->model->default_kv_type() == KvType::f32 ? 4 : 2);
  uint64_t parameters = 0;
  uint64_t working = 0;
  for (const TrainedLayer& layer : state.layers) {
    for (const TrainedTensor& tensor : std::as_const(*layer.student).tensors())
      parameters += tensor.value.size();
    working = std::max<uint64_t>(working, layer.student->working_bytes(window, impl_->options.queries,
                                                                       impl_->model->threads().count()));
  }
  const uint64_t teacher = window * c.kv_width() * sizeof(float);
  const uint64_t moved = impl_->starts.size() > 1 ? window * (c.q_width() + c.kv_width()) * sizeof(float) : 0;
  // A tokenizer takes about half a kilobyte a token; rows of the embedding are read from the mapped file.
  const uint64_t vocabulary = c.vocabulary * (512 + c.hidden);
  return impl_->model->weights_bytes() + vocabulary + impl_->texts.bytes() +
         window * (row * sizeof(float) + kv) + working + teacher + moved + parameters * 5 * sizeof(float);
}

LossMeasures Trainer::evaluate(TrainingState& state) {
  if (impl_->options.sparse_states || !impl_->sequence_state) impl_->new_sequence_state(state);
  LossMeasures sum;
  for (size_t i = 0; i < impl_->development.size(); ++i) {
    sum.add(impl_->learn_sequence(state, impl_->development[i], impl_->options.queries, 0.0f, i));
  }
  return sum;
}

TrainingEnd Trainer::run(TrainingState& state, const std::function<void(const TrainingState&)>& save,
                         const std::function<void(const Json&)>& log,
                         const std::function<void(const TrainingProgress&)>& on_step,
                         const std::atomic<bool>* cancel) {
  const TrainingOptions& options = impl_->options;
  if (options.sparse_states && state.layers.size() != impl_->shape.layers) {
    throw Error(ErrorKind::usage, "sparse states", fmt::format("{} layers", state.layers.size()),
                "all layers of the model, because all of them read sparsely");
  }
  const uint64_t memory = memory_bytes(state);
  if (options.memory_limit > 0 && memory > options.memory_limit) {
    throw Error(ErrorKind::resource, "training", fmt::format("about {} bytes", memory),
                fmt::format("at most {}", options.memory_limit), "lower --window or --queries");
  }
  const double begin = now() - state.seconds;
  const auto measure = [&] {
    const LossMeasures development = evaluate(state);
    const double loss = mean(development.loss, development);
    Json line{{"step", state.step}, {"development", to_json(development)}};
    if (loss < state.best_loss) {
      state.best_loss = loss;
      state.best_step = state.step;
      state.stale = 0;
      for (TrainedLayer& layer : state.layers) {
        layer.best.clear();
        for (const TrainedTensor& tensor : layer.student->tensors()) layer.best.push_back(tensor.value);
      }
    } else {
      ++state.stale;
    }
    log(line);
    return development;
  };
  const bool develops = !impl_->development.empty();
  if (develops && state.step == 0) measure();
  while (state.step < options.steps) {
    if (is_cancelled(cancel)) {
      state.seconds = now() - begin;
      save(state);
      return TrainingEnd::cancelled;
    }
    const LossMeasures measures = impl_->step(state);
    Json line = to_json(measures);
    line["step"] = state.step;
    line["rate"] = scheduled_rate(state.step - 1, options.steps, options.rate);
    line["tokens"] = state.tokens;
    line["seconds"] = rounded(now() - begin);
    log(line);
    std::optional<LossMeasures> development;
    if (develops && (state.step % options.evaluate_every == 0 || state.step == options.steps))
      development = measure();
    state.seconds = now() - begin;
    if (state.step % options.checkpoint_every == 0 || state.step == options.steps) save(state);
    if (on_step) {
      on_step({state.step, options.steps, state.tokens, state.seconds, impl_->learning_seconds,
               impl_->forward_seconds, mean(measures.loss, measures), mean(measures.captured, measures),
               mean(measures.oracle, measures), development ? &*development : nullptr});
    }
    if (options.patience > 0 && state.stale >= options.patience) return TrainingEnd::stopped_early;
  }
  return TrainingEnd::finished;
}

}  // namespace keysieve
