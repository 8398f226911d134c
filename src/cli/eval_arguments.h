#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.h"
#include "cli/options.h"
#include "cli/output.h"
#include "eval/attention_mode.h"
#include "eval/needle_task.h"

namespace keysieve::cli {

// What every part of `eval` takes: a model, an indexer with its budget, --json.
struct EvalArguments {
  ModelArguments model;
  SparseArguments sparse;
  OutputArguments output;

  void add(CLI::App& app, SparseArguments::Aliases aliases = SparseArguments::Aliases::no);
  // Without --indexer and --dense: the indexer that ships for this model. With --indexer none a --budget is
  // that of the baselines.
  SessionOptions session_options(const LanguageModel& language_model);
};

// What a result is of: kind ("ppl"), model, indexer (null: none), kernels, threads.
Json identity(std::string_view kind, const LanguageModel& model, const EvalSetting& setting);

// What results over `windows` of tokens depend on, for --resume.
Json question_of(std::string_view kind, const EvalSetting& setting,
                 std::span<const std::vector<int32_t>> windows);

// Tells texts apart from others, for the same.
std::string digest_of(std::span<const std::string> texts);

// --resume
CLI::Option* add_resume(CLI::App& app, std::string& file);

// "dense,sparse" as modes. Throws Error{usage}.
std::vector<AttentionMode> parse_modes(const std::vector<std::string>& names);

// "code", "words", ... Throws Error{usage} naming --form.
NeedleForm parse_needle_form(const std::string& text);

// Options of several values separated by commas.
CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                      const std::string& help);
// "4096,8k" as numbers. Throws Error{usage} naming `option`.
std::vector<size_t> parse_counts(const std::vector<std::string>& texts, const std::string& option);

// The text without the sentence that holds the demo's fact: prose for needles where no file is given.
std::string default_haystack();

// Texts that evaluation runs over: --text, or the demo's document.
struct TextArguments {
  std::vector<std::string> files;
  std::optional<size_t> window;   // not given: 4096
  std::optional<size_t> windows;  // not given: 3

  void add(CLI::App& app);  // --text, --window, --windows
  size_t window_tokens() const { return window.value_or(4096); }
  size_t window_count() const { return windows.value_or(3); }
  void add_text(CLI::App& app);  // --text alone
  std::vector<std::string> read() const;
};

// The parts, each defined in eval_NAME_command.cpp.
std::unique_ptr<Command> make_eval_agreement_command();
std::unique_ptr<Command> make_eval_gsm8k_command();
std::unique_ptr<Command> make_eval_latency_command();
std::unique_ptr<Command> make_eval_memory_command();
std::unique_ptr<Command> make_eval_needle_command();
std::unique_ptr<Command> make_eval_ppl_command();
std::unique_ptr<Command> make_eval_reading_command();
std::unique_ptr<Command> make_eval_retrieval_command();

}  // namespace keysieve::cli
