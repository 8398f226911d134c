#include <fmt/format.h>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/output.h"
#include "core/file_io.h"

namespace keysieve::cli {
namespace {

constexpr const char* kLogitsExamples = R"(Examples:
  keysieve logits --tokens ids.txt --out logits.npy
  keysieve logits --model tiny.gguf --kernels reference --tokens ids.json --out logits.npy
  keysieve logits --indexer auto --budget 256 --tokens ids.txt --out sparse.npy --selection read.json
The .npy is float32 [tokens, vocabulary]; it appears whole or, after Ctrl-C or an error, not at all.
The selection is [layer][query] -> ascending positions; one set per KV head: [layer][query][head] -> positions.)";

class LogitsCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kLogitsExamples);
    app.add_option("--tokens", tokens_,
                   "token ids: a JSON list, or separated by white space; - is standard input")
        ->required()
        ->type_name("FILE");
    app.add_option("--out,-o", out_, "the .npy to write")->required()->type_name("FILE.npy");
    model_.add(app);
    sparse_.add(app, SparseArguments::Aliases::no, SparseArguments::Selection::or_file);
    output_.add(app, true);
  }

  int run() override {
    const std::string text = tokens_ == "-" ? read_stdin() : read_text_file(tokens_);
    const std::vector<int32_t> ids = parse_token_ids(text, tokens_ == "-" ? "standard input" : tokens_);
    const LanguageModel model = model_.load();
    Session session(model, sparse_.session_options(model));
    const InterruptGuard interrupt;
    Progress progress("computing logits");
    const auto on_rows = [&](size_t done, size_t total) { progress.update(done, total); };
    const double start = now_seconds();
    if (!session.write_logits(ids, out_, sparse_.selection_file, InterruptGuard::flag(), on_rows)) {
      print_note("logits: interrupted; no file was written");
      return kExitInterrupted;
    }
    const double seconds = now_seconds() - start;
    if (output_.json) {
      Json document = {{"tokens", ids.size()},
                       {"vocabulary", model.info().vocabulary},
                       {"out", out_},
                       {"seconds", seconds},
                       {"memory", to_json(session.statistics().memory)}};
      if (!sparse_.selection_file.empty()) document["selection"] = sparse_.selection_file;
      print_json(document);
    }
    if (output_.stats) {
      print_note(fmt::format("{} tokens in {}, {:.0f} tok/s, {:.0f} positions a query", ids.size(),
                             human_seconds(seconds), static_cast<double>(ids.size()) / seconds,
                             session.statistics().prefill.positions_read));
    }
    return kExitFine;
  }

 private:
  std::string tokens_;
  std::string out_;
  ModelArguments model_;
  SparseArguments sparse_;
  OutputArguments output_;
};

}  // namespace

std::unique_ptr<Command> make_logits_command() { return std::make_unique<LogitsCommand>(); }

}  // namespace keysieve::cli
