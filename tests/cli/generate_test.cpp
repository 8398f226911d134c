#include "fixture.h"

namespace keysieve {
namespace {

using ::testing::HasSubstr;
using testing::Outcome;
using testing::Program;
using testing::run;

class Generate : public testing::CliTest {};

TEST_F(Generate, JsonHasTheContractsKeys) {
  const Json json =
      json_of(run(on_tiny("generate", {"--prompt", "Hello", "--max-tokens", "9", "--ignore-eos", "--json"})));
  for (const char* key : {"text", "token_ids", "prompt_tokens", "stop_reason"})
    EXPECT_TRUE(json.contains(key)) << key;
  EXPECT_EQ(json["token_ids"].size(), 9u);
  EXPECT_EQ(json["stop_reason"], "length");
  EXPECT_EQ(json["prefill"]["tokens"], json["prompt_tokens"]);
  EXPECT_EQ(json["decode"]["tokens"], 8);
  for (const char* phase : {"prefill", "decode"}) {
    for (const char* key : {"tokens", "seconds", "tokens_per_second"})
      EXPECT_TRUE(json[phase][key].is_number()) << key;
  }
  for (const char* key :
       {"weights_bytes", "kv_hot_bytes", "kv_cold_bytes", "index_bytes", "peak_rss_bytes"}) {
    EXPECT_TRUE(json["memory"][key].is_number_unsigned()) << key;
  }
  EXPECT_GT(json["memory"]["peak_rss_bytes"], json["memory"]["weights_bytes"]);
}

TEST_F(Generate, TheTieredCacheSaysTheSameAndReportsItsTiers) {
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--prompt", std::string(200, 'x') + "yz", "--raw", "--indexer", indexer_,
                             "--budget", "24", "--max-tokens", "20", "--ignore-eos", "--json"});
    return json_of(run(on_tiny("generate", more)));
  };
  const Json full = with({});
  EXPECT_EQ(full["memory"]["kv_moved_bytes"], 0);
  std::filesystem::create_directories(folder_ / "cold");
  for (const std::string& store : {std::string("ram"), path("cold")}) {
    const Json tiered = with({"--cache", "tiered", "--cold-store", store});
    EXPECT_EQ(tiered["token_ids"], full["token_ids"]);
    EXPECT_EQ(tiered["memory"]["kv_cold_bytes"], full["memory"]["kv_hot_bytes"]);
    EXPECT_LT(tiered["memory"]["kv_hot_bytes"], full["memory"]["kv_hot_bytes"]);
    EXPECT_GT(tiered["memory"]["kv_moved_bytes"], 0);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / "cold"));
}

TEST_F(Generate, AKilledProgramLeavesNoColdStore) {
  std::filesystem::create_directories(folder_ / "cold");
  Program program(on_tiny("chat", {"--indexer", indexer_, "--budget", "24", "--cache", "tiered",
                                   "--cold-store", path("cold"), "--max-tokens", "100", "--ignore-eos"}));
  program.write("Hello\n");
  ASSERT_TRUE(program.wait_for("\n"));  // the answer, so the store has its rows
  program.signal(SIGKILL);
  EXPECT_EQ(program.finish().status, 128 + SIGKILL);
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / "cold"));
}

TEST_F(Generate, ASavedSessionGoesOnAsIfItHadNotBeenLeft) {
  std::string text;
  for (int i = 0; text.size() < 200; ++i) text += "line " + std::to_string(i * i) + "; ";
  text.resize(200);
  for (const std::string& cache : {std::string("full"), std::string("fixed"), std::string("tiered")}) {
    const std::string file = path(cache + ".session");
    const auto with = [&](std::vector<std::string> more) {
      more.insert(more.end(), {"--raw", "--indexer", indexer_, "--budget", "64", "--cache", cache, "--kv",
                               "i8", "--max-tokens", "12", "--ignore-eos", "--json"});
      return run(on_tiny("generate", more));
    };
    const auto ids = [](const Outcome& outcome) { return json_of(outcome)["token_ids"]; };
    json_of(run(
        on_tiny("generate", {"--prompt", text, "--raw", "--indexer", indexer_, "--budget", "64", "--cache",
                             cache, "--kv", "i8", "--max-tokens", "0", "--save-session", file, "--json"})));
    const Json first = json_of(with({"--load-session", file, "--prompt", "yz"}));
    EXPECT_EQ(first["reused_tokens"], 200) << cache;
    EXPECT_EQ(ids(with({"--load-session", file, "--prompt", "yz"})), first["token_ids"]) << cache;
    // Read in one go, a fixed cache is cut two tokens later, and sees more.
    if (cache != "fixed") {
      EXPECT_EQ(ids(with({"--prompt", text + "yz"})), first["token_ids"]) << cache;
    }
    const Outcome other =
        run(on_tiny("generate", {"--load-session", file, "--prompt", "yz", "--dense", "--kv", "i8"}));
    EXPECT_EQ(other.status, 1);
    EXPECT_THAT(other.err, HasSubstr("a session with indexer"));
  }
}

