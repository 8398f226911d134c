#include <fmt/format.h>

#include <filesystem>

#include "cli/eval_arguments.h"
#include "cli/interrupt.h"
#include "core/checksum.h"
#include "core/file_io.h"
#include "eval/gsm8k.h"

namespace keysieve::cli {
namespace {

class EvalGsm8kCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(R"(Examples:
  keysieve eval gsm8k --data test.jsonl --shots-data train.jsonl --limit 100 --dense
  keysieve eval gsm8k --data test.jsonl --shots-data train.jsonl --top-k 512 --indexer-path auto --json
  keysieve eval gsm8k --data test.jsonl --limit 50 --mode oracle --budget 256 --resume gsm8k.part
--data has one {"question", "answer"} a line, as GSM8K's files have; without it, what `keysieve pull data gsm8k`
brought, with examples from its train.jsonl. The prompt shows worked
examples (chain of thought) and is no chat. Right is an answer whose number, after #### or "The answer is", else the
last one, is the data's.)");
    app.add_option("--data", data_, "problems, JSON lines; default: pulled")->type_name("FILE")->take_last();
    app.add_option(
           "--shots-data", shots_data_,
           "whose first lines are the worked examples; without it, the first of --data, which are then "
           "not asked")
        ->type_name("FILE")
        ->take_last();
    add_count(app, "--shots", shots_, "worked examples")->default_str(std::to_string(shots_));
    add_count(app, "--limit", limit_, "ask only the first so many")->default_str("all");
    add_count(app, "--max-tokens", options_.max_tokens, "of an answer")
        ->default_str(std::to_string(options_.max_tokens));
    app.add_option(
           "--mode", mode_,
           "dense, sparse, oracle, recent, random, snap-kv, h2o, streaming or quest; without it dense "
           "with --dense, else sparse")
        ->type_name("MODE")
        ->take_last();
    add_resume(app, resume_);
    arguments_.add(app, SparseArguments::Aliases::of_model_card);
  }

  int run() override {
    if (mode_.empty()) mode_ = arguments_.sparse.dense ? "dense" : "sparse";
    options_.mode = parse_attention_mode(mode_);
    read_data();
    const LanguageModel model = arguments_.model.load();
    const EvalSetting setting(model, arguments_.session_options(model));
    setting.require(options_.mode);
    PartialResults partial(resume_, question(setting));
    options_.partial = &partial;
    const InterruptGuard interrupt;
    options_.cancel = InterruptGuard::flag();
    Progress progress("word problems");
    options_.on_progress = [&](size_t done, size_t total) { progress.update(done, total); };
    const std::optional<WordProblemResult> result = run_word_problems(setting, options_);
    if (!result) {
      print_note("eval gsm8k: interrupted");
      return kExitInterrupted;
    }
    show(*result, setting);
    return kExitFine;
  }

 private:
  void find_pulled() {
    const std::filesystem::path folder = default_data_folder() / "gsm8k";
    std::error_code ignored;
    if (!std::filesystem::exists(folder / "test.jsonl", ignored)) {
      throw Error(ErrorKind::file, (folder / "test.jsonl").string(), "not here", "GSM8K's test problems",
                  "fetch them with `keysieve pull data gsm8k`, or give --data FILE");
    }
    data_ = (folder / "test.jsonl").string();
    if (shots_data_.empty() && std::filesystem::exists(folder / "train.jsonl", ignored))
      shots_data_ = (folder / "train.jsonl").string();
  }

  void read_data() {
    if (data_.empty()) find_pulled();
    options_.problems = parse_word_problems(read_text_file(data_), data_);
    std::vector<WordProblem>& shots = options_.shots;
    shots = shots_data_.empty() ? options_.problems
                                : parse_word_problems(read_text_file(shots_data_), shots_data_);
    if (shots.size() < shots_) {
      throw Error(ErrorKind::mismatch, shots_data_.empty() ? data_ : shots_data_,
                  fmt::format("{} problems", shots.size()), fmt::format("{} worked examples", shots_),
                  "lower --shots");
    }
    shots.resize(shots_);
    if (shots_data_.empty()) {
      options_.problems.erase(options_.problems.begin(),
                              options_.problems.begin() + static_cast<std::ptrdiff_t>(shots_));
    }
    if (limit_ > 0 && limit_ < options_.problems.size()) options_.problems.resize(limit_);
  }

  Json question(const EvalSetting& setting) const {
    Json question = identity("gsm8k", setting.language_model(), setting);
    question.update({{"setting", setting.describe()},
                     {"mode", mode_},
                     {"budget", setting.budget(options_.mode)},
                     {"problems", options_.problems.size()},
                     {"max_tokens", options_.max_tokens}});
    Checksum text;
    for (const WordProblem& problem : options_.problems) {
      const std::string asked = word_problem_prompt(options_.shots, problem) + problem.answer;
      text.add(std::as_bytes(std::span(asked)));
    }
    question["text"] = fmt::format("{:016x}", text.value());
    return question;
  }

  void show(const WordProblemResult& result, const EvalSetting& setting) const {
    const bool sparse = options_.mode != AttentionMode::dense;
    const bool binds = sparse && result.over_budget > 0;
    const double accuracy = static_cast<double>(result.correct) / static_cast<double>(result.total);
    if (sparse && !binds) {
      print_note(
          fmt::format("eval gsm8k: the budget of {} never binds: a problem and its answer take {:.0f} "
                      "tokens; give a smaller --budget or more --shots",
                      setting.budget(options_.mode), result.sequence_tokens));
    }
    if (arguments_.output.json) {
      Json document = identity("gsm8k", setting.language_model(), setting);
      document.update({{"accuracy", accuracy},
                       {"correct", result.correct},
                       {"total", result.total},
                       {"wilson95", result.wilson95},
                       {"mode", mode_},
                       {"budget", setting.budget(options_.mode)},
                       {"shots", shots_},
                       {"budget_binds", binds},
                       {"over_budget", result.over_budget},
                       {"cut_short", result.cut_short},
                       {"sequence_tokens", result.sequence_tokens}});
      print_json(document);
      return;
    }
    print(
        fmt::format("{}: {} of {} right, {:.1f}% (95% {:.1f} to {:.1f}%); {} over the budget, {} cut short\n",
                    mode_, result.correct, result.total, 100 * accuracy, 100 * result.wilson95[0],
                    100 * result.wilson95[1], result.over_budget, result.cut_short));
  }

  std::string data_;
  std::string shots_data_;
  size_t shots_ = 4;
  size_t limit_ = 0;
  std::string mode_;
  std::string resume_;
  WordProblemOptions options_;
  EvalArguments arguments_;
};

}  // namespace

std::unique_ptr<Command> make_eval_gsm8k_command() { return std::make_unique<EvalGsm8kCommand>(); }

}  // namespace keysieve::cli
