#include <fmt/format.h>

#include <optional>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/options.h"
#include "cli/output.h"
#include "core/file_io.h"

namespace keysieve::cli {
namespace {

constexpr const char* kGenerateExamples = R"(Examples:
  keysieve generate --prompt "Why is the sky blue?"
  keysieve generate --model qwen2.5-coder-0.5b --prompt-file task.txt --stats
  keysieve generate --indexer auto --budget 512 --prompt-file long.txt --json
  keysieve generate --prompt-file book.txt --max-tokens 0 --save-session book.session
  keysieve generate --load-session book.session --prompt "Who is the narrator?"
  echo "Once upon a time" | keysieve generate --raw --max-tokens 50 -
Ctrl-C prints what there is and ends with status 130; the JSON then says "interrupted".)";

class GenerateCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kGenerateExamples);
    auto* prompt =
        app.add_option("--prompt,-p", prompt_, "the question, or with --raw the beginning of the text")
            ->type_name("TEXT");
    auto* file = app.add_option("--prompt-file,-f", prompt_file_, "a file with it")->type_name("FILE");
    auto* input = app.add_option("input", input_, "- reads it from standard input")
                      ->check(CLI::IsMember({"-"}))
                      ->type_name("-");
    given_ = {prompt, file, input};
    app.add_flag("--raw", raw_, "no chat template: continue the text as it is");
    app.add_option("--load-session", load_session_, "a saved session that the prompt continues")
        ->type_name("FILE");
    app.add_option("--save-session", save_session_,
                   "save the session, the answer included; with --max-tokens 0 the prompt alone")
        ->type_name("FILE");
    sampling_.add(app);
    chat_.add(app);
    model_.add(app);
    sparse_.add(app);
    output_.add(app, true);
  }

  int run() override {
    const std::string prompt = read_prompt();
    const LanguageModel model = model_.load();
    std::vector<int32_t> ids = raw_ ? model.text().encode_prompt(prompt)
                                    : model.text().encode_chat(chat_.messages(prompt), chat_.chat_options());
    Session session(model, sparse_.session_options(model));
    if (!load_session_.empty()) {
      session.load(load_session_);
      ids.insert(ids.begin(), session.tokens().begin(), session.tokens().end());
    }
    GenerateOptions options = sampling_.generate_options();
    const InterruptGuard interrupt;
    options.cancel = InterruptGuard::flag();
    Progress progress("reading the prompt");
    options.on_prefill = [&](size_t done, size_t total) { progress.update(done, total); };
    const bool terminal = is_terminal(stdout);
    const auto show = [&](std::string_view piece) {
      if (!output_.json) print(safe_for_terminal(piece, terminal));
      return true;
    };
    const GenerateResult result = session.generate(ids, options, show);
    if (!save_session_.empty() && !InterruptGuard::requested()) {
      // The last token of an answer has been drawn but not read.
      const bool unread = !result.token_ids.empty() && session.length() < session.capacity() &&
                          session.length() < ids.size() + result.token_ids.size();
      if (unread) session.prefill(std::span(result.token_ids).last(1));
      session.save(save_session_);
    }
    std::optional<MachinePeaks> peaks;
    if (output_.stats) peaks = measure_peaks(model);
    if (output_.json) {
      Json document = to_json(result);
      document["load_seconds"] = model.info().load_seconds;
      document["kernels"] = model.info().kernels;
      document["threads"] = model.info().threads;
      if (peaks) document["roofline"] = roofline_json(result.statistics, *peaks);
      print_json(document);
    } else if (!result.text.ends_with('\n')) {
      print("\n");
    }
    if (peaks) {
      print_note(stats_line(result));
      for (const std::string& line : roofline_lines(result.statistics, *peaks)) print_note(line);
    }
    return InterruptGuard::requested() ? kExitInterrupted : kExitFine;
  }

 private:
  std::string read_prompt() const {
    size_t count = 0;
    for (const CLI::Option* option : given_) count += option->count() > 0 ? 1 : 0;
    if (count != 1) {
      throw Error(ErrorKind::usage, "generate", fmt::format("{} prompts given", count), "one",
                  "use --prompt TEXT, --prompt-file FILE or -");
    }
    if (!input_.empty()) return read_stdin();
    if (!prompt_file_.empty()) return read_text_file(prompt_file_);
    return prompt_;
  }

  std::vector<CLI::Option*> given_;
  std::string prompt_;
  std::string prompt_file_;
  std::string input_;
  std::string load_session_;
  std::string save_session_;
  bool raw_ = false;
  ModelArguments model_;
  SparseArguments sparse_;
  SamplingArguments sampling_;
  ChatArguments chat_;
  OutputArguments output_;
};

}  // namespace

std::unique_ptr<Command> make_generate_command() { return std::make_unique<GenerateCommand>(); }

}  // namespace keysieve::cli