TEST_F(Generate, WhatAFixedCacheKeepsIsUpToItsOptions) {
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--prompt", std::string(400, 'x') + "yz", "--raw", "--indexer", indexer_,
                             "--budget", "64", "--max-tokens", "8", "--ignore-eos", "--json"});
    return run(on_tiny("generate", more));
  };
  const Json once = json_of(with({"--cache", "fixed", "--vote", "last"}));
  const Json chunked = json_of(with({"--cache", "fixed", "--vote", "16", "--prune", "chunk"}));
  EXPECT_EQ(once["memory"]["kv_hot_bytes"], chunked["memory"]["kv_hot_bytes"]);
  for (const std::vector<std::string>& bad :
       {std::vector<std::string>{"--vote", "4"}, {"--prune", "chunk"}, {"--cache", "fixed", "--vote", "0"}}) {
    EXPECT_EQ(with(bad).status, 2);
  }
}

TEST_F(Generate, TheChatTemplateAddsItsTokens) {
  const Json raw = json_of(run(on_tiny("generate", {"--prompt", "Hello", "--raw", "-n", "1", "--json"})));
  EXPECT_EQ(raw["prompt_tokens"], 5);
  // <|im_start|> "user\n" "Hello" <|im_end|> "\n" <|im_start|> "assistant\n"
  const Json chat = json_of(run(on_tiny("generate", {"--prompt", "Hello", "-n", "1", "--json"})));
  EXPECT_EQ(chat["prompt_tokens"], 1 + 5 + 5 + 1 + 1 + 1 + 10);
  const Json system =
      json_of(run(on_tiny("generate", {"--prompt", "Hello", "--system", "Hm", "-n", "1", "--json"})));
  EXPECT_EQ(system["prompt_tokens"], 24 + 1 + 7 + 2 + 1 + 1);
}

TEST_F(Generate, PromptsComeFromArgumentFileAndStandardInput) {
  const std::vector<std::string> common = {"--raw", "--max-tokens", "20"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), common.begin(), common.end());
    return on_tiny("generate", more);
  };
  testing::detail::write_file(folder_ / "prompt.txt", "Some prompt");
  const Outcome given = run(with({"--prompt", "Some prompt"}));
  EXPECT_EQ(given.status, 0) << given.err;
  EXPECT_EQ(given.err, "");
  EXPECT_EQ(run(with({"--prompt-file", path("prompt.txt")})).out, given.out);
  EXPECT_EQ(run(with({"-"}), "Some prompt").out, given.out);
}

TEST_F(Generate, PlainOutputIsTheText) {
  const std::vector<std::string> options = {"--prompt", "abc", "--max-tokens", "25"};
  std::vector<std::string> json = options;
  json.push_back("--json");
  const std::string text = json_of(run(on_tiny("generate", json)))["text"];
  EXPECT_EQ(run(on_tiny("generate", options)).out, text.ends_with('\n') ? text : text + "\n");
}

TEST_F(Generate, StatsAreOneLineAndOneARooflinePhaseOnStandardError) {
  const Outcome outcome = run(on_tiny("generate", {"--prompt", "abc", "--max-tokens", "5", "--stats"}));
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 3) << outcome.err;
  for (const char* part : {"prefill", "decode", "tok/s", "positions", "KV", "roofline prefill: ", "GB/s (",
                           "roofline decode: ", "G multiply-adds/s"}) {
    EXPECT_THAT(outcome.err, HasSubstr(part));
  }
}

TEST_F(Generate, RooflineIsInTheDocumentWhenAskedFor) {
  const std::vector<std::string> options = {"--prompt", "abc", "--max-tokens", "5", "--ignore-eos", "--json"};
  EXPECT_FALSE(json_of(run(on_tiny("generate", options))).contains("roofline"));
  std::vector<std::string> with = options;
  with.push_back("--stats");
  const Json json = json_of(run(on_tiny("generate", with)));
  const Json& decode = json["roofline"]["decode"];
  EXPECT_GT(json["roofline"]["peaks"]["read_bytes_per_second"], 0);
  EXPECT_EQ(decode["tokens_per_second"], json["decode"]["tokens_per_second"]);
  EXPECT_DOUBLE_EQ(
      decode["bytes_per_second"].get<double>(),
      json["decode"]["memory_bytes_read"].get<double>() / json["decode"]["seconds"].get<double>());
  EXPECT_GT(json["load_seconds"], 0);
}

