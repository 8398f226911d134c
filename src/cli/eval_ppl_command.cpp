#include <fmt/format.h>

#include <filesystem>

#include "cli/eval_arguments.h"
#include "cli/interrupt.h"
#include "core/file_io.h"
#include "eval/perplexity.h"
#include "eval/token_windows.h"

namespace keysieve::cli {
namespace {

constexpr const char* kEvalPplExamples = R"(Examples:
  keysieve eval ppl --text book.txt --window 4096 --windows 3 --budget 512
  keysieve eval ppl --text a.txt b.txt --windows 8 --baselines oracle,recent,random --json
  keysieve eval ppl --text a.txt --budgets 128,256,512 --baselines oracle,quest --resume ppl.part --json
  keysieve eval ppl --text book.txt --dense --whole --dequantize --kv f32 --window 1024
  keysieve eval ppl --text wiki.test.raw --dense --like llama-perplexity
  keysieve eval ppl --text book.txt --window 8192 --budget 1024 --results ppl_results.json
Counted are the predictions in the last quarter of each window: what comes earlier drops little or nothing.
The delta is 100 (exp(mean difference of the paired losses) - 1); its interval is a bootstrap over windows, or
with fewer than 8 windows over blocks of 128 tokens.)";

class EvalPplCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kEvalPplExamples);
    text_.add(app);
    add_list(app, "--baselines", baselines_,
             "oracle, recent, random, snap-kv, h2o, streaming, quest: run these as well");
    add_list(app, "--budgets", budgets_, "run every mode at each of these, dense once; instead of --budget");
    add_resume(app, resume_);
    auto* whole =
        app.add_flag("--whole", whole_, "count every prediction of a window, not its last quarter's alone");
    app.add_option(
           "--like", like_,
           "llama-perplexity: the whole text in windows of 512 (or --window) one after another, the second "
           "half of each counted, as that tool does")
        ->check(CLI::IsMember({"llama-perplexity"}))
        ->type_name("TOOL")
        ->excludes(whole);
    app.add_option("--results", results_,
                   "also write dense, sparse and their difference to this file, as the model card's "
                   "ppl_results.json has them; runs of other windows are added")
        ->type_name("FILE")
        ->take_last();
    arguments_.add(app);
  }

  int run() override {
    PerplexityOptions options;
    const bool like_llama = !like_.empty();
    if (whole_) options.counted = CountedTokens::whole;
    if (like_llama) options.counted = CountedTokens::second_half;
    if (like_llama && !text_.window) text_.window = 512;
    options.budgets = parse_counts(budgets_, "--budgets");
    if (arguments_.sparse.budget == 0 && !budgets_.empty())
      arguments_.sparse.budget = options.budgets.front();
    const LanguageModel model = arguments_.model.load();
    const EvalSetting setting(model, arguments_.session_options(model));
    if (setting.can(AttentionMode::sparse)) options.modes.push_back(AttentionMode::sparse);
    for (const AttentionMode mode : parse_modes(baselines_)) {
      if (mode != AttentionMode::dense && mode != AttentionMode::sparse) options.modes.push_back(mode);
    }
    const Json before = results_.empty() ? Json() : results_so_far(setting);
    const std::vector<std::vector<int32_t>> windows = read_windows(model.text());
    PartialResults partial(resume_, question(setting, options, windows));
    if (partial.size() > 0) print_note(fmt::format("eval ppl: {} windows are done already", partial.size()));
    options.partial = &partial;
    const InterruptGuard interrupt;
    options.cancel = InterruptGuard::flag();
    Progress progress("perplexity");
    options.on_progress = [&](size_t done, size_t total) { progress.update(done, total); };
    const std::optional<PerplexityResult> result = run_perplexity(setting, windows, options);
    if (!result) {
      print_note("eval ppl: interrupted");
      return kExitInterrupted;
    }
    const Json document = to_json(*result, setting, windows.size());
    if (!results_.empty()) write_results(before, document);
    if (arguments_.output.json) {
      print_json(document);
    } else {
      show(*result);
    }
    return kExitFine;
  }

 private:
  static std::string_view counted_name(CountedTokens counted) {
    switch (counted) {
      case CountedTokens::whole:
        return "whole windows";
      case CountedTokens::second_half:
        return "second halves";
      case CountedTokens::last_quarter:
        break;
    }
    return "last quarters";
  }

  std::vector<std::vector<int32_t>> read_windows(const TextCodec& codec) const {
    const std::vector<std::string> texts = text_.read();
    if (like_.empty()) return token_windows(codec, texts, text_.window_tokens(), text_.window_count());
    if (texts.size() != 1) {
      throw Error(ErrorKind::usage, "--text", fmt::format("{} files", texts.size()),
                  "one with --like llama-perplexity");
    }
    return consecutive_windows(codec, texts.front(), text_.window_tokens(), text_.windows.value_or(0));
  }

  // What the losses depend on.
  static Json question(const EvalSetting& setting, const PerplexityOptions& options,
                       std::span<const std::vector<int32_t>> windows) {
    Json question = question_of("ppl", setting, windows);
    question["counted"] = counted_name(options.counted);
    return question;
  }

  Json to_json(const PerplexityResult& result, const EvalSetting& setting, size_t windows) const {
    Json document = identity("ppl", setting.language_model(), setting);
    document.update({{"perplexity_dense", result.perplexity_dense},
                     {"tokens", result.tokens},
                     {"window", text_.window_tokens()},
                     {"windows", windows},
                     {"counted", counted_name(whole_          ? CountedTokens::whole
                                              : like_.empty() ? CountedTokens::last_quarter
                                                              : CountedTokens::second_half)},
                     {"interval", result.interval},
                     {"budget", setting.policy().budget},
                     {"baselines", Json::object()},
                     {"rows", Json::array()}});
    for (const PerplexityRow& row : result.rows) {
      const Json values = {{"delta_percent", row.delta_percent},
                           {"delta_ci95_percent", row.delta_ci95_percent},
                           {"window_delta_percent", row.window_delta_percent}};
      Json in_row = values;
      in_row.update({{"mode", to_string(row.mode)}, {"budget", row.budget}, {"perplexity", row.perplexity}});
      document["rows"].push_back(in_row);
      // The contract's keys speak of one budget, the first.
      if (row.budget != setting.policy().budget) continue;
      if (row.mode == AttentionMode::sparse) {
        document.update(values);
        document["perplexity_sparse"] = row.perplexity;
      } else {
        Json baseline = values;
        baseline["perplexity"] = row.perplexity;
        document["baselines"][std::string(to_string(row.mode))] = baseline;
      }
    }
    return document;
  }

  // What --results holds already, or its head: {"model", "indexer", "top_k", "results": {}}. A file of
  // another model, indexer or budget is not written over.
  Json results_so_far(const EvalSetting& setting) const {
    if (!setting.can(AttentionMode::sparse)) {
      throw Error(ErrorKind::usage, "--results", "no sparse run to compare", "an indexer",
                  "leave out --dense");
    }
    const Json made = identity("ppl", setting.language_model(), setting);
    const Json head = {
        {"model", made["model"]}, {"indexer", made["indexer"]}, {"top_k", setting.policy().budget}};
    std::error_code ignored;
    if (!std::filesystem::exists(results_, ignored)) return head;
    Json before = read_json_file(results_);
    for (const auto& [key, value] : head.items()) {
      if (before.is_object() && before.contains(key) && before[key] == value) continue;
      throw Error(ErrorKind::mismatch, results_, fmt::format("results of another {}", key), value.dump(),
                  "name a new file");
    }
    return before;
  }

  void write_results(Json file, const Json& document) const {
    const double dense = document["perplexity_dense"];
    const double sparse = document["perplexity_sparse"];
    Json entry = {{"dense_ppl", dense}, {"sparse_ppl", sparse}, {"delta", sparse - dense}};
    for (const char* key : {"delta_percent", "delta_ci95_percent", "tokens", "windows", "counted"})
      entry[key] = document[key];
    file["results"][std::to_string(text_.window_tokens())] = std::move(entry);
    AtomicFileWriter writer(results_);
    writer.write(file.dump(2) + "\n");
    writer.commit();
  }

  static void show(const PerplexityResult& result) {
    print(
        fmt::format("dense            {:>9.3f}   over {} tokens\n", result.perplexity_dense, result.tokens));
    for (const PerplexityRow& row : result.rows) {
      print(fmt::format("{:<9} {:>6} {:>9.3f}   {:+.2f}% (95% {:+.2f} to {:+.2f}, drawing {})\n",
                        to_string(row.mode), row.budget, row.perplexity, row.delta_percent,
                        row.delta_ci95_percent[0], row.delta_ci95_percent[1], result.interval));
    }
  }

  TextArguments text_;
  std::vector<std::string> baselines_;
  std::vector<std::string> budgets_;
  std::string resume_;
  std::string results_;
  std::string like_;
  bool whole_ = false;
  EvalArguments arguments_;
};

class EvalAgreementCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(R"(Examples:
  keysieve eval agreement --text book.txt --window 4096 --windows 3 --budget 512
  keysieve eval agreement --text book.txt --mode recent --resume agreement.part --json
Over the last quarter of each window: how often the greedy token is dense attention's, and KL(dense || sparse).)");
    text_.add(app);
    app.add_option("--mode", mode_, "sparse, oracle, recent, random, snap-kv, h2o, streaming or quest")
        ->type_name("MODE")
        ->capture_default_str();
    add_resume(app, resume_);
    arguments_.add(app);
  }

  int run() override {
    const AttentionMode mode = parse_attention_mode(mode_);
    const LanguageModel model = arguments_.model.load();
    const EvalSetting setting(model, arguments_.session_options(model));
    setting.require(mode);
    const auto windows =
        token_windows(model.text(), text_.read(), text_.window_tokens(), text_.window_count());
    PartialResults partial(resume_, question_of("agreement", setting, windows));
    AgreementOptions options;
    options.partial = &partial;
    const InterruptGuard interrupt;
    options.cancel = InterruptGuard::flag();
    Progress progress("agreement");
    options.on_progress = [&](size_t done, size_t total) { progress.update(done, total); };
    const std::optional<AgreementResult> result = run_agreement(setting, mode, windows, options);
    if (!result) {
      print_note("eval agreement: interrupted");
      return kExitInterrupted;
    }
    if (arguments_.output.json) {
      Json document = identity("agreement", model, setting);
      document.update({{"top1_agreement", result->top1_agreement},
                       {"kl_mean", result->kl_mean},
                       {"kl_max", result->kl_max},
                       {"tokens", result->tokens},
                       {"mode", mode_},
                       {"budget", setting.budget(mode)},
                       {"window", text_.window_tokens()},
                       {"windows", text_.window_count()}});
      print_json(document);
    } else {
      print(fmt::format("the same greedy token at {:.2f}% of {} positions; KL {:.5f} nats, at most {:.3f}\n",
                        100 * result->top1_agreement, result->tokens, result->kl_mean, result->kl_max));
    }
    return kExitFine;
  }

 private:
  TextArguments text_;
  std::string mode_ = "sparse";
  std::string resume_;
  EvalArguments arguments_;
};

}  // namespace

std::unique_ptr<Command> make_eval_ppl_command() { return std::make_unique<EvalPplCommand>(); }
std::unique_ptr<Command> make_eval_agreement_command() { return std::make_unique<EvalAgreementCommand>(); }

}  // namespace keysieve::cli
