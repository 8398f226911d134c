#include <fmt/format.h>

#include <array>
#include <charconv>
#include <filesystem>

#include "cli/command.h"
#include "cli/demo_document.h"
#include "cli/eval_arguments.h"
#include "core/checksum.h"
#include "core/file_io.h"

namespace keysieve::cli {
namespace {

constexpr const char* kEvalExamples = R"(Examples:
  keysieve eval needle --haystack book.txt --contexts 4096 --budget 256
  keysieve eval ppl --text book.txt --window 4096 --windows 3 --budget 512
  keysieve eval latency --contexts 2048,8k --budget 512
  keysieve eval memory --shape qwen3-8b --budget 2048
Each part has its own --help.)";

constexpr std::array kParts{
    CommandEntry{"ppl", "perplexity of sparse attention beside dense", make_eval_ppl_command},
    CommandEntry{"needle", "find a code hidden in prose: dense, sparse and baselines",
                 make_eval_needle_command},
    CommandEntry{"retrieval", "which layers have to refine their choice for a needle to be found",
                 make_eval_retrieval_command},
    CommandEntry{"gsm8k", "grade-school word problems, answered step by step", make_eval_gsm8k_command},
    CommandEntry{"agreement", "how far sparse next-token distributions are from dense ones",
                 make_eval_agreement_command},
    CommandEntry{"reading", "which positions each layer read, and how much attention lies on them",
                 make_eval_reading_command},
    CommandEntry{"memory", "bytes of keys and values by context", make_eval_memory_command},
    CommandEntry{"latency", "prefill and decode speed by context", make_eval_latency_command},
};

class EvalCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(kEvalExamples);
    app.require_subcommand(1);
    for (const CommandEntry& entry : kParts) {
      parsers_.push_back(app.add_subcommand(entry.name, entry.summary));
      parts_.push_back(entry.make());
      parts_.back()->add_options(*parsers_.back());
    }
  }

  int run() override {
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (parsers_[i]->parsed()) return parts_[i]->run();
    }
    return kExitUsage;
  }

 private:
  std::vector<CLI::App*> parsers_;
  std::vector<std::unique_ptr<Command>> parts_;
};

}  // namespace

void EvalArguments::add(CLI::App& app, SparseArguments::Aliases aliases) {
  model.add(app);
  sparse.add(app, aliases);
  output.add(app, false);
}

SessionOptions EvalArguments::session_options(const LanguageModel& language_model) {
  if (sparse.indexer.empty() && !sparse.dense) sparse.indexer = "auto";
  SparseArguments given = sparse;
  if (!given.wants_indexer()) {  // the baselines need none
    given.budget = 0;
    given.sparse_layers.clear();
  }
  SessionOptions options = given.session_options(language_model);
  if (sparse.budget != 0) options.budget = sparse.budget;
  if (!options.indexer) {
    options.mass = sparse.mass;
    options.sparse_layers = parse_layers(sparse.sparse_layers, "--sparse-layers");
    options.sinks = sparse.sinks;
    options.recent = sparse.recent;
    if (sparse.selection == "shared") options.selection = SelectionMode::shared;
  }
  return options;
}

Json identity(std::string_view kind, const LanguageModel& model, const EvalSetting& setting) {
  const ModelInfo& info = model.info();
  // The file's name says more than the name inside, which is often that of a training run.
  const std::filesystem::path path(info.path);
  Json document = {{"kind", kind},
                   {"model", (path.extension() == ".gguf" ? path.stem() : path.filename()).string()},
                   {"indexer", nullptr},
                   {"kernels", info.kernels},
                   {"threads", info.threads}};
  if (!setting.can(AttentionMode::sparse)) return document;
  document["indexer"] = setting.indexer_path();
  const SelectionPolicy& policy = setting.policy();
  if (policy.refine > 0) document["refine"] = policy.refine;
  if (policy.refine_prompt > 0) document["refine_prompt"] = policy.refine_prompt;
  if (!policy.refine_layers.empty()) document["refine_layers"] = policy.refine_layers;
  return document;
}

Json question_of(std::string_view kind, const EvalSetting& setting,
                 std::span<const std::vector<int32_t>> windows) {
  Json question = identity(kind, setting.language_model(), setting);
  question["setting"] = setting.describe();
  Checksum tokens;
  for (const std::vector<int32_t>& window : windows) tokens.add(std::as_bytes(std::span(window)));
  question["windows"] = windows.size();
  question["tokens"] = fmt::format("{:016x}", tokens.value());
  return question;
}

std::string digest_of(std::span<const std::string> texts) {
  Checksum sum;
  for (const std::string& text : texts) sum.add(std::as_bytes(std::span(text)));
  return fmt::format("{:016x}", sum.value());
}

CLI::Option* add_resume(CLI::App& app, std::string& file) {
  return app
      .add_option("--resume", file,
                  "keep what is done in this file after each step, and go on from what it holds")
      ->type_name("FILE")
      ->take_last();
}

void TextArguments::add_text(CLI::App& app) {
  app.add_option("--text", files, "plain texts; without it, the demo's document of about 4,000 tokens")
      ->type_name("FILE");
}

void TextArguments::add(CLI::App& app) {
  add_text(app);
  add_count(app, "--window", window, "tokens of one stretch of text")->default_str("4096");
  add_count(app, "--windows", windows, "stretches, spread over the texts")->default_str("3");
}

std::vector<std::string> TextArguments::read() const {
  std::vector<std::string> texts;
  for (const std::string& file : files) texts.push_back(read_text_file(file));
  if (texts.empty()) texts.push_back(default_haystack());
  return texts;
}

std::vector<AttentionMode> parse_modes(const std::vector<std::string>& names) {
  std::vector<AttentionMode> modes;
  for (const std::string& name : names) modes.push_back(parse_attention_mode(name));
  return modes;
}

NeedleForm parse_needle_form(const std::string& text) {
  for (const NeedleForm form : kNeedleForms) {
    if (to_string(form) == text) return form;
  }
  throw Error(ErrorKind::usage, "--form", '"' + text + '"', "code, words, pairs, two or keys");
}

CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                      const std::string& help) {
  return app.add_option(name, values, help)->delimiter(',')->type_name("A,B,...");
}

std::vector<size_t> parse_counts(const std::vector<std::string>& texts, const std::string& option) {
  std::vector<size_t> values;
  for (const std::string& text : texts) {
    const bool thousands = text.ends_with('k') || text.ends_with('K');
    const char* end = text.data() + text.size() - (thousands ? 1 : 0);
    size_t value = 0;
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || stop != end || value == 0 || value > size_t{1} << 30) {
      throw Error(ErrorKind::usage, option, "'" + text + "'", "whole numbers such as 4096,8k");
    }
    values.push_back(thousands ? value * 1024 : value);
  }
  return values;
}

std::string default_haystack() {
  std::string text(demo_document());
  const size_t fact = text.find(kDemoFact);
  if (fact == std::string::npos) return text;
  const size_t before = text.rfind('.', fact);
  const size_t after = text.find('.', fact);
  const size_t begin = before == std::string::npos ? 0 : before + 1;
  text.erase(begin, after == std::string::npos ? std::string::npos : after + 1 - begin);
  return text;
}

std::unique_ptr<Command> make_eval_command() { return std::make_unique<EvalCommand>(); }

}  // namespace keysieve::cli