TEST_F(Generate, SparseReadsTheBudget) {
  const Json json =
      json_of(run(on_tiny("generate", {"--prompt", std::string(100, 'a'), "--indexer", indexer_, "--budget",
                                       "24", "--max-tokens", "5", "--ignore-eos", "--json"})));
  EXPECT_EQ(json["decode"]["positions_read"], 24);
  EXPECT_GT(json["memory"]["index_bytes"], 0);
  const Json fixed =
      json_of(run(on_tiny("generate", {"--prompt", std::string(100, 'a'), "--indexer", indexer_, "--cache",
                                       "fixed", "--max-tokens", "5", "--ignore-eos", "--json"})));
  EXPECT_LT(fixed["memory"]["kv_hot_bytes"], json["memory"]["kv_hot_bytes"]);
}

TEST_F(Generate, MassReadsNoMoreThanItTakes) {
  const auto ask = [&](const char* mass) {
    return run(on_tiny("generate", {"--prompt", std::string(100, 'a'), "--indexer", indexer_, "--budget",
                                    "90", "--mass", mass, "--max-tokens", "5", "--ignore-eos", "--json"}));
  };
  const double half = json_of(ask("0.5"))["decode"]["positions_read"].get<double>();
  EXPECT_GE(half, 10);  // sinks and recent
  EXPECT_LT(half, 70);
  EXPECT_EQ(json_of(ask("1"))["decode"]["positions_read"], 90);
  EXPECT_EQ(ask("0").status, 2);
  EXPECT_EQ(ask("1.5").status, 2);
}

TEST_F(Generate, RefiningReadsMoreKeysWhereItIsAsked) {
  const auto ask = [&](const char* at_end, const char* before) {
    const Json json = json_of(run(on_tiny(
        "generate", {"--prompt", std::string(150, 'a'), "--indexer", indexer_, "--budget", "24", "--refine",
                     at_end, "--refine-prompt", before, "--max-tokens", "5", "--ignore-eos", "--json"})));
    return std::pair(json["prefill"]["kv_bytes_read"].get<double>(),
                     json["decode"]["kv_bytes_read"].get<double>());
  };
  const auto plain = ask("0", "0"), end = ask("40", "0"), before = ask("0", "40"), both = ask("40", "40");
  EXPECT_GT(end.first, plain.first);
  EXPECT_GT(end.second, plain.second);
  EXPECT_GT(before.first, plain.first);
  EXPECT_EQ(before.second, plain.second);
  EXPECT_EQ(both.first - plain.first, end.first - plain.first + before.first - plain.first);
  expect_failure(run(on_tiny("generate", {"--prompt", "a", "--refine", "40"})), 2, "--refine");
  expect_failure(run(on_tiny("generate", {"--prompt", "a", "--refine-prompt", "40"})), 2, "--refine-prompt");
}

TEST_F(Generate, RefiningMayBeLeftToSomeLayers) {
  const auto ask = [&](const char* layers) {
    return run(on_tiny(
        "generate", {"--prompt", std::string(150, 'a'), "--indexer", indexer_, "--budget", "24", "--refine",
                     "40", "--refine-layers", layers, "--max-tokens", "5", "--ignore-eos", "--json"}));
  };
  const auto read = [&](const char* layers) {
    return json_of(ask(layers))["decode"]["kv_bytes_read"].get<double>();
  };
  const double all = read("0-1"), first = read("0"), second = read("1");
  EXPECT_LT(first, all);
  EXPECT_EQ(first, second);
  expect_failure(ask("2"), 2, "layer 2");
  expect_failure(ask("a"), 2, "--refine-layers");
  expect_failure(run(on_tiny("generate", {"--prompt", "a", "--refine-layers", "1"})), 2, "--refine-layers");
}

TEST_F(Generate, LayersMayBeLeftDense) {
  const auto ask = [&](const char* layers) {
    return run(
        on_tiny("generate", {"--prompt", std::string(100, 'a'), "--indexer", indexer_, "--budget", "24",
                             "--sparse-layers", layers, "--max-tokens", "1", "--ignore-eos", "--json"}));
  };
  const Json dense = json_of(run(on_tiny(
      "generate", {"--prompt", std::string(100, 'a'), "--max-tokens", "1", "--ignore-eos", "--json"})));
  const double everything = dense["prefill"]["positions_read"];
  const double both = json_of(ask("0-1"))["prefill"]["positions_read"];
  const double one = json_of(ask("1"))["prefill"]["positions_read"];
  EXPECT_LT(both, 24);
  EXPECT_NEAR(one, (both + everything) / 2, 1e-6);
  expect_failure(ask("1,9"), 2, "layer 9");
  expect_failure(ask("1-"), 2, "--sparse-layers");
  expect_failure(run(on_tiny("generate", {"--prompt", "a", "--sparse-layers", "1"})), 2, "--sparse-layers");
  expect_failure(run(on_tiny("generate", {"--prompt", "a", "--query-block", "4"})), 2, "--query-block");
}

