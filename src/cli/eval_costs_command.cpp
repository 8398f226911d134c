#include <fmt/format.h>

#include <algorithm>

#include "cli/eval_arguments.h"
#include "cli/interrupt.h"
#include "eval/costs.h"
#include "eval/token_windows.h"

namespace keysieve::cli {
namespace {

class EvalLatencyCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(R"(Examples:
  keysieve eval latency --text book.txt --contexts 2048,8k --budget 512
  keysieve eval latency --contexts 2k --modes dense,sparse,recent --resume latency.part --json
One run each: close other programs first.)");
    text_.add_text(app);
    add_list(app, "--contexts", contexts_, "positions at the end: the prompt and the tokens decoded")
        ->default_str("2048");
    add_list(app, "--modes", modes_, "dense, sparse, oracle, recent, random, snap-kv, h2o, streaming, quest")
        ->default_str("dense,sparse");
    add_count(app, "--decode", decode_, "tokens to decode at the end")->default_str("32");
    add_resume(app, resume_);
    arguments_.add(app);
  }

  int run() override {
    LatencyOptions options;
    options.contexts = parse_counts(contexts_, "--contexts");
    options.modes = parse_modes(modes_);
    options.decode_tokens = decode_;
    const LanguageModel model = arguments_.model.load();
    const EvalSetting setting(model, arguments_.session_options(model));
    size_t longest = 0;
    for (const size_t context : options.contexts) longest = std::max(longest, context);
    const auto windows = token_windows(model.text(), text_.read(), longest - std::min(longest, decode_), 1);
    Json question = question_of("latency", setting, windows);
    question["decode"] = decode_;
    PartialResults partial(resume_, question);
    options.partial = &partial;
    const InterruptGuard interrupt;
    options.cancel = InterruptGuard::flag();
    Progress progress("latency");
    options.on_progress = [&](size_t done, size_t total) { progress.update(done, total); };
    const auto rows = run_latency(setting, windows.front(), options);
    if (!rows) {
      print_note("eval latency: interrupted");
      return kExitInterrupted;
    }
    if (arguments_.output.json) {
      Json document = identity("latency", model, setting);
      document.update({{"rows", to_json(*rows)}, {"decode_tokens", decode_}});
      print_json(document);
    } else {
      show(*rows);
    }
    return kExitFine;
  }

 private:
  static Json to_json(const std::vector<LatencyRow>& rows) {
    Json list = Json::array();
    for (const LatencyRow& row : rows) {
      list.push_back({{"context", row.context},
                      {"mode", to_string(row.mode)},
                      {"budget", row.budget},
                      {"prefill_seconds", row.prefill_seconds},
                      {"decode_seconds", row.decode_seconds},
                      {"prefill_tokens_per_second", row.prefill_tokens_per_second},
                      {"decode_tokens_per_second", row.decode_tokens_per_second},
                      {"decode_positions_read", row.decode_positions_read}});
    }
    return list;
  }

  static void show(const std::vector<LatencyRow>& rows) {
    print(fmt::format("{:>8} {:>7} {:>7} {:>15} {:>15} {:>10}\n", "context", "mode", "budget",
                      "prefill tok/s", "decode tok/s", "read"));
    for (const LatencyRow& row : rows) {
      print(fmt::format("{:>8} {:>7} {:>7} {:>15.1f} {:>15.1f} {:>10.0f}\n", row.context, to_string(row.mode),
                        row.budget == 0 ? "-" : std::to_string(row.budget), row.prefill_tokens_per_second,
                        row.decode_tokens_per_second, row.decode_positions_read));
    }
  }

  TextArguments text_;
  std::vector<std::string> contexts_{"2048"};
  std::vector<std::string> modes_{"dense", "sparse"};
  size_t decode_ = 32;
  std::string resume_;
  EvalArguments arguments_;
};

class EvalMemoryCommand final : public Command {
 public:
  void add_options(CLI::App& app) override {
    app.footer(R"(Examples:
  keysieve eval memory --budget 512
  keysieve eval memory --shape qwen3-8b --budget 2048 --contexts 4k,32k --json
Sparse is a cache that keeps only the budget. The bytes of a row are asked of the cache, not estimated.)");
    add_list(app, "--contexts", contexts_, "tokens")->default_str("4096,8192,16384,32768");
    app.add_option("--shape", shape_, "model (the one loaded) or qwen3-8b (nothing is loaded)")
        ->check(CLI::IsMember({"model", "qwen3-8b"}))
        ->type_name("S")
        ->capture_default_str();
    arguments_.add(app);
  }

  int run() override {
    const std::vector<size_t> contexts = parse_counts(contexts_, "--contexts");
    CacheShape shape = qwen3_8b_shape();
    Json document = {{"kind", "memory"}, {"model", "Qwen3-8B"}};
    size_t budget = arguments_.sparse.budget == 0 ? 2048 : arguments_.sparse.budget;
    if (shape_ == "model") {
      const LanguageModel model = arguments_.model.load();
      const EvalSetting setting(model, arguments_.session_options(model));
      setting.require(AttentionMode::recent);
      shape = cache_shape(setting);
      budget = setting.policy().budget;
      document = identity("memory", model, setting);
    }
    const std::vector<MemoryRow> rows = memory_table(shape, budget, contexts);
    if (arguments_.output.json) {
      document.update({{"rows", to_json(rows)}, {"shape", shape_}, {"budget", budget}});
      print_json(document);
    } else {
      show(rows);
    }
    return kExitFine;
  }

 private:
  static Json to_json(const std::vector<MemoryRow>& rows) {
    Json list = Json::array();
    for (const MemoryRow& row : rows) {
      list.push_back({{"context", row.context},
                      {"dense_kv_bytes", row.dense_kv_bytes},
                      {"sparse_kv_bytes", row.sparse_kv_bytes},
                      {"sparse_index_bytes", row.sparse_index_bytes},
                      {"saved_percent", row.saved_percent},
                      {"saved_percent_with_index", row.saved_percent_with_index}});
    }
    return list;
  }

  static void show(const std::vector<MemoryRow>& rows) {
    print(fmt::format("{:>8} {:>10} {:>10} {:>10} {:>7} {:>11}\n", "context", "dense", "sparse", "index",
                      "saved", "with index"));
    for (const MemoryRow& row : rows) {
      print(fmt::format("{:>8} {:>10} {:>10} {:>10} {:>6.1f}% {:>10.1f}%\n", row.context,
                        human_bytes(row.dense_kv_bytes), human_bytes(row.sparse_kv_bytes),
                        human_bytes(row.sparse_index_bytes), row.saved_percent,
                        row.saved_percent_with_index));
    }
  }

  std::vector<std::string> contexts_{"4096", "8192", "16384", "32768"};
  std::string shape_ = "model";
  EvalArguments arguments_;
};

}  // namespace

std::unique_ptr<Command> make_eval_latency_command() { return std::make_unique<EvalLatencyCommand>(); }
std::unique_ptr<Command> make_eval_memory_command() { return std::make_unique<EvalMemoryCommand>(); }

}  // namespace keysieve::cli
