#include "cli/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>

#include "cli/output.h"
#include "cli/pulling.h"
#include "core/json.h"
#include "train/calibrate.h"

namespace keysieve::cli {
namespace {

std::optional<size_t> parse_count(std::string_view text) {
  size_t factor = 1;
  if (text.ends_with('k') || text.ends_with('K')) factor = 1024;
  if (text.ends_with('m') || text.ends_with('M')) factor = 1024 * 1024;
  if (factor > 1) text.remove_suffix(1);
  size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  if (value > std::numeric_limits<size_t>::max() / factor) return std::nullopt;
  return value * factor;
}

// "--max-tokens,-n" -> "--max-tokens"
std::string first_name(const std::string& names) { return names.substr(0, names.find(',')); }

CLI::Option* add_parsed_count(CLI::App& app, const std::string& names, const std::string& help,
                              std::function<void(size_t)> store) {
  const auto parse = [store = std::move(store), name = first_name(names)](const CLI::results_t& given) {
    const std::optional<size_t> value = parse_count(given.front());
    if (!value) throw CLI::ValidationError(name, fmt::format("'{}', expected a whole number", given.front()));
    store(*value);
    return true;
  };
  return app.add_option(names, parse, help)->type_name("N")->take_last();
}

const CLI::Validator kOneOf(const std::vector<std::string>& values) { return CLI::IsMember(values); }

}  // namespace

CLI::Option* add_count(CLI::App& app, const std::string& names, size_t& value, const std::string& help) {
  return add_parsed_count(app, names, help, [&value](size_t given) { value = given; });
}

CLI::Option* add_count(CLI::App& app, const std::string& names, std::optional<size_t>& value,
                       const std::string& help) {
  return add_parsed_count(app, names, help, [&value](size_t given) { value = given; });
}

CLI::Option* add_number(CLI::App& app, const std::string& names, float& value, const std::string& help) {
  const auto parse = [&value, name = first_name(names)](const CLI::results_t& given) {
    const std::string& text = given.front();
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) {
      throw CLI::ValidationError(name, fmt::format("'{}', expected a number", text));
    }
    return true;
  };
  return app.add_option(names, parse, help)->type_name("X")->take_last();
}

void ModelArguments::add_model(CLI::App& app) {
  app.add_option(
         "--model,-m", model,
         "a GGUF file, a folder with config.json and *.safetensors, a Hub id (org/name) or a short name "
         "(smollm2-135m, qwen2.5-coder-0.5b)")
      ->type_name("M")
      ->capture_default_str()
      ->take_last();
}

void ModelArguments::add(CLI::App& app) {
  add_model(app);
  const auto parse_threads = [this](const CLI::results_t& given) {
    const std::optional<size_t> value = parse_count(given.front());
    if (!value || *value == 0 || *value > 4096) {
      throw CLI::ValidationError("--threads", fmt::format("'{}', expected 1 to 4096", given.front()));
    }
    threads = static_cast<int>(*value);
    return true;
  };
  app.add_option("--threads,-t", parse_threads, "cores to use; without it, all this process may run on")
      ->type_name("N")
      ->take_last();
  app.add_option("--kernels", kernels,
                 "auto, reference or a family of this machine (keysieve --version lists them)")
      ->type_name("NAME")
      ->capture_default_str()
      ->take_last();
  add_count(app, "--context", context, "positions a sequence may have; without it, the model's own limit");
  add_number(
      app, "--yarn", yarn,
      "stretch positions by this factor (YaRN), as config.json's rope_scaling would: 4 for 128k with Qwen3");
  add_count(
      app, "--yarn-original", yarn_original,
      "with --yarn: positions the model was trained for (32k for Qwen3); without it, those its file claims");
  app.add_option(
         "--kv", kv,
         "how keys and values are kept: auto (f16 beside quantised weights), f32, f16 or i8 (half the "
         "bytes of f16)")
      ->check(kOneOf({"auto", "f16", "f32", "i8"}))
      ->type_name("TYPE")
      ->capture_default_str()
      ->take_last();
  app.add_flag("--dequantize", dequantize,
               "weights as f32 in memory and products in f32: slower, rounds no activations");
}

