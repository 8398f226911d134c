#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>

#include <cmath>

#include "core/file_io.h"
#include "core/json.h"
#include "fixture.h"
#include "formats/npy.h"

// The keys that scripts rely on, from the program itself.

namespace keysieve {
namespace {

using testing::prose;

class Program : public testing::EvalTest {
 protected:
  void SetUp() override {
    const char* program = std::getenv("KEYSIEVE_PROGRAM");
    if (program == nullptr || !std::filesystem::exists(program)) GTEST_SKIP() << "the program is not built";
    program_ = program;
    text_ = folder_.write("text.txt", prose(6000)).string();
  }

  struct Outcome {
    int status;
    std::string out;
  };
  // Standard output only; arguments hold no quotes.
  Outcome run(const std::string& arguments) const {
    const std::string line =
        "'" + program_ + "' " + arguments + " --model '" + model_path_.string() + "' --threads 1 2>/dev/null";
    std::FILE* pipe = popen(line.c_str(), "r");
    Outcome outcome{-1, {}};
    char buffer[4096];
    for (size_t count; (count = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;)
      outcome.out.append(buffer, count);
    const int status = pclose(pipe);
    outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return outcome;
  }
  Json json(const std::string& arguments) const {
    const Outcome outcome = run(arguments + " --json");
    EXPECT_EQ(outcome.status, 0) << outcome.out;
    return parse_json(outcome.out, "standard output");
  }
  std::string indexed(const std::string& more) const {
    return " --indexer '" + indexer_path_.string() + "' --budget 48 " + more;
  }
  static void expect_keys(const Json& object, const std::vector<std::string>& keys) {
    for (const std::string& key : keys) EXPECT_TRUE(object.contains(key)) << key;
  }

  std::string program_;
  std::string text_;
};

TEST_F(Program, CalibratesAnIndexerItThenUses) {
  const std::string out = (folder_.path() / "made").string();
  const Json report = json("calibrate --text '" + text_ +
                           "' --windows 4 --window 300 --rank 4 --budget 80 --out '" + out + "'");
  expect_keys(report, {"out", "model", "layers", "rank", "budget", "parameters", "tokens", "texts",
                       "kept_energy_mean", "kept_energy_least", "seconds"});
  EXPECT_EQ(report.at("tokens"), 1200);
  const Json needle = json("eval needle --indexer '" + out + "' --haystack '" + text_ +
                           "' --contexts 300 --trials 1 --modes dense,sparse");
  EXPECT_EQ(needle.at("rows").at(1).at("budget"), 80);
  EXPECT_EQ(run("calibrate --text '" + text_ + "' --window 9000 --out '" + out + "x'").status, 1);
  EXPECT_EQ(
      run("calibrate --text '" + text_ + "' --rank 99 --windows 1 --window 300 --out '" + out + "x'").status,
      2);
  EXPECT_EQ(run("calibrate --out '" + out + "x'").status, 2);
}

TEST_F(Program, Needle) {
  const Json result =
      json("eval needle" + indexed("--haystack '" + text_ + "' --contexts 300,400 --trials 2"));
  ASSERT_EQ(result.at("rows").size(), 8u);
  std::vector<std::string> modes;
  for (const Json& row : result.at("rows")) {
    expect_keys(row, {"context", "budget", "mode", "passed", "trials", "wilson95", "prefill_seconds",
                      "peak_rss_bytes"});
    EXPECT_EQ(row.at("wilson95").size(), 2u);
    EXPECT_EQ(row.at("trials"), 2);
    modes.push_back(row.at("mode"));
  }
  modes.resize(4);
  EXPECT_THAT(modes, ::testing::ElementsAre("dense", "sparse", "oracle", "recent"));
  EXPECT_EQ(run("eval needle" + indexed("--haystack '" + text_ + "' --contexts many")).status, 2);
}

TEST_F(Program, NeedlesAtSeveralBudgetsGoOnWhereTheyWere) {
  const std::string part = (folder_.path() / "needle.part").string();
  const std::string command = "eval needle --indexer '" + indexer_path_.string() + "' --haystack '" + text_ +
                              "' --contexts 300 --trials 2 --modes dense,sparse --budgets 48,96";
  const auto without_times = [](Json result) {
    for (Json& row : result.at("rows")) {
      row.erase("prefill_seconds");
      row.erase("peak_rss_bytes");
    }
    return result;
  };
  const Json once = without_times(json(command));
  ASSERT_EQ(once.at("rows").size(), 3u);
  EXPECT_EQ(once.at("rows").at(0).at("mode"), "dense");
  EXPECT_EQ(once.at("rows").at(1).at("budget"), 48);
  EXPECT_EQ(once.at("rows").at(2).at("budget"), 96);
  EXPECT_EQ(without_times(json(command + " --resume '" + part + "'")), once);
  // A run stopped halfway: what is there is taken as it stands, the rest is computed.
  Json file = read_json_file(part);
  ASSERT_EQ(file.at("results").size(), 6u);
  file.at("results").erase("300 sparse 96 trial 1");
  file.at("results").at("300 sparse 48 trial 0").at("code_nll") = 1000.0;
  folder_.write("needle.part", file.dump());
  const Json resumed = without_times(json(command + " --resume '" + part + "'"));
  EXPECT_EQ(resumed.at("rows").at(2), once.at("rows").at(2));
  EXPECT_GT(resumed.at("rows").at(1).at("code_nll"), 400);
  EXPECT_EQ(run(command + " --seed 2 --resume '" + part + "'").status, 1);  // another question
}

TEST_F(Program, RetrievalAsksWithEachLayerRefined) {
  const std::string command =
      "eval retrieval" + indexed("--length 300 --trials 1 --haystack '" + text_ + "' ");
  const Json alone = json(command + "--refine 96");
  EXPECT_EQ(alone.at("refine"), 96);
  const Json& rows = alone.at("rows");
  ASSERT_EQ(rows.size(), 5u);  // dense, none, all and two layers
  EXPECT_EQ(rows.at(0).at("kind"), "dense");
  EXPECT_EQ(rows.at(4).at("layers"), Json({1}));
  const Json both = json(command + "--refine 96 --layers 0-1 --layers 1").at("rows");
  ASSERT_EQ(both.size(), 5u);
  EXPECT_EQ(both.at(3).at("code_nll"), rows.at(2).at("code_nll"));
  EXPECT_EQ(both.at(4).at("code_nll"), rows.at(4).at("code_nll"));
  EXPECT_EQ(run(command).status, 2);  // this indexer asks for no refining
  const Json words = json(command + "--refine 96 --form words");
  EXPECT_EQ(words.at("form"), "words");
  EXPECT_NE(words.at("rows").at(2).at("code_nll"), rows.at(2).at("code_nll"));
  EXPECT_EQ(run(command + "--refine 96 --form riddles").status, 2);
  EXPECT_EQ(run(command + "--refine 96 --layers 7").status, 2);
}

TEST_F(Program, RetrievalGoesOnWhereItWas) {
  const std::string part = (folder_.path() / "retrieval.part").string();
  const std::string command = "eval retrieval" +
                              indexed("--length 300 --trials 1 --haystack '" + text_ + "' ") + "--resume '" +
                              part + "' ";
  const Json whole = json(command + "--refine 96 --layers 0");
  EXPECT_EQ(json(command + "--refine 96 --layers 0"), whole);
  // What is known is taken, and only a new row is asked.
  Json file = read_json_file(part);
  file.at("results").at("trial 0 all").at("code_nll") = 555.0;
  folder_.write("retrieval.part", file.dump());
  const Json more = json(command + "--refine 96 --layers 1 --layers 0").at("rows");
  EXPECT_EQ(more.at(2).at("code_nll"), 555.0);
  EXPECT_EQ(more.at(4), whole.at("rows").at(3));
  // Another question.
  EXPECT_EQ(run(command + "--refine 96 --seed 2").status, 1);
  EXPECT_EQ(run(command + "--refine 80").status, 1);
}

TEST_F(Program, PerplexityAndAgreement) {
  const std::string windows = "--text '" + text_ + "' --window 256 --windows 2 ";
  const Json ppl = json("eval ppl" + indexed(windows + "--baselines oracle,recent,random"));
  expect_keys(ppl,
              {"perplexity_dense", "perplexity_sparse", "delta_percent", "delta_ci95_percent", "tokens"});
  expect_keys(ppl.at("baselines"), {"oracle", "recent", "random"});
  EXPECT_EQ(ppl.at("tokens"), 128);
  const Json agreement = json("eval agreement" + indexed(windows));
  expect_keys(agreement, {"top1_agreement", "kl_mean"});
  EXPECT_EQ(agreement.at("tokens"), 128);
  EXPECT_EQ(run("eval agreement --dense " + windows).status, 2);
}

TEST_F(Program, BaselinesTooReadSparselyInNamedLayersOnly) {
  const std::string command = "eval ppl --text '" + text_ +
                              "' --window 256 --windows 1 --indexer none --budget 80 --baselines recent ";
  const auto perplexity = [&](const std::string& layers) {
    return json(command + layers).at("baselines").at("recent").at("perplexity").get<double>();
  };
  const double all = perplexity("");
  const double first = perplexity("--sparse-layers 0");
  EXPECT_EQ(perplexity("--sparse-layers 0,1"), all);
  EXPECT_NE(first, all);
  EXPECT_NE(first, json(command).at("perplexity_dense").get<double>());
}

TEST_F(Program, NeighboursChooseTogetherWhereAsked) {
  const std::string command = "eval ppl" + indexed("--text '" + text_ + "' --window 256 --windows 1 ");
  const auto perplexity = [&](const std::string& block) {
    return json(command + block).at("perplexity_sparse").get<double>();
  };
  const double alone = perplexity("--query-block 1");
  EXPECT_EQ(perplexity(""), alone);  // what this indexer's file says
  EXPECT_NE(perplexity("--query-block 8"), alone);
  EXPECT_EQ(run(command + "--query-block 0").status, 2);
  EXPECT_EQ(run(command + "--query-block 65").status, 2);
  EXPECT_EQ(run("eval ppl --text '" + text_ + "' --window 256 --dense --query-block 4").status, 2);
}

TEST_F(Program, PerplexityAtSeveralBudgetsGoesOnWhereItWas) {
  const std::string part = (folder_.path() / "ppl.part").string();
  const std::string command = "eval ppl --text '" + text_ +
                              "' --window 256 --windows 2 --indexer none --budgets 80,120 "
                              "--baselines recent,quest";
  const Json once = json(command);
  ASSERT_EQ(once.at("rows").size(), 4u);
  EXPECT_EQ(once.at("rows").at(3).at("budget"), 120);
  EXPECT_EQ(once.at("rows").at(3).at("mode"), "quest");
  EXPECT_EQ(once.at("kind"), "ppl");
  EXPECT_FALSE(once.contains("perplexity_sparse"));
  EXPECT_EQ(json(command + " --resume '" + part + "'"), once);
  // A run stopped halfway: what is there is taken as it stands, the rest is computed.
  Json file = read_json_file(part);
  ASSERT_EQ(file.at("results").size(), 10u);
  file.at("results").erase("quest 120 window 1");
  file.at("results").at("recent 80 window 0").at(0) = 1000.0;
  folder_.write("ppl.part", file.dump());
  const Json resumed = json(command + " --resume '" + part + "'");
  EXPECT_EQ(resumed.at("rows").at(3), once.at("rows").at(3));
  EXPECT_GT(resumed.at("rows").at(0).at("perplexity"), once.at("rows").at(0).at("perplexity"));
  EXPECT_EQ(read_json_file(part).at("results").size(), 10u);
  EXPECT_EQ(run(command + " --whole --resume '" + part + "'").status, 1);  // another question
  folder_.write("ppl.part", "[1]");
  EXPECT_EQ(run(command + " --resume '" + part + "'").status, 1);
}

TEST_F(Program, AgreementAndLatencyGoOnWhereTheyWere) {
  const std::string part = (folder_.path() / "agreement.part").string();
  const std::string agreement =
      "eval agreement" + indexed("--text '" + text_ + "' --window 256 --windows 2 ");
  const Json once = json(agreement);
  EXPECT_EQ(json(agreement + " --resume '" + part + "'"), once);
  Json file = read_json_file(part);
  ASSERT_EQ(file.at("results").size(), 2u);
  Json::iterator first = file.at("results").begin();
  first.value().at("kl_sum") = 64000.0;
  file.at("results").erase(std::next(first));
  folder_.write("agreement.part", file.dump());
  const Json resumed = json(agreement + " --resume '" + part + "'");
  EXPECT_GT(resumed.at("kl_mean"), 500);
  EXPECT_EQ(resumed.at("top1_agreement"), once.at("top1_agreement"));
  const std::string other =
      indexed("--text '" + text_ + "' --window 200 --windows 2 --resume '" + part + "' ");
  EXPECT_EQ(run("eval agreement" + other).status, 1);  // another question

  const std::string times = (folder_.path() / "latency.part").string();
  const std::string latency =
      "eval latency" +
      indexed("--text '" + text_ + "' --contexts 128,256 --decode 8 --resume '" + times + "' ");
  ASSERT_EQ(json(latency).at("rows").size(), 4u);
  file = read_json_file(times);
  ASSERT_EQ(file.at("results").size(), 4u);
  for (Json& row : file.at("results")) row.at("decode_seconds") = 16.0;
  folder_.write("latency.part", file.dump());
  const Json held = json(latency);
  for (const Json& row : held.at("rows")) EXPECT_EQ(row.at("decode_tokens_per_second"), 0.5);
  file.at("results").begin().value() = 1;
  folder_.write("latency.part", file.dump());
  EXPECT_EQ(run(latency).status, 1);
}

// llama.cpp's windows: the whole text one after another, of each the second half but its first token.
TEST_F(Program, PerplexityAsLlamaCppCountsIt) {
  const std::string like = "eval ppl --dense --text '" + text_ + "' --like llama-perplexity";
  const Json all = json(like + " --window 128");
  EXPECT_EQ(all.at("windows"), 6000 / 128);  // a token a byte, and no begin-of-text token
  EXPECT_EQ(all.at("tokens"), 6000 / 128 * 63);
  EXPECT_EQ(json(like).at("window"), 512);
  // The first window's losses by way of the logits verb.
  const Json first = json(like + " --window 128 --windows 1");
  const std::string ids = folder_.write("ids.json", Json(bytes(prose(6000).substr(0, 128))).dump()).string();
  const std::string out = (folder_.path() / "logits.npy").string();
  ASSERT_EQ(run("logits --tokens '" + ids + "' --out '" + out + "'").status, 0);
  const std::vector<float> values = NpyFile(out).floats();
  const size_t vocabulary = values.size() / 128;
  const std::vector<int32_t> tokens = bytes(prose(6000).substr(0, 128));
  double sum = 0;
  for (size_t i = 64; i < 127; ++i) {
    const auto row = std::span(values).subspan(i * vocabulary, vocabulary);
    double total = 0;
    for (const float value : row) total += std::exp(static_cast<double>(value));
    sum += std::log(total) - static_cast<double>(row[static_cast<size_t>(tokens[i + 1])]);
  }
  EXPECT_NEAR(first.at("perplexity_dense").get<double>(), std::exp(sum / 63), 1e-3 * std::exp(sum / 63));
  EXPECT_EQ(run(like + " --whole").status, 2);
  EXPECT_EQ(run(like + " --window 9000").status, 1);
}

TEST_F(Program, ResultsAsTheModelCardHasThem) {
  const std::string file = (folder_.path() / "ppl_results.json").string();
  const std::string command = "eval ppl --text '" + text_ + "' --windows 2 --results '" + file + "'";
  const Json small = json(command + indexed("--window 200"));
  json(command + indexed("--window 400"));
  const Json results = read_json_file(file);
  EXPECT_EQ(results.at("top_k"), 48);
  EXPECT_EQ(results.at("results").size(), 2u);
  const Json& entry = results.at("results").at("200");
  expect_keys(entry, {"dense_ppl", "sparse_ppl", "delta", "delta_percent", "delta_ci95_percent", "tokens"});
  EXPECT_EQ(entry.at("dense_ppl"), small.at("perplexity_dense"));
  EXPECT_DOUBLE_EQ(entry.at("delta").get<double>(),
                   small.at("perplexity_sparse").get<double>() - small.at("perplexity_dense").get<double>());
  const std::string before = read_text_file(file);
  EXPECT_EQ(run(command + " --indexer '" + indexer_path_.string() + "' --budget 64 --window 200").status, 1);
  EXPECT_EQ(run(command + " --dense").status, 2);
  EXPECT_EQ(read_text_file(file), before);
}

TEST_F(Program, WordProblems) {
  std::string lines;
  for (int i = 1; i <= 6; ++i) {
    const Json line = {{"question", "Ann has " + std::to_string(i) + " eggs and buys 2."},
                       {"answer", "She has <<2+1=3>>some.\n#### " + std::to_string(i + 2)}};
    lines += line.dump() + "\n";
  }
  const std::string data = folder_.write("problems.jsonl", lines).string();
  const std::string part = (folder_.path() / "gsm8k.part").string();
  const std::string command = "eval gsm8k --data '" + data +
                              "' --shots 2 --limit 3 --max-tokens 8 --resume '" + part +
                              "' --indexer-path '" + indexer_path_.string() + "' --top-k ";
  const Json result = json(command + "48");
  expect_keys(result, {"accuracy", "correct", "total", "wilson95", "mode"});
  EXPECT_EQ(result.at("total"), 3);
  EXPECT_EQ(result.at("mode"), "sparse");
  EXPECT_EQ(result.at("budget_binds"), true);
  EXPECT_EQ(json(command + "48"), result);   // from the partial results
  EXPECT_EQ(run(command + "50").status, 1);  // which answer another question
  EXPECT_EQ(json("eval gsm8k --dense --data '" + data + "' --shots 1 --max-tokens 4").at("total"), 5);
  EXPECT_EQ(json("eval gsm8k --indexer none --budget 500 --mode quest --data '" + data +
                 "' --shots 1 --limit 1 --max-tokens 4")
                .at("budget_binds"),
            false);
  folder_.write("problems.jsonl", "{\"question\": \"q\", \"answer\": \"none\"}\n");
  EXPECT_EQ(run("eval gsm8k --dense --shots 0 --data '" + data + "'").status, 1);
  // Without --data: what was pulled.
  folder_.write("data/gsm8k/test.jsonl", lines);
  ASSERT_EQ(setenv("KEYSIEVE_DATA", (folder_.path() / "data").c_str(), 1), 0);
  EXPECT_EQ(json("eval gsm8k --dense --shots 1 --limit 2 --max-tokens 4").at("total"), 2);
  setenv("KEYSIEVE_DATA", (folder_.path() / "nowhere").c_str(), 1);
  EXPECT_EQ(run("eval gsm8k --dense").status, 1);
  unsetenv("KEYSIEVE_DATA");
}

TEST_F(Program, MemoryAndLatency) {
  const Json memory = json("eval memory" + indexed("--contexts 1k,2048"));
  ASSERT_EQ(memory.at("rows").size(), 2u);
  for (const Json& row : memory.at("rows"))
    expect_keys(row, {"context", "dense_kv_bytes", "sparse_kv_bytes", "saved_percent"});
  EXPECT_EQ(json("eval memory --shape qwen3-8b --contexts 4096").at("rows").at(0).at("dense_kv_bytes"),
            603979776);
  const Json latency = json("eval latency" + indexed("--text '" + text_ + "' --contexts 300 --decode 4"));
  ASSERT_EQ(latency.at("rows").size(), 2u);
  for (const Json& row : latency.at("rows"))
    expect_keys(row, {"context", "mode", "prefill_tokens_per_second", "decode_tokens_per_second"});
}

}  // namespace
}  // namespace keysieve
