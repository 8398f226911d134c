#include <fmt/format.h>

#include <array>

#include "cli/command.h"
#include "cli/demo_document.h"
#include "cli/demo_report.h"
#include "cli/interrupt.h"
#include "cli/line_reader.h"
#include "cli/options.h"
#include "cli/output.h"

namespace keysieve::cli {
namespace {

constexpr const char* kDemoExamples = R"(Examples:
  keysieve demo
  keysieve demo --prompt "Name three rivers of Europe."
  keysieve demo --interactive --budget 256
  keysieve demo --model Qwen/Qwen3-8B --indexer-path indexer.safetensors --run-config run_config.json --top-k 2048
Without --prompt: three short prompts and one question about a document of about 4,000 tokens.
A short prompt fits the budget whole, so nothing is dropped there; the long one shows what a budget saves.)";

constexpr std::array<const char*, 3> kShortPrompts = {
    "What is the opposite of hot?",
    "What is photosynthesis? Answer in one sentence.",
    "Give me three tips for sleeping well.",
};

size_t count_words(std::string_view text) {
  size_t words = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool space = text[i] == ' ' || text[i] == '\n';
    const bool starts = !space && (i == 0 || text[i - 1] == ' ' || text[i - 1] == '\n');
    words += starts ? 1 : 0;
  }
  return words;
}

// A dense and a sparse session, each with its own side of the conversation.
class Pair {
 public:
  Pair(const LanguageModel& model, const SessionOptions& sparse, const ChatArguments& chat,
       GenerateOptions generate)
      : model_(model), dense_(model), sparse_(model, sparse), chat_(chat), generate_(std::move(generate)) {}

  DemoAnswer ask(const std::string& prompt, std::string title, std::string fact) {
    DemoAnswer answer{std::move(title), std::move(fact), {}, {}};
    answer.dense = run(dense_, dense_talk_, prompt, "dense: reading");
    if (!interrupted(answer)) answer.sparse = run(sparse_, sparse_talk_, prompt, "sparse: reading");
    return answer;
  }
  void clear() {
    dense_.clear();
    sparse_.clear();
    dense_talk_.clear();
    sparse_talk_.clear();
  }
  static bool interrupted(const DemoAnswer& answer) {
    return answer.dense.stop_reason == StopReason::interrupted ||
           answer.sparse.stop_reason == StopReason::interrupted;
  }
  size_t budget() const { return sparse_.budget(); }
  const LanguageModel& model() const { return model_; }

 private:
  GenerateResult run(Session& session, std::vector<Message>& talk, const std::string& prompt,
                     std::string_view label) {
    if (talk.empty() && !chat_.system.empty()) talk.push_back({"system", chat_.system});
    talk.push_back({"user", prompt});
    Progress progress(label);
    GenerateOptions options = generate_;
    options.on_prefill = [&](size_t done, size_t total) { progress.update(done, total); };
    GenerateResult result;
    try {
      result = session.generate(model_.text().encode_chat(talk, chat_.chat_options()), options);
    } catch (const Error&) {
      talk.pop_back();
      throw;
    }
    talk.push_back({"assistant", result.text});
    return result;
  }

  const LanguageModel& model_;
  Session dense_;
  Session sparse_;
  const ChatArguments& chat_;
  GenerateOptions generate_;
  std::vector<Message> dense_talk_;
  std::vector<Message> sparse_talk_;
};

class DemoCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kDemoExamples);
    auto* prompt = app.add_option("--prompt,-p", prompt_, "one prompt of yours instead")->type_name("TEXT");
    auto* interactive = app.add_flag("--interactive,-i", interactive_, "a chat that shows both answers");
    prompt->excludes(interactive);
    model_.add(app);
    sparse_.add(app, SparseArguments::Aliases::of_model_card);
    sampling_.add(app);
    chat_.add(app);
    output_.add(app, true);
    sampling_.max_tokens = 64;
  }

  int run() override {
    if (sparse_.dense || sparse_.indexer == "none") {
      throw Error(ErrorKind::usage, "demo", "no indexer", "one to compare with dense attention",
                  "use keysieve generate --dense");
    }
    if (sparse_.indexer.empty()) sparse_.indexer = "auto";
    const LanguageModel model = model_.load();
    const SessionOptions sparse = sparse_.session_options(model);
    GenerateOptions generate = sampling_.generate_options();
    generate.cancel = InterruptGuard::flag();
    Pair pair(model, sparse, chat_, generate);
    setting_ = {model.info().path, model.info().kernels, model.info().threads, sparse.indexer->info().path,
                pair.budget()};
    if (!output_.json) print(introduction(model));
    if (interactive_) return talk(pair);
    return answer_all(pair);
  }

 private:
  std::string introduction(const LanguageModel& model) const {
    const ModelInfo& info = model.info();
    return fmt::format(
        "{}: {} layers, context {}, {} of weights, {} kernels on {} threads, loaded in {}\n"
        "indexer {}, budget {}\n",
        info.name.empty() ? info.path : info.name, info.layers, human_count(info.context),
        human_bytes(info.weights_bytes), info.kernels, info.threads, human_seconds(info.load_seconds),
        setting_.indexer, setting_.budget);
  }

  void show(const DemoAnswer& answer) const {
    if (output_.json) return;
    const bool terminal = is_terminal(stdout);
    const auto width = terminal ? std::optional<size_t>(terminal_width(stdout)) : std::nullopt;
    DemoAnswer safe = answer;
    safe.dense.text = safe_for_terminal(answer.dense.text, terminal);
    safe.sparse.text = safe_for_terminal(answer.sparse.text, terminal);
    print(show_answer(safe, setting_, width));
  }

  // The figures of --stats, and the answer as JSON.
  Json finish(const DemoAnswer& answer, const Pair& pair) {
    Json document = to_json(answer);
    if (!output_.stats) return document;
    if (!peaks_) peaks_ = measure_peaks(pair.model());
    const auto note = [&](const std::string& side, const GenerateResult& result) {
      for (const std::string& line : roofline_lines(result.statistics, *peaks_))
        print_note(fmt::format("{}: {}", side, line));
      document[side]["roofline"] = roofline_json(result.statistics, *peaks_);
    };
    note("dense", answer.dense);
    note("sparse", answer.sparse);
    return document;
  }

  int answer_all(Pair& pair) {
    const InterruptGuard interrupt;
    std::vector<DemoAnswer> answers;
    Json list = Json::array();
    const auto ask = [&](const std::string& prompt, const std::string& title, const std::string& fact) {
      pair.clear();
      DemoAnswer answer = pair.ask(prompt, title, fact);
      if (Pair::interrupted(answer)) return false;
      show(answer);
      list.push_back(finish(answer, pair));
      answers.push_back(std::move(answer));
      return true;
    };
    bool going = true;
    if (!prompt_.empty()) {
      going = ask(prompt_, prompt_, "");
    } else {
      for (const char* prompt : kShortPrompts) going = going && ask(prompt, prompt, "");
      going = going && ask(fmt::format("{}{}{}", kDemoBefore, demo_document(), kDemoAfter),
                           fmt::format("{} (hidden in the log of a harbour, a text of {} words)",
                                       kDemoQuestion, human_count(count_words(demo_document()))),
                           std::string(kDemoFact));
    }
    if (output_.json) {
      Json document = to_json(setting_);
      document["answers"] = std::move(list);
      if (!answers.empty()) document["summary"] = summary_json(answers);
      document["interrupted"] = !going;
      print_json(document);
    } else if (!answers.empty()) {
      print(show_summary(answers));
    }
    return going ? kExitFine : kExitInterrupted;
  }

  int talk(Pair& pair) {
    LineReader reader("demo_history");
    if (reader.interactive()) print("/clear forgets the conversation, /exit leaves\n");
    Json turns = Json::array();
    while (const std::optional<std::string> line = reader.read("> ")) {
      if (line->find_first_not_of(" \t") == std::string::npos) continue;
      if (*line == "/exit" || *line == "/quit") break;
      if (*line == "/clear") {
        pair.clear();
        continue;
      }
      const InterruptGuard interrupt;
      const DemoAnswer answer = pair.ask(*line, *line, "");
      show(answer);
      turns.push_back(finish(answer, pair));
      if (Pair::interrupted(answer) && !reader.interactive()) return kExitInterrupted;
    }
    if (output_.json) {
      Json document = to_json(setting_);
      document["turns"] = std::move(turns);
      print_json(document);
    }
    return kExitFine;
  }

  std::string prompt_;
  bool interactive_ = false;
  ModelArguments model_;
  SparseArguments sparse_;
  SamplingArguments sampling_;
  ChatArguments chat_;
  OutputArguments output_;
  DemoSetting setting_;
  std::optional<MachinePeaks> peaks_;  // measured once, after the first answer with --stats
};

}  // namespace

std::unique_ptr<Command> make_demo_command() { return std::make_unique<DemoCommand>(); }

}  // namespace keysieve::cli
