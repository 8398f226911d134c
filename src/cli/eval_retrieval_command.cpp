#include <fmt/format.h>

#include "cli/eval_arguments.h"
#include "cli/interrupt.h"
#include "core/file_io.h"
#include "eval/retrieval_layers.h"

namespace keysieve::cli {
namespace {

constexpr const char* kEvalRetrievalExamples = R"(Examples:
  keysieve eval retrieval --haystack a.txt b.txt --length 16k --budget 256 --refine 2048
  keysieve eval retrieval --haystack a.txt --length 30000 --budget 256 --refine 2048 --layers 10,11 --layers 8-15 --json
Needles as `eval needle` hides them. Each text is read once; the question and the answer then run dense, by the
indexer alone, with every layer refined, and with each layer alone (or each --layers list). Where a list does as
well as all layers, `--refine-layers`, or refine_layers in run_config.json, saves the rest. Choose on texts that
nothing is judged by. `over none`: the mean of what a row's NLL is above that without refining, prompt by prompt,
and its standard error. `KL`: of dense's next tokens from the row's, along the task's own answer. JSON:
`rows[{kind, layers, passed, trials, code_nll, over_none, over_none_error, kl, each, each_kl, each_passed}]`.)";

class EvalRetrievalCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kEvalRetrievalExamples);
    app.add_option("--length", length_,
                   "tokens of prompt and answer together; without it 4096, or 2048 without --haystack")
        ->type_name("N")
        ->take_last();
    add_count(app, "--trials", options_.trials, "texts with a needle each")->default_str("3");
    app.add_option("--haystack", haystacks_, "plain texts, used in turn; without it, the demo's document")
        ->type_name("FILE");
    app.add_option("--layers", layers_,
                   "refine these, like 3,5-7; again for another row; without it, each layer alone")
        ->type_name("LIST")
        ->allow_extra_args(false);
    app.add_option("--form", form_, "what is hidden and asked: code, words, pairs, two or keys")
        ->type_name("F")
        ->capture_default_str();
    add_count(app, "--seed", seed_, "of the codes and the places in the text")->default_str("1");
    add_resume(app, resume_);
    arguments_.add(app);
  }

  int run() override {
    if (length_.empty()) length_ = haystacks_.empty() ? "2048" : "4096";
    options_.context = parse_counts({length_}, "--length").front();
    options_.seed = seed_;
    options_.form = parse_needle_form(form_);
    for (const std::string& file : haystacks_) options_.haystacks.push_back(read_text_file(file));
    if (haystacks_.empty()) options_.haystacks.push_back(default_haystack());
    for (const std::string& list : layers_) options_.sets.push_back(parse_layers(list, "--layers"));
    const LanguageModel model = arguments_.model.load();
    const EvalSetting setting(model, arguments_.session_options(model));
    PartialResults partial(resume_, question(setting));
    if (partial.size() > 0)
      print_note(fmt::format("eval retrieval: {} questions are done already", partial.size()));
    options_.partial = &partial;
    const InterruptGuard interrupt;
    options_.cancel = InterruptGuard::flag();
    Progress progress("questions");
    options_.on_progress = [&](size_t done, size_t total) { progress.update(done, total); };
    const auto rows = run_retrieval_layers(setting, options_);
    if (!rows) {
      print_note("eval retrieval: interrupted");
      return kExitInterrupted;
    }
    if (arguments_.output.json) {
      print_json(to_json(*rows, setting));
    } else {
      show(*rows);
    }
    return kExitFine;
  }

 private:
  // What an answer depends on, but for the row it belongs to.
  Json question(const EvalSetting& setting) const {
    Json question = identity("retrieval", setting.language_model(), setting);
    question.update({{"setting", setting.describe()},
                     {"budget", setting.policy().budget},
                     {"budgets", setting.policy().budgets},
                     {"context", options_.context},
                     {"trials", options_.trials},
                     {"form", form_},
                     {"seed", seed_}});
    question["haystacks"] = digest_of(options_.haystacks);
    return question;
  }

  Json to_json(const std::vector<RetrievalRow>& rows, const EvalSetting& setting) const {
    Json list = Json::array();
    for (const RetrievalRow& row : rows) {
      list.push_back({{"kind", to_string(row.kind)},
                      {"layers", row.layers},
                      {"passed", row.passed},
                      {"trials", row.each.size()},
                      {"code_nll", row.code_nll},
                      {"over_none", row.over_none},
                      {"over_none_error", row.over_none_error},
                      {"kl", row.kl},
                      {"each", row.each},
                      {"each_kl", row.each_kl},
                      {"each_passed", row.each_passed}});
    }
    Json document = identity("retrieval", setting.language_model(), setting);
    document.update({{"rows", list},
                     {"context", options_.context},
                     {"budget", setting.policy().budget},
                     {"form", form_},
                     {"seed", seed_}});
    return document;
  }

  static void show(const std::vector<RetrievalRow>& rows) {
    print(
        fmt::format("{:<24} {:>9} {:>9} {:>18} {:>8}\n", "refined", "passed", "code NLL", "over none", "KL"));
    for (const RetrievalRow& row : rows) {
      const std::string over = row.kind == RetrievalRow::Kind::none
                                   ? "-"
                                   : fmt::format("{:+.4f} +- {:.4f}", row.over_none, row.over_none_error);
      print(fmt::format("{:<24} {:>9} {:>9.4f} {:>18} {:>8.4f}\n", name_of(row),
                        fmt::format("{}/{}", row.passed, row.each.size()), row.code_nll, over, row.kl));
    }
  }

  std::string length_;
  std::vector<std::string> haystacks_;
  std::vector<std::string> layers_;
  std::string form_ = "code";
  size_t seed_ = 1;
  std::string resume_;
  RetrievalLayersOptions options_;
  EvalArguments arguments_;
};

}  // namespace

std::unique_ptr<Command> make_eval_retrieval_command() { return std::make_unique<EvalRetrievalCommand>(); }

}  // namespace keysieve::cli
