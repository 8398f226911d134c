#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/eval_arguments.h"
#include "cli/interrupt.h"
#include "core/file_io.h"
#include "eval/needle.h"

namespace keysieve::cli {
namespace {

constexpr const char* kEvalNeedleExamples = R"(Examples:
  keysieve eval needle --haystack book.txt --budget 256
  keysieve eval needle --haystack a.txt b.txt --contexts 4096,8k --trials 50 --modes dense,sparse --json
  keysieve eval needle --dense --modes dense,recent --budget 512
  keysieve eval needle --haystack a.txt --budgets 128,256,512 --modes dense,sparse --resume needle.part --json
"The secret code is NNNN." stands in prose, at depths spread evenly over the trials; the question comes last.
Other forms: words (asked for in other words than it is told in), pairs (the value of one of eight keys), two
(two codes, both asked for), keys (each of eight keys in turn: eight trials share a text, which is read once).
A trial passes where the greedy answer (16 tokens; 32 for two) names every code.
Also told, with the answer begun as the text has it: `strict`, all the codes' tokens are the greedy choice, and
their mean negative log likelihood.)";

class EvalNeedleCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kEvalNeedleExamples);
    add_list(app, "--contexts", contexts_,
             "tokens of prompt and answer together; without it 4096, or 2048 without --haystack");
    add_count(app, "--trials", trials_, "for each context and mode")->default_str("20");
    app.add_option("--haystack", haystacks_, "plain texts, used in turn; without it, the demo's document")
        ->type_name("FILE");
    add_list(app, "--modes", modes_, "dense, sparse, oracle, recent, random, snap-kv, h2o, streaming, quest")
        ->default_str("dense,sparse,oracle,recent");
    app.add_option("--protocol", protocol_,
                   "in-prompt: the question is read with the text; after: once the text has been read and a "
                   "fixed cache has been cut")
        ->check(CLI::IsMember({"in-prompt", "after"}))
        ->type_name("P")
        ->capture_default_str();
    app.add_option("--form", form_, "what is hidden and asked: code, words, pairs, two or keys")
        ->type_name("F")
        ->capture_default_str();
    add_list(app, "--budgets", budgets_, "run every mode at each of these, dense once; instead of --budget");
    add_resume(app, resume_);
    add_count(app, "--seed", seed_, "of the codes and the places in the text")->default_str("1");
    arguments_.add(app);
  }

  int run() override {
    NeedleOptions options;
    options.contexts = parse_counts(
        contexts_.empty() ? std::vector<std::string>{haystacks_.empty() ? "2048" : "4096"} : contexts_,
        "--contexts");
    options.trials = trials_;
    options.modes = parse_modes(modes_);
    options.seed = seed_;
    options.form = parse_needle_form(form_);
    if (protocol_ == "after") options.protocol = NeedleProtocol::after;
    for (const std::string& file : haystacks_) options.haystacks.push_back(read_text_file(file));
    if (haystacks_.empty()) options.haystacks.push_back(default_haystack());
    options.budgets = parse_counts(budgets_, "--budgets");
    if (arguments_.sparse.budget == 0 && !options.budgets.empty())
      arguments_.sparse.budget = options.budgets.front();
    const LanguageModel model = arguments_.model.load();
    const EvalSetting setting(model, arguments_.session_options(model));
    PartialResults partial(resume_, question(setting, options));
    if (partial.size() > 0)
      print_note(fmt::format("eval needle: {} trials are done already", partial.size()));
    options.partial = &partial;
    const InterruptGuard interrupt;
    options.cancel = InterruptGuard::flag();
    Progress progress("needles");
    options.on_progress = [&](size_t done, size_t total) { progress.update(done, total); };
    const std::optional<NeedleResult> result = run_needle(setting, options);
    if (!result) {
      print_note("eval needle: interrupted");
      return kExitInterrupted;
    }
    if (arguments_.output.json) {
      print_json(to_json(*result, setting));
    } else {
      show(*result);
    }
    return kExitFine;
  }

 private:
  // What the trials depend on. The budget is part of each one's own key.
  Json question(const EvalSetting& setting, const NeedleOptions& options) const {
    Json question = identity("needle", setting.language_model(), setting);
    question.update({{"setting", setting.describe()},
                     {"trials", options.trials},
                     {"protocol", protocol_},
                     {"form", form_},
                     {"seed", seed_}});
    question["haystacks"] = digest_of(options.haystacks);
    return question;
  }

  Json to_json(const NeedleResult& result, const EvalSetting& setting) const {
    Json rows = Json::array();
    for (const NeedleRow& row : result.rows) {
      rows.push_back({{"context", row.context},
                      {"budget", row.budget},
                      {"mode", to_string(row.mode)},
                      {"passed", row.passed},
                      {"trials", row.trials},
                      {"wilson95", row.wilson95},
                      {"passed_of_dense", row.passed_of_dense ? Json(*row.passed_of_dense) : Json()},
                      {"strict", row.strict},
                      {"code_nll", or_null(row.code_nll)},
                      {"prefill_seconds", row.prefill_seconds},
                      {"positions_read", row.positions_read},
                      {"peak_rss_bytes", row.peak_rss_bytes}});
    }
    Json trials = Json::array();
    for (const NeedleTrial& trial : result.trials) {
      trials.push_back({{"context", trial.context},
                        {"mode", to_string(trial.mode)},
                        {"budget", trial.budget},
                        {"depth", trial.depth},
                        {"code", fmt::format("{}", fmt::join(trial.codes, " "))},
                        {"answer", trial.answer},
                        {"passed", trial.passed},
                        {"strict", trial.strict},
                        {"code_nll", or_null(trial.code_nll)}});
    }
    Json document = identity("needle", setting.language_model(), setting);
    document.update(
        {{"rows", rows}, {"trials", trials}, {"protocol", protocol_}, {"form", form_}, {"seed", seed_}});
    return document;
  }

  static void show(const NeedleResult& result) {
    print(fmt::format("{:>8} {:>7} {:>7} {:>9} {:>13} {:>7} {:>9} {:>10} {:>9}\n", "context", "mode",
                      "budget", "passed", "95%", "strict", "code NLL", "prefill", "peak RSS"));
    for (const NeedleRow& row : result.rows) {
      print(fmt::format("{:>8} {:>7} {:>7} {:>9} {:>13} {:>7} {:>9} {:>10} {:>9}\n", row.context,
                        to_string(row.mode), row.budget == 0 ? "-" : std::to_string(row.budget),
                        fmt::format("{}/{}", row.passed, row.trials),
                        fmt::format("{:.0f}-{:.0f}%", 100 * row.wilson95[0], 100 * row.wilson95[1]),
                        row.strict, row.code_nll ? fmt::format("{:.2f}", *row.code_nll) : "-",
                        human_seconds(row.prefill_seconds), human_bytes(row.peak_rss_bytes)));
    }
  }

  std::vector<std::string> contexts_;
  size_t trials_ = 20;
  std::vector<std::string> haystacks_;
  std::vector<std::string> budgets_;
  std::string resume_;
  std::vector<std::string> modes_{"dense", "sparse", "oracle", "recent"};
  std::string protocol_ = "in-prompt";
  std::string form_ = "code";
  size_t seed_ = 1;
  EvalArguments arguments_;
};

}  // namespace

std::unique_ptr<Command> make_eval_needle_command() { return std::make_unique<EvalNeedleCommand>(); }

}  // namespace keysieve::cli
