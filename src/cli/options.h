#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "keysieve/keysieve.h"

namespace keysieve {
struct ModelOptions;
}

namespace keysieve::cli {

// The options that several verbs share, in groups; each group adds itself to a verb's parser and turns what
// was given into the library's own options. Numbers arrive as text and are parsed here, so that every verb
// refuses bad ones in the same words.

// --model, --threads, --kernels, --context, --yarn, --yarn-original, --kv, --dequantize
struct ModelArguments {
  std::string model = "smollm2-135m";
  int threads = 0;
  std::string kernels = "auto";
  size_t context = 0;
  float yarn = 0;
  size_t yarn_original = 0;
  std::string kv = "auto";
  bool dequantize = false;

  void add(CLI::App& app);
  void add_model(CLI::App& app);       // --model alone
  LanguageModel load() const;          // fetches it first where it is a Hub id that is not here
  ModelOptions model_options() const;  // for verbs that load the model as a job of their own
};

// --indexer, --run-config, --budget, --sinks, --recent, --mass, --selection, --query-block, --refine,
// --refine-prompt, --refine-layers, --sparse-layers, --cache, --vote, --prune, --cold-store, --dense
struct SparseArguments {
  std::string indexer;  // empty: `auto` where a budget is given, else none
  std::string run_config;
  size_t budget = 0;
  std::optional<size_t> sinks;
  std::optional<size_t> recent;
  std::optional<size_t> refine;
  std::optional<size_t> refine_prompt;
  float mass = 1;
  std::string selection;       // empty, "shared" or "per-group"
  size_t query_block = 0;      // 0: the indexer's own
  std::string refine_layers;   // "3,5-7"; empty: the indexer's own
  std::string sparse_layers;   // the same; empty: all
  std::string selection_file;  // where --selection may also name a file
  std::string cache = "full";
  std::string cold_store;  // empty or "ram": in memory; else a folder
  size_t voters = 0;       // 0: not given
  std::string prune = "prompt";
  bool dense = false;

  enum class Aliases { no, of_model_card };  // --indexer-path and --top-k as well
  enum class Selection { kind, or_file };  // `logits` takes both: --selection per-group --selection out.json
  void add(CLI::App& app, Aliases aliases = Aliases::no, Selection takes = Selection::kind);
  bool wants_indexer() const;
  SessionOptions session_options(const LanguageModel& model) const;
};

// --temperature, --sample-top-k, --top-p, --min-p, --repetition-penalty, --seed, --max-tokens, --stop,
// --ignore-eos
struct SamplingArguments {
  SamplingOptions sampling;
  size_t max_tokens = 256;
  std::vector<std::string> stop;
  bool ignore_eos = false;

  void add(CLI::App& app);
  GenerateOptions generate_options() const;
};

// --system, --chat-template, --think, --no-think
struct ChatArguments {
  std::string system;
  std::string chat_template;
  bool think = false;
  bool no_think = false;

  void add(CLI::App& app);
  ChatOptions chat_options() const;
  // The system message where one was given, then the user's.
  std::vector<Message> messages(const std::string& user) const;
};

// --json, --stats
struct OutputArguments {
  bool json = false;
  bool stats = false;

  void add(CLI::App& app, bool with_stats);
};

// Adds an option for a whole number: "12", also "4k" (4096) and "1m"; refuses signs, fractions and overflow.
CLI::Option* add_count(CLI::App& app, const std::string& names, size_t& value, const std::string& help);
CLI::Option* add_count(CLI::App& app, const std::string& names, std::optional<size_t>& value,
                       const std::string& help);
CLI::Option* add_number(CLI::App& app, const std::string& names, float& value, const std::string& help);

// Token ids as white space or a JSON list gives them. Throws Error{format} naming `subject` and the first bad
// one.
std::vector<int32_t> parse_token_ids(const std::string& text, const std::string& subject);

// Everything on standard input. Throws Error{file}; Error{resource} past 1 GiB.
std::string read_stdin();

// "3,5-7" as 3, 5, 6, 7; empty text gives none. Throws Error{usage} naming `option`.
std::vector<size_t> parse_layers(const std::string& text, std::string_view option);

}  // namespace keysieve::cli
