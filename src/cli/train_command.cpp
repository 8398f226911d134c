#include <fmt/format.h>

#include <filesystem>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/pulling.h"
#include "train/train_files.h"

namespace keysieve::cli {
namespace {

constexpr const char* kTrainExamples = R"(Examples:
  keysieve train --model smollm2-135m --text books/*.txt web.jsonl --dev held-out.txt --out trained
  keysieve train --model smollm2-135m --text books/*.txt --out trained --resume
  keysieve train --model m.gguf --text book.txt --init trained --layers 3,5-7 --out better
  keysieve train --model m.gguf --text book.txt --shape lightning --steps 100 --out card
The model stays as it is. A run that is stopped (Ctrl-C or a kill) goes on with the same command and --resume.
metrics.jsonl in --out has a line for every step.)";

DType parse_dtype(const std::string& text) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    if (to_string(dtype) == text) return dtype;
  }
  throw Error(ErrorKind::usage, "--dtype", '"' + text + '"', "f32, f16 or bf16");
}

// A line that rewrites itself on a terminal's standard error; elsewhere a note for every measurement on the
// development split.
class TrainingLine {
 public:
  TrainingLine() : live_(is_terminal(stderr)) {}
  TrainingLine(const TrainingLine&) = delete;
  TrainingLine& operator=(const TrainingLine&) = delete;
  ~TrainingLine() { wipe(); }

  void show(const TrainingProgress& p) {
    if (first_step_ == 0) {
      first_step_ = p.step;
      first_seconds_ = p.seconds;
      first_tokens_ = p.tokens;
    }
    if (p.development) {
      wipe();
      const LossMeasures& d = *p.development;
      print_note(
          fmt::format("step {}: development loss {:.4f}, {:.2f}% of the attention mass captured (best "
                      "selection {:.2f}%), "
                      "{:.1f}% of the decisive keys",
                      p.step, d.loss / d.rows, 100 * d.captured / d.rows, 100 * d.oracle / d.rows,
                      d.decisive > 0 ? 100 * d.found / d.decisive : 100.0));
    }
    if (!live_) return;
    std::string line = fmt::format("training {} of {}  loss {:.4f}  mass {:.1f}% (best {:.1f}%)", p.step,
                                   p.steps, p.loss, 100 * p.captured, 100 * p.oracle);
    const double seconds = p.seconds - first_seconds_;
    if (p.step > first_step_ && seconds > 0) {
      const double a_step = seconds / static_cast<double>(p.step - first_step_);
      line += fmt::format("  {:.0f} tok/s  {} left", static_cast<double>(p.tokens - first_tokens_) / seconds,
                          human_seconds(a_step * static_cast<double>(p.steps - p.step)));
    }
    const size_t width = terminal_width(stderr);
    if (line.size() + 1 > width) line.resize(width > 1 ? width - 1 : 0);
    fmt::print(stderr, "\r{}\x1b[K", line);
    std::fflush(stderr);
    shown_ = true;
  }

 private:
  void wipe() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
    shown_ = false;
  }
  bool live_;
  bool shown_ = false;
  size_t first_step_ = 0;
  double first_seconds_ = 0;
  uint64_t first_tokens_ = 0;
};

class TrainCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kTrainExamples);
    model_.add(app);
    app.remove_option(app.get_option("--kv"));
    app.add_option("--text", texts_, "texts to learn from: plain, or .jsonl with a \"text\" in each line")
        ->required()
        ->type_name("FILE");
    app.add_option("--out,-o", out_, "the folder to write")->required()->type_name("DIR");
    app.add_flag("--resume", job_.resume, "go on with the unfinished run in --out");
    app.add_option("--init", job_.start, "where weights start: calibrate, random, or an indexer's folder")
        ->default_str("calibrate");
    app.add_option("--shape", shape_, "native (the model's own q and k) or lightning (the hidden state)")
        ->default_str("native");
    add_count(app, "--rank", job_.rank, "native: values of an index key")->default_str("32");
    app.add_option("--layers", layers_, "train these only, like 3,5-7; the others keep their start");
    app.add_option("--selection", selection_, "shared or per-group; default by shape");
    app.add_option("--dtype", dtype_, "of the file: f32, f16 or bf16; default f32 for native, else bf16");
    add_data_options(app);
    add_loss_options(app);
    output_.add(app, false);
  }

  int run() override {
    fill_job();
    const InterruptGuard interrupt;
    job_.cancel = InterruptGuard::flag();
    job_.on_start = [&](uint64_t memory, uint64_t parameters, size_t step) {
      print_note(fmt::format("train: about {} of memory, {} parameters{}", human_bytes(memory),
                             human_count(parameters), step > 0 ? fmt::format(", from step {}", step) : ""));
    };
    TrainingLine line;
    double forward = 0;
    double learning = 0;
    job_.on_step = [&](const TrainingProgress& progress) {
      forward = progress.forward_seconds;
      learning = progress.learning_seconds;
      line.show(progress);
    };
    const TrainingReport report = train_files(job_);
    if (report.end == TrainingEnd::cancelled) {
      print_note(fmt::format("train: interrupted after step {}; the same command with --resume goes on",
                             report.steps));
      return kExitInterrupted;
    }
    show(report, forward, learning);
    return kExitFine;
  }

 private:
  void add_data_options(CLI::App& app) {
    TrainingOptions& o = job_.options;
    app.add_option("--dev", development_, "texts to measure on, never learnt from")->type_name("FILE");
    add_count(app, "--dev-windows", job_.development_windows, "pieces of them")->default_str("4");
    add_count(app, "--steps", o.steps, "steps of the optimiser")->default_str("300");
    add_count(app, "--batch", o.batch, "windows of a step")->default_str("1");
    add_count(app, "--window", o.packing.window, "tokens of a window")->default_str("4096");
    add_count(app, "--reach", o.reach,
              "native: positions to be good for, however long the windows are (the model's context, up to "
              "32k)");
    add_count(app, "--shortest", o.packing.shortest, "leave out shorter documents (tokens)")
        ->default_str("1024");
    add_number(app, "--retrieval", retrieval_, "share of windows with made-up facts or repeats to find again")
        ->default_str("0.25");
    add_count(app, "--queries", o.queries, "queries of a window that each layer learns from")
        ->default_str("128");
    add_count(app, "--seed", seed_, "of everything random")->default_str("1");
    add_count(app, "--eval-every", o.evaluate_every, "steps between measurements on --dev")
        ->default_str("25");
    add_count(app, "--patience", o.patience, "stop after so many measurements without a better one; 0: never")
        ->default_str("0");
    add_count(app, "--checkpoint-every", o.checkpoint_every, "steps")->default_str("20");
    add_count(app, "--memory", memory_megabytes_, "refuse to start where more megabytes are needed; 0: any")
        ->default_str("0");
    app.add_option("--states", states_, "learn from hidden states of the dense or the sparse forward")
        ->default_str("dense");
    app.add_flag("--exact-keys", exact_keys_, "score with unrounded index keys while learning");
  }

  void add_loss_options(CLI::App& app) {
    TrainingOptions& o = job_.options;
    add_number(app, "--rate", rate_, "peak learning rate, relative to the size of each matrix")
        ->default_str("0.01");
    add_number(app, "--weight-decay", weight_decay_, "of AdamW")->default_str("0.01");
    add_count(app, "--budget", job_.budget, "positions a query reads unless told otherwise")
        ->default_str("512");
    add_count(app, "--train-budget", o.loss.budget, "positions the losses assume")->default_str("256");
    add_count(app, "--sinks", o.loss.sinks, "of these, always the first")->default_str("4");
    add_count(app, "--recent", o.loss.recent, "of these, always the last")->default_str("16");
    add_number(app, "--sharpness", o.loss.sharpness,
               "learn attention with its logits times this (calibrated starts too)")
        ->default_str("1");
    add_number(app, "--kl", o.loss.divergence, "weight of KL(attention || indexer) over the heads' mean")
        ->default_str("1");
    add_number(app, "--head-kl", o.loss.head_divergence, "native: weight of the same for each head")
        ->default_str("0");
    add_number(app, "--support", o.loss.support, "weight of -log(indexer's mass on the best keys)")
        ->default_str("0.1");
    add_number(app, "--cut", o.loss.cut, "weight of the hinge that keeps decisive keys above the cut")
        ->default_str("0");
    add_number(app, "--margin", o.loss.margin, "of that hinge, in nats")->default_str("1");
    add_number(app, "--decisive", o.loss.decisive, "attention of one head that makes a key decisive")
        ->default_str("0.05");
    add_number(app, "--focus", o.loss.focus, "weigh queries by (attention on far keys)^F")->default_str("0");
  }

  void fill_job() {
    fetch_missing(model_.model, PullKind::model);
    job_.model = model_.model;
    job_.model_folders = default_model_folders();
    job_.model_options = model_.model_options();
    job_.texts.assign(texts_.begin(), texts_.end());
    job_.development.assign(development_.begin(), development_.end());
    job_.out = out_;
    job_.shape = parse_indexer_shape(shape_);
    if (!selection_.empty()) job_.scope = parse_selection_scope(selection_);
    if (!dtype_.empty()) job_.dtype = parse_dtype(dtype_);
    job_.layers = parse_layers(layers_, "--layers");
    TrainingOptions& o = job_.options;
    o.packing.retrieval = static_cast<double>(retrieval_);
    o.packing.seed = seed_;
    o.rate = static_cast<double>(rate_);
    o.adam.weight_decay = static_cast<double>(weight_decay_);
    o.memory_limit = memory_megabytes_ * 1'000'000;
    if (states_ != "dense" && states_ != "sparse")
      throw Error(ErrorKind::usage, "--states", '"' + states_ + '"', "dense or sparse");
    o.sparse_states = states_ == "sparse";
    o.keys = exact_keys_ ? ScoreKeys::exact : ScoreKeys::as_stored;
    job_.command = command();
  }

  // As one would type it again, with file names instead of this machine's paths.
  std::string command() const {
    const auto name = [](const std::string& path) {
      const std::filesystem::path whole(path);
      return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
    };
    const TrainingOptions& o = job_.options;
    std::string text = "keysieve train --model " + name(model_.model) + " --text";
    for (const std::string& file : texts_) text += " " + name(file);
    if (!development_.empty()) text += " --dev";
    for (const std::string& file : development_) text += " " + name(file);
    text += fmt::format(" --init {} --shape {} --rank {} --steps {} --batch {} --window {} --shortest {}",
                        name(job_.start), shape_, job_.rank, o.steps, o.batch, o.packing.window,
                        o.packing.shortest);
    text += fmt::format(" --retrieval {} --queries {} --seed {} --eval-every {} --patience {} --states {}",
                        retrieval_, o.queries, seed_, o.evaluate_every, o.patience, states_);
    text += fmt::format(" --rate {} --weight-decay {} --budget {} --train-budget {} --sinks {} --recent {}",
                        rate_, weight_decay_, job_.budget, o.loss.budget, o.loss.sinks, o.loss.recent);
    text += fmt::format(
        " --sharpness {} --kl {} --head-kl {} --support {} --cut {} --margin {} --decisive {} --focus {}",
        o.loss.sharpness, o.loss.divergence, o.loss.head_divergence, o.loss.support, o.loss.cut,
        o.loss.margin, o.loss.decisive, o.loss.focus);
    if (o.reach > 0) text += fmt::format(" --reach {}", o.reach);
    if (!layers_.empty()) text += " --layers " + layers_;
    if (!selection_.empty()) text += " --selection " + selection_;
    if (!dtype_.empty()) text += " --dtype " + dtype_;
    if (exact_keys_) text += " --exact-keys";
    return text + fmt::format(" --dev-windows {} --out {}", job_.development_windows, name(out_));
  }

  void show(const TrainingReport& report, double forward, double learning) const {
    const double speed = report.seconds > 0 ? static_cast<double>(report.tokens) / report.seconds : 0;
    if (output_.json) {
      print_json({{"out", out_},
                  {"model", report.model},
                  {"layers", report.layers},
                  {"parameters", report.parameters},
                  {"steps", report.steps},
                  {"stopped_early", report.end == TrainingEnd::stopped_early},
                  {"best_step", report.best_step},
                  {"tokens", report.tokens},
                  {"seconds", report.seconds},
                  {"tokens_per_second", speed},
                  {"forward_seconds", forward},
                  {"learning_seconds", learning}});
      return;
    }
    print(
        fmt::format("{}: {} layers, {} parameters, {} steps{} on {} tokens in {} ({:.0f} tok/s); "
                    "weights of step {}\n",
                    out_, report.layers, human_count(report.parameters), report.steps,
                    report.end == TrainingEnd::stopped_early ? " (stopped early)" : "",
                    human_count(report.tokens), human_seconds(report.seconds), speed, report.best_step));
  }

  ModelArguments model_;
  TrainingJob job_;
  std::vector<std::string> texts_;
  std::vector<std::string> development_;
  std::string out_;
  std::string shape_ = "native";
  std::string layers_;
  std::string selection_;
  std::string dtype_;
  std::string states_ = "dense";
  float retrieval_ = 0.25f;
  float rate_ = 0.01f;
  float weight_decay_ = 0.01f;
  size_t seed_ = 1;
  size_t memory_megabytes_ = 0;
  bool exact_keys_ = false;
  OutputArguments output_;
};

}  // namespace

std::unique_ptr<Command> make_train_command() { return std::make_unique<TrainCommand>(); }

}  // namespace keysieve::cli