TEST_F(Generate, EqualSeedsGiveEqualTexts) {
  const auto draw = [&](const char* seed) {
    return run(on_tiny("generate", {"--prompt", "abc", "--temperature", "1", "--seed", seed, "-n", "40"}))
        .out;
  };
  EXPECT_EQ(draw("7"), draw("7"));
  EXPECT_NE(draw("7"), draw("8"));
}

TEST_F(Generate, AStopStringEndsTheText) {
  const std::vector<std::string> options = {"--prompt", "abc",          "--max-tokens",
                                            "40",       "--ignore-eos", "--json"};
  const std::string whole = json_of(run(on_tiny("generate", options)))["text"];
  ASSERT_GT(whole.size(), 10u);
  // The first whole character past the fifth byte; a NUL could not be an argument.
  const auto continues = [&](size_t i) { return (static_cast<unsigned char>(whole[i]) & 0xc0) == 0x80; };
  size_t at = 5;
  while (continues(at) || whole[at] == '\0') ++at;
  size_t end = at + 1;
  while (end < whole.size() && continues(end)) ++end;
  const std::string stop = whole.substr(at, end - at);
  std::vector<std::string> stopped = options;
  stopped.insert(stopped.end(), {"--stop=" + stop, "--stop", "never said"});
  const Json json = json_of(run(on_tiny("generate", stopped)));
  EXPECT_EQ(json["stop_reason"], "stop");
  EXPECT_EQ(json["text"], whole.substr(0, whole.find(stop)));
}

TEST_F(Generate, APromptLongerThanTheContextIsOneClearError) {
  const Outcome outcome = run(on_tiny("generate", {"--raw", "--prompt", std::string(600, 'a')}));
  expect_failure(outcome, 1, "600 tokens");
  EXPECT_THAT(outcome.err, HasSubstr("--context"));
  // And the way out works.
  EXPECT_EQ(
      run(on_tiny("generate", {"--raw", "--prompt", std::string(600, 'a'), "--context", "1k", "-n", "2"}))
          .status,
      0);
}

TEST_F(Generate, InterruptedItPrintsWhatItHas) {
  Program program(on_tiny(
      "generate", {"--prompt", "abc", "--ignore-eos", "--max-tokens", "1000000", "--context", "1000000"}));
  // Whatever it says, it has begun when it has said ten bytes.
  for (int i = 0; i < 400 && program.seen() < 10; ++i) program.wait(std::chrono::milliseconds(50));
  ASSERT_GE(program.seen(), 10u);
  program.signal(SIGINT);
  const Outcome outcome = program.finish(std::chrono::seconds(20));
  EXPECT_EQ(outcome.status, 130);
  EXPECT_GE(outcome.out.size(), 10u);
  EXPECT_EQ(outcome.out.back(), '\n');
}

TEST_F(Generate, InterruptedJsonIsWholeAndSaysSo) {
  Program program(on_tiny("generate", {"--prompt", "abc", "--ignore-eos", "--max-tokens", "1000000",
                                       "--context", "1000000", "--json"}));
  program.wait(std::chrono::milliseconds(1500));
  program.signal(SIGINT);
  const Outcome outcome = program.finish(std::chrono::seconds(20));
  EXPECT_EQ(outcome.status, 130) << outcome.err;
  EXPECT_EQ(parse_json(outcome.out, "standard output")["stop_reason"], "interrupted");
}

TEST_F(Generate, ControlBytesDoNotReachATerminal) {
  // The tiny model says any byte; on a terminal the dangerous ones become question marks.
  Program program(on_tiny("generate", {"--prompt", "abc", "--ignore-eos", "--temperature", "5", "-n", "400"}),
                  Program::Streams::terminal);
  const Outcome outcome = program.finish();
  EXPECT_EQ(outcome.status, 0);
  const size_t start = outcome.out.rfind("\x1b[K");  // the progress line's own
  const std::string text = start == std::string::npos ? outcome.out : outcome.out.substr(start + 3);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    EXPECT_TRUE(byte >= 0x20 || byte == '\n' || byte == '\r' || byte == '\t') << static_cast<int>(byte);
  }
}

}  // namespace
}  // namespace keysieve