LanguageModel ModelArguments::load() const {
  LoadOptions options;
  options.threads = threads;
  options.kernels = kernels;
  options.context = context;
  options.dequantize = dequantize;
  options.yarn = static_cast<double>(yarn);
  options.yarn_original = yarn_original;
  if (kv == "f16") options.kv = KvPrecision::f16;
  if (kv == "f32") options.kv = KvPrecision::f32;
  if (kv == "i8") options.kv = KvPrecision::i8;
  fetch_missing(model, PullKind::model);
  return LanguageModel::load(model, options);
}

ModelOptions ModelArguments::model_options() const {
  return {.kernels = kernels,
          .threads = threads,
          .context = context,
          .dequantize = dequantize,
          .yarn = static_cast<double>(yarn),
          .yarn_original = yarn_original};
}

void SparseArguments::add(CLI::App& app, Aliases aliases, Selection takes) {
  const bool card = aliases == Aliases::of_model_card;
  app.add_option(
         card ? "--indexer,--indexer-path" : "--indexer", indexer,
         "a folder or .safetensors file, a Hub id, a short name, auto (the one that ships for this model) or "
         "none; without it, auto where --budget is given, else none")
      ->type_name("I")
      ->take_last();
  app.add_option("--run-config", run_config, "the indexer's run_config.json, where it is not beside it")
      ->type_name("FILE")
      ->take_last();
  add_count(app, card ? "--budget,--top-k" : "--budget", budget,
            "positions each query may read, sinks and recent included; without it, the indexer's own");
  add_count(app, "--sinks", sinks, "positions always read at the start; without it, the indexer's own");
  add_count(app, "--recent", recent, "positions always read at the end; without it, the indexer's own");
  add_number(
      app, "--mass", mass,
      "read only as many positions as the indexer expects to carry this share of attention, at most the "
      "budget; 1 (the default): always the budget");
  const auto parse_selection = [this, takes](const CLI::results_t& given) {
    for (const std::string& value : given) {
      if (value == "shared" || value == "per-group") {
        selection = value;
      } else if (takes == Selection::or_file) {
        selection_file = value;
      } else {
        throw CLI::ValidationError("--selection", fmt::format("'{}', expected shared or per-group", value));
      }
    }
    return true;
  };
  app.add_option("--selection", parse_selection,
                 takes == Selection::or_file ? "shared (one set a layer) or per-group (one a KV head); any "
                                               "other value is a JSON file for the "
                                               "positions read"
                                             : "shared (one set a layer) or per-group (one a KV head)")
      ->type_name(takes == Selection::or_file ? "KIND|FILE" : "KIND")
      ->expected(1, takes == Selection::or_file ? 2 : 1)
      ->allow_extra_args(false);
  app.add_option("--query-block", query_block,
                 "neighbouring queries of a prompt that choose their positions together; without it, the "
                 "indexer's own")
      ->check(CLI::Range(size_t{1}, SessionOptions::kMostQueryBlock))
      ->type_name("N")
      ->take_last();
  add_count(
      app, "--refine", refine,
      "in decode and at a prompt's end, attention itself chooses among so many positions, 0: none; without "
      "it, the indexer's own");
  add_count(app, "--refine-prompt", refine_prompt,
            "the same for a prompt before its end: reading is slower and loses less at a small budget");
  app.add_option(
         "--refine-layers", refine_layers,
         "layers that --refine and --refine-prompt hold for, like 3,5-7; without it, the indexer's own")
      ->type_name("LIST")
      ->take_last();
  app.add_option("--sparse-layers", sparse_layers,
                 "read sparsely in these layers only, like 3,5-7; the others read everything")
      ->type_name("LIST")
      ->take_last();
  app.add_option("--cache", cache,
                 "full, fixed (exactly the budget stays) or tiered (the rest goes to a cold store)")
      ->check(kOneOf({"full", "fixed", "tiered"}))
      ->type_name("C")
      ->capture_default_str()
      ->take_last();
  const auto parse_vote = [this](const CLI::results_t& given) {
    const std::optional<size_t> count = given.front() == "last" ? 1 : parse_count(given.front());
    if (!count || *count == 0) {
      throw CLI::ValidationError("--vote", fmt::format("'{}', expected last or a number", given.front()));
    }
    voters = *count;
    return true;
  };
  app.add_option(
         "--vote", parse_vote,
         "how many of the prompt's last queries choose what --cache fixed keeps of it: last (1) or N; "
         "without it 32, for seed indexers 1")
      ->type_name("last|N")
      ->take_last();
  app.add_option(
         "--prune", prune,
         "when --cache fixed is cut: prompt (once, after it) or chunk (after each 512 tokens of it, so "
         "that a long prompt is read in constant memory)")
      ->check(kOneOf({"prompt", "chunk"}))
      ->type_name("WHEN")
      ->capture_default_str()
      ->take_last();
  app.add_option("--cold-store", cold_store,
                 "where --cache tiered keeps what is not hot: ram (the default) or a folder for a file that "
                 "ends with the program")
      ->type_name("ram|DIR")
      ->take_last();
  app.add_flag("--dense", dense, "no indexer, plain attention");
}

