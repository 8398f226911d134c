#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/pulling.h"
#include "train/calibrate.h"

namespace keysieve::cli {
namespace {

constexpr const char* kCalibrateExamples = R"(Examples:
  keysieve calibrate --model smollm2-135m --text book.txt web.jsonl --out indexers/smollm2-135m
  keysieve calibrate --model model.gguf --text book.txt --out small --rank 16 --windows 4 --window 2048
Texts are plain, or .jsonl with a "text" in each line. --indexer auto finds what lies in indexers/.)";

class CalibrateCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kCalibrateExamples);
    model_.add(app);
    // Calibration keeps keys and values as the model does by default: rounding them changes no moment.
    app.remove_option(app.get_option("--kv"));
    app.add_option("--text", texts_,
                   "texts like those the model will read; several files are better than one")
        ->required()
        ->type_name("FILE");
    app.add_option("--out,-o", out_, "the folder to write: indexer.safetensors and run_config.json")
        ->required()
        ->type_name("DIR");
    app.add_option("--shape", shape_,
                   "native (the model's own q and k) or lightning (the hidden state, as published)")
        ->default_str("native");
    add_count(app, "--rank", rank_,
              "native: values of an index key; more cost memory and find rare keys more surely")
        ->default_str("32");
    add_number(app, "--sharpness", sharpness_,
               "native: scores over the model's own logits: above 1, heads that look for few keys come first")
        ->default_str("1.5");
    add_count(app, "--windows", windows_, "pieces of text, spread over the files")->default_str("12");
    add_count(app, "--window", window_, "tokens of each piece")->default_str("4096");
    add_count(app, "--reach", reach_,
              "positions to be good for, however long the pieces are (the model's context, up to 32k)");
    add_count(app, "--budget", budget_, "positions a query reads unless told otherwise")->default_str("512");
    add_count(app, "--budget-total", budget_total_,
              "instead of --budget: positions all layers read together, spread by the attention they catch");
    app.add_option("--dense-layers", dense_layers_, "layers that read everything, like 0,2-3")
        ->type_name("LIST");
    add_count(app, "--sinks", sinks_, "of these, always the first")->default_str("4");
    add_count(app, "--recent", recent_, "of these, always the last")->default_str("16");
    app.add_option("--index-keys", index_keys_,
                   "how keys are stored unless told otherwise: i4 (4 bits a value), i8 or f32; default i4, "
                   "lightning f32")
        ->type_name("KIND");
    add_count(app, "--query-block", query_block_,
              "neighbouring queries of a prompt that choose keys together")
        ->default_str("4");
    add_count(app, "--refine", refine_,
              "in decode and at a prompt's end, attention chooses among so many positions")
        ->default_str("0");
    add_count(app, "--refine-prompt", refine_prompt_, "the same for a prompt before its end")
        ->default_str("0");
    app.add_option("--refine-layers", refine_layers_, "layers that both hold for, like 0,2-3; default all")
        ->type_name("LIST");
    output_.add(app, false);
  }

  int run() override {
    CalibrationJob job;
    fetch_missing(model_.model, PullKind::model);
    job.model = model_.model;
    job.model_folders = default_model_folders();
    job.model_options = model_.model_options();
    job.texts.assign(texts_.begin(), texts_.end());
    job.windows = windows_;
    job.window = window_;
    job.out = out_;
    job.command = command();
    job.options.rank = rank_;
    job.options.sharpness = sharpness_;
    job.options.reach = reach_;
    job.options.budget = budget_;
    job.options.budget_total = budget_total_;
    job.options.dense_layers = parse_layers(dense_layers_, "--dense-layers");
    job.options.sinks = sinks_;
    job.options.recent = recent_;
    job.options.query_block = query_block_;
    job.options.refine = refine_;
    job.options.refine_prompt = refine_prompt_;
    job.options.refine_layers = parse_layers(refine_layers_, "--refine-layers");
    job.options.shape = parse_indexer_shape(shape_);
    if (!index_keys_.empty()) job.options.index_keys = parse_index_key_choice(index_keys_);
    const InterruptGuard interrupt;
    job.options.cancel = InterruptGuard::flag();
    Progress progress("calibrating");
    job.options.on_progress = [&](size_t done, size_t total) { progress.update(done, total); };
    const double start = now_seconds();
    const std::optional<CalibrationReport> report = calibrate_files(job);
    if (!report) {
      print_note("calibrate: interrupted; no file was written");
      return kExitInterrupted;
    }
    show(*report, now_seconds() - start);
    return kExitFine;
  }

 private:
  // As one would type it again, with file names instead of this machine's paths.
  std::string command() const {
    const auto name = [](const std::string& path) {
      const std::filesystem::path whole(path);
      return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
    };
    std::string text = "keysieve calibrate --model " + name(model_.model) + " --text";
    for (const std::string& file : texts_) text += " " + name(file);
    if (budget_total_ > 0) text += fmt::format(" --budget-total {}", budget_total_);
    if (!dense_layers_.empty()) text += " --dense-layers " + dense_layers_;
    if (reach_ > 0) text += fmt::format(" --reach {}", reach_);
    if (refine_ > 0) text += fmt::format(" --refine {}", refine_);
    if (!refine_layers_.empty()) text += " --refine-layers " + refine_layers_;
    if (refine_prompt_ > 0) text += fmt::format(" --refine-prompt {}", refine_prompt_);
    if (!index_keys_.empty()) text += " --index-keys " + index_keys_;
    text += shape_ == "native" ? fmt::format(" --rank {} --sharpness {}", rank_, sharpness_)
                               : " --shape " + shape_;
    return text +
           fmt::format(
               " --windows {} --window {} --budget {} --sinks {} --recent {} --query-block {} --out {}",
               windows_, window_, budget_, sinks_, recent_, query_block_, name(out_));
  }

  void show(const CalibrationReport& report, double seconds) const {
    const IndexerConfig& config = report.config;
    if (output_.json) {
      Json texts = Json::array();
      for (const TextSource& source : report.sources)
        texts.push_back({{"name", source.name}, {"bytes", source.bytes}, {"windows", source.windows}});
      print_json({{"out", out_},
                  {"model", report.model},
                  {"shape", shape_},
                  {"layers", report.config.layers},
                  {"rank", report.config.dim},
                  {"sharpness", sharpness_},
                  {"budget", config.budget},
                  {"budgets", config.budgets},
                  {"captured", report.captured},
                  {"parameters", report.parameters},
                  {"tokens", report.tokens},
                  {"reach", report.reach},
                  {"texts", texts},
                  {"kept_energy_mean", report.kept_energy_mean},
                  {"kept_energy_least", report.kept_energy_least},
                  {"seconds", seconds}});
      return;
    }
    print(fmt::format(
        "{}: {} layers, {} values a key, {} parameters from {} tokens in {}\n"
        "{:.1f}% of the scores' energy kept (least in one {}: {:.1f}%)\n",
        out_, report.config.layers, report.config.dim, human_count(report.parameters),
        human_count(report.tokens), human_seconds(seconds), 100 * report.kept_energy_mean,
        config.shape == IndexerShape::native ? "group" : "layer", 100 * report.kept_energy_least));
    if (report.captured > 0) {
      print(fmt::format("{:.1f}% of the attention caught by budgets of {}\n", 100 * report.captured,
                        fmt::join(config.budgets, ", ")));
    }
  }

  ModelArguments model_;
  std::vector<std::string> texts_;
  std::string out_;
  std::string shape_ = "native";
  size_t rank_ = 32;
  float sharpness_ = 1.5f;
  size_t windows_ = 12;
  size_t window_ = 4096;
  size_t reach_ = 0;
  size_t budget_ = 512;
  size_t budget_total_ = 0;
  std::string dense_layers_;
  std::string index_keys_;
  size_t query_block_ = 4;
  size_t refine_ = 0;
  size_t refine_prompt_ = 0;
  std::string refine_layers_;
  size_t sinks_ = 4;
  size_t recent_ = 16;
  OutputArguments output_;
};

}  // namespace

std::unique_ptr<Command> make_calibrate_command() { return std::make_unique<CalibrateCommand>(); }

}  // namespace keysieve::cli
