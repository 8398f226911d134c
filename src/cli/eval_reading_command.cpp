#include <fmt/format.h>

#include "cli/eval_arguments.h"
#include "cli/interrupt.h"
#include "eval/reading.h"
#include "eval/token_windows.h"

namespace keysieve::cli {
namespace {

class EvalReadingCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(R"(Examples:
  keysieve eval reading --text book.txt --window 1024 --budget 256
  keysieve eval reading --prompt "long text ..." --budget 64 --mode oracle --json > reading.json
  keysieve report reading.json --out report.html
Reads a text and tells, layer by layer, how much of full attention's probability lies on the positions that its last
queries read. JSON: `layers[{captured, best, recent, reads}]`, where `reads` has one string a query and in it one
digit a position: how many KV heads read it (0-9, then a-z).)");
    text_.add_text(app);
    add_count(app, "--window", window_, "tokens to read from the text's start")
        ->default_str(std::to_string(window_));
    app.add_option("--prompt", prompt_, "read this instead, whole, without chat template")
        ->type_name("TEXT")
        ->take_last();
    add_count(app, "--queries", options_.queries, "how many of the last tokens to look at")
        ->default_str(std::to_string(options_.queries));
    app.add_option("--mode", mode_, "sparse, dense, oracle, recent, random, snap-kv, h2o, streaming or quest")
        ->type_name("MODE")
        ->capture_default_str();
    arguments_.add(app);
  }

  int run() override {
    options_.mode = parse_attention_mode(mode_);
    const LanguageModel model = arguments_.model.load();
    const EvalSetting setting(model, arguments_.session_options(model));
    const std::vector<int32_t> tokens = prompt_.empty()
                                            ? token_windows(model.text(), text_.read(), window_, 1).front()
                                            : model.text().encode_prompt(prompt_);
    const InterruptGuard interrupt;
    options_.cancel = InterruptGuard::flag();
    const std::optional<Reading> reading = run_reading(setting, tokens, options_);
    if (!reading) {
      print_note("eval reading: interrupted");
      return kExitInterrupted;
    }
    if (arguments_.output.json) {
      print_json(to_json(*reading, tokens, setting));
    } else {
      print("layer  captured  best possible  most recent\n");
      for (size_t l = 0; l < reading->layers.size(); ++l) {
        const LayerReading& layer = reading->layers[l];
        print(fmt::format("{:>5} {:>8.1f}% {:>13.1f}% {:>11.1f}%\n", l, 100 * layer.captured,
                          100 * layer.best, 100 * layer.recent));
      }
    }
    return kExitFine;
  }

 private:
  Json to_json(const Reading& reading, const std::vector<int32_t>& tokens, const EvalSetting& setting) const {
    Json document = identity("reading", setting.language_model(), setting);
    Json pieces = Json::array();
    for (const int32_t& token : tokens)
      pieces.push_back(setting.language_model().text().decode(std::span(&token, 1)));
    Json layers = Json::array();
    for (const LayerReading& layer : reading.layers) {
      layers.push_back({{"captured", layer.captured},
                        {"best", layer.best},
                        {"recent", layer.recent},
                        {"reads", layer.reads}});
    }
    document.update({{"mode", mode_},
                     {"budget", setting.budget(options_.mode)},
                     {"tokens", pieces},
                     {"queries", reading.queries},
                     {"heads", reading.heads},
                     {"layers", layers}});
    return document;
  }

  TextArguments text_;
  size_t window_ = 1024;
  std::string prompt_;
  std::string mode_ = "sparse";
  ReadingOptions options_;
  EvalArguments arguments_;
};

}  // namespace

std::unique_ptr<Command> make_eval_reading_command() { return std::make_unique<EvalReadingCommand>(); }

}  // namespace keysieve::cli