bool SparseArguments::wants_indexer() const {
  if (dense || indexer == "none") return false;
  return !indexer.empty() || budget > 0;
}

SessionOptions SparseArguments::session_options(const LanguageModel& model) const {
  SessionOptions options;
  if (!cold_store.empty() && cache != "tiered") {
    throw Error(ErrorKind::usage, "--cold-store", "given with --cache " + cache, "tiered",
                "add --cache tiered, or leave it out");
  }
  if ((voters > 0 || prune != "prompt") && cache != "fixed") {
    throw Error(ErrorKind::usage, voters > 0 ? "--vote" : "--prune", "given with --cache " + cache, "fixed",
                "add --cache fixed, or leave it out");
  }
  if (!wants_indexer()) {
    if (budget > 0) {
      throw Error(ErrorKind::usage, "--budget", "given together with dense attention", "",
                  "leave out --dense and --indexer none, or --budget");
    }
    for (const auto& [name, given] : {std::pair{"--sparse-layers", !sparse_layers.empty()},
                                      {"--query-block", query_block > 0},
                                      {"--refine", refine.has_value()},
                                      {"--refine-prompt", refine_prompt.has_value()},
                                      {"--refine-layers", !refine_layers.empty()}}) {
      if (!given) continue;
      throw Error(ErrorKind::usage, name, "given with dense attention", "an indexer",
                  "name one with --indexer, or auto");
    }
    if (cache != "full") {
      throw Error(ErrorKind::usage, "--cache", cache + " without an indexer", "full",
                  "name one with --indexer, or auto");
    }
    return options;
  }
  fetch_missing(indexer, PullKind::indexer);
  options.indexer = LightningIndexer::load(indexer.empty() ? "auto" : indexer, model, run_config);
  if (const auto& missing = options.indexer->info().missing_layers; !missing.empty()) {
    std::string list;
    for (const size_t layer : missing) list += fmt::format("{}{}", list.empty() ? "" : ", ", layer);
    print_note(fmt::format("{} has nothing for layers {}: they read everything", options.indexer->info().path,
                           list));
  }
  options.budget = budget;
  options.sinks = sinks;
  options.recent = recent;
  options.query_block = query_block;
  options.refine = refine;
  options.refine_prompt = refine_prompt;
  options.mass = mass;
  options.refine_layers = parse_layers(refine_layers, "--refine-layers");
  options.sparse_layers = parse_layers(sparse_layers, "--sparse-layers");
  if (selection == "shared") options.selection = SelectionMode::shared;
  if (selection == "per-group") options.selection = SelectionMode::per_group;
  if (cache == "fixed") options.cache = CacheKind::fixed;
  if (cache == "tiered") options.cache = CacheKind::tiered;
  if (cold_store != "ram") options.cold_store = cold_store;
  options.voters = voters;
  if (prune == "chunk") options.prune = PruneRule::after_each_chunk;
  return options;
}

void SamplingArguments::add(CLI::App& app) {
  add_count(app, "--max-tokens,-n", max_tokens, "stop after so many tokens (256)");
  add_number(app, "--temperature", sampling.temperature, "0 (the default) always takes the likeliest token");
  add_count(app, "--sample-top-k", sampling.top_k, "draw from the N likeliest only");
  add_number(app, "--top-p", sampling.top_p, "draw from the fewest likeliest that reach this share");
  add_number(app, "--min-p", sampling.min_p,
             "draw from those with this share of the likeliest one's probability");
  add_number(app, "--repetition-penalty", sampling.repetition_penalty,
             "above 1: what was said becomes less likely");
  const auto parse_seed = [this](const CLI::results_t& given) {
    const std::optional<size_t> value = parse_count(given.front());
    if (!value)
      throw CLI::ValidationError("--seed", fmt::format("'{}', expected a whole number", given.front()));
    sampling.seed = *value;
    return true;
  };
  app.add_option("--seed", parse_seed, "of the draws; equal seeds give equal texts (0)")
      ->type_name("N")
      ->take_last();
  app.add_option("--stop", stop, "end the text before this string; may be given several times")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", ignore_eos, "go on after the model's end tokens");
}

