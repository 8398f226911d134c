#include <fmt/format.h>

#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/line_reader.h"
#include "cli/options.h"
#include "cli/output.h"

namespace keysieve::cli {
namespace {

constexpr const char* kChatExamples = R"(Examples:
  keysieve chat
  keysieve chat --model qwen2.5-coder-0.5b --system "You answer in one sentence."
  keysieve chat --indexer auto --budget 512 --stats
  printf 'My name is Ada.\nWhat is my name?\n' | keysieve chat
Each line is a turn. Ctrl-C stops the answer, Ctrl-D or /exit the chat; /help lists the commands.)";

constexpr const char* kHelp = R"(  /clear   forget the conversation
  /stats   figures of the last answer
  /help    this text
  /exit    leave (Ctrl-D does the same)
)";

class ChatCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kChatExamples);
    sampling_.add(app);
    chat_.add(app);
    model_.add(app);
    sparse_.add(app);
    output_.add(app, true);
  }

  int run() override {
    const LanguageModel model = model_.load();
    Session session(model, sparse_.session_options(model));
    const ChatOptions options = chat_.chat_options();
    LineReader reader("chat_history");
    if (reader.interactive()) {
      print(fmt::format("{} ({}); /help lists the commands\n",
                        model.info().name.empty() ? model.info().path : model.info().name,
                        session.budget() > 0 ? fmt::format("sparse, budget {}", session.budget()) : "dense"));
    }
    start_over(session);
    int status = kExitFine;
    while (const std::optional<std::string> line = reader.read("> ")) {
      if (line->find_first_not_of(" \t") == std::string::npos) continue;
      if (line->starts_with('/')) {
        if (*line == "/exit" || *line == "/quit") break;
        obey(*line, session);
        continue;
      }
      status = answer(*line, model, session, options, reader.interactive());
      // A pipe has nobody who could decide to go on.
      if (status != kExitFine && !reader.interactive()) break;
    }
    if (output_.json) print_json({{"turns", turns_}});
    return reader.interactive() ? kExitFine : status;
  }

 private:
  void start_over(Session& session) {
    session.clear();
    conversation_.clear();
    if (!chat_.system.empty()) conversation_.push_back({"system", chat_.system});
    last_.clear();
  }

  void obey(const std::string& command, Session& session) {
    if (command == "/clear") {
      start_over(session);
    } else if (command == "/help") {
      show(kHelp);
    } else if (command == "/stats") {
      show(last_.empty() ? "  nothing was answered yet\n" : "  " + last_ + "\n");
    } else {
      show(fmt::format("  no command {}; /help lists them\n", command));
    }
  }

  // With --json standard output is the document's alone.
  void show(const std::string& text) const {
    if (output_.json) {
      std::fputs(text.c_str(), stderr);
    } else {
      print(safe_for_terminal(text, is_terminal(stdout)));
    }
  }

  int answer(const std::string& line, const LanguageModel& model, Session& session,
             const ChatOptions& options, bool interactive) {
    conversation_.push_back({"user", line});
    GenerateResult result;
    const InterruptGuard interrupt;
    try {
      GenerateOptions generate = sampling_.generate_options();
      generate.cancel = InterruptGuard::flag();
      Progress progress("reading");
      generate.on_prefill = [&](size_t done, size_t total) { progress.update(done, total); };
      const bool terminal = is_terminal(stdout);
      result = session.generate(model.text().encode_chat(conversation_, options), generate,
                                [&](std::string_view piece) {
                                  if (!output_.json) print(safe_for_terminal(piece, terminal));
                                  return true;
                                });
    } catch (const Error& error) {
      conversation_.pop_back();
      if (!interactive) throw;
      // A conversation that outgrew the context can still be cleared or ended by its owner.
      print_note(error.what());
      return kExitFailed;
    }
    if (result.token_ids.empty() && InterruptGuard::requested()) {
      conversation_.pop_back();  // stopped before a word was said: the question is taken back
    } else {
      conversation_.push_back({"assistant", result.text});
    }
    if (!output_.json) print(InterruptGuard::requested() ? " [stopped]\n" : "\n");
    last_ = stats_line(result);
    if (output_.stats) {
      if (!peaks_) peaks_ = measure_peaks(model);
      print_note(last_);
      for (const std::string& figures : roofline_lines(result.statistics, *peaks_)) print_note(figures);
    }
    if (output_.json) {
      Json turn = to_json(result);
      if (peaks_) turn["roofline"] = roofline_json(result.statistics, *peaks_);
      turn["prompt"] = line;
      turns_.push_back(std::move(turn));
    }
    return InterruptGuard::requested() ? kExitInterrupted : kExitFine;
  }

  ModelArguments model_;
  SparseArguments sparse_;
  SamplingArguments sampling_;
  ChatArguments chat_;
  OutputArguments output_;
  std::vector<Message> conversation_;
  std::string last_;
  std::optional<MachinePeaks> peaks_;  // measured once, after the first answer with --stats
  Json turns_ = Json::array();
};

}  // namespace

std::unique_ptr<Command> make_chat_command() { return std::make_unique<ChatCommand>(); }

}  // namespace keysieve::cli