GenerateOptions SamplingArguments::generate_options() const {
  GenerateOptions options;
  options.max_tokens = max_tokens;
  options.sampling = sampling;
  options.stop = stop;
  options.ignore_end_tokens = ignore_eos;
  return options;
}

void ChatArguments::add(CLI::App& app) {
  app.add_option("--system", system, "the system message; without it, the template's own")
      ->type_name("TEXT")
      ->take_last();
  app.add_option("--chat-template", chat_template,
                 "a built-in template (chatml, ...) or a Jinja file instead of the model's")
      ->type_name("NAME|FILE")
      ->take_last();
  auto* yes = app.add_flag("--think", think, "ask the template for thinking (Qwen3)");
  auto* no = app.add_flag("--no-think", no_think, "ask the template for no thinking (Qwen3)");
  yes->excludes(no);
}

ChatOptions ChatArguments::chat_options() const {
  ChatOptions options;
  if (!chat_template.empty()) options.template_source = TextCodec::template_from(chat_template);
  if (think) options.thinking = true;
  if (no_think) options.thinking = false;
  return options;
}

std::vector<Message> ChatArguments::messages(const std::string& user) const {
  std::vector<Message> list;
  if (!system.empty()) list.push_back({"system", system});
  list.push_back({"user", user});
  return list;
}

void OutputArguments::add(CLI::App& app, bool with_stats) {
  app.add_flag("--json", json, "one JSON document on standard output and nothing else");
  if (with_stats)
    app.add_flag("--stats", stats, "figures on standard error at the end, beside this machine's peaks");
}

std::vector<int32_t> parse_token_ids(const std::string& text, const std::string& subject) {
  const auto refuse = [&](std::string_view found) {
    throw Error(ErrorKind::format, subject, fmt::format("'{}'", found.substr(0, 40)),
                "token ids as a JSON list or separated by white space");
  };
  std::vector<int32_t> ids;
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && text[first] == '[') {
    const Json list = parse_json(text, subject);
    ids.reserve(list.size());
    for (const Json& item : list) {
      if (!item.is_number_unsigned() || item.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
        refuse(item.dump(-1, ' ', false, Json::error_handler_t::replace));
      }
      ids.push_back(item.get<int32_t>());
    }
    return ids;
  }
  constexpr std::string_view kSpace = " \t\r\n,";
  std::string_view rest = text;
  while (true) {
    rest.remove_prefix(std::min(rest.find_first_not_of(kSpace), rest.size()));
    if (rest.empty()) return ids;
    const std::string_view word = rest.substr(0, rest.find_first_of(kSpace));
    int32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size() || id < 0) refuse(word);
    ids.push_back(id);
    rest.remove_prefix(word.size());
  }
}

std::string read_stdin() {
  constexpr size_t kLimit = size_t{1} << 30;
  std::string text;
  char buffer[65536];
  while (const size_t count = std::fread(buffer, 1, sizeof buffer, stdin)) {
    text.append(buffer, count);
    if (text.size() > kLimit) throw Error(ErrorKind::resource, "standard input", "more than 1 GiB", "less");
  }
  if (std::ferror(stdin) != 0) throw Error(ErrorKind::file, "standard input", "cannot be read", "");
  return text;
}

std::vector<size_t> parse_layers(const std::string& text, std::string_view option) {
  const auto refuse = [&] {
    throw Error(ErrorKind::usage, option, '"' + text + '"', "layer numbers and ranges like 3,5-7");
  };
  std::vector<size_t> layers;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    size_t first = 0;
    auto read = std::from_chars(at, end, first);
    if (read.ec != std::errc()) refuse();
    size_t last = first;
    at = read.ptr;
    if (at < end && *at == '-') {
      read = std::from_chars(at + 1, end, last);
      if (read.ec != std::errc()) refuse();
      at = read.ptr;
    }
    if (last < first || last - first > 4096 || (at < end && *at != ',')) refuse();
    for (size_t layer = first; layer <= last; ++layer) layers.push_back(layer);
    if (at == end) break;
    ++at;  // the comma: something must follow
    if (at == end) refuse();
  }
  std::sort(layers.begin(), layers.end());
  if (std::adjacent_find(layers.begin(), layers.end()) != layers.end()) refuse();
  return layers;
}

}  // namespace keysieve::cli
