#include <algorithm>
#include <chrono>
#include <random>

#include "fixture.h"

namespace keysieve::testing {
namespace {

using ::testing::HasSubstr;

class TrainCli : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    if (IsSkipped()) return;
    std::mt19937_64 random(4);
    std::string text;
    while (text.size() < 6000) {
      for (size_t i = 0; i < 2 + random() % 7; ++i) text += static_cast<char>('a' + random() % 26);
      text += random() % 9 == 0 ? ".\n" : " ";
    }
    std::ofstream(path("a.txt")) << text;
    std::ofstream(path("dev.txt")) << text.substr(3000);
  }
  std::vector<std::string> train(const std::string& out, std::vector<std::string> more = {}) const {
    std::vector<std::string> list = on_tiny("train", {"--text",    path("a.txt"), "--out",
                                                      path(out),   "--init",      "random",
                                                      "--rank",    "4",           "--window",
                                                      "250",       "--shortest",  "100",
                                                      "--queries", "16",          "--train-budget",
                                                      "30",        "--recent",    "6",
                                                      "--steps",   "30",          "--checkpoint-every",
                                                      "1"});
    list.insert(list.end(), more.begin(), more.end());
    return list;
  }
};

TEST_F(TrainCli, WritesAnIndexerThatGenerateTakes) {
  const Json json = json_of(run(train("out", {"--dev", path("dev.txt"), "--dev-windows", "2", "--json"})));
  EXPECT_EQ(json.at("steps"), 30);
  EXPECT_EQ(json.at("layers"), TinyModel::kLayers);
  const Outcome inspected = run({"inspect", path("out"), "--json"});
  EXPECT_EQ(inspected.status, 0) << inspected.err;
  const Json generated =
      json_of(run(on_tiny("generate", {"--raw", "--prompt", std::string(200, 'x'), "--indexer", path("out"),
                                       "--budget", "40", "--max-tokens", "2", "--ignore-eos", "--json"})));
  EXPECT_EQ(generated.at("token_ids").size(), 2u);
  const Json config = parse_json(read_text_file(path("out") + "/run_config.json"), "run_config.json");
  EXPECT_THAT(config.at("training").at("command").get<std::string>(),
              HasSubstr("keysieve train --model tiny --text a.txt --dev dev.txt --init random"));
}

TEST_F(TrainCli, KilledAtAnyMomentItGoesOnToTheSameBits) {
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_EQ(run(train("whole")).status, 0);
  const std::chrono::duration<double, std::milli> whole = std::chrono::steady_clock::now() - begin;
  std::mt19937 random(std::random_device{}());
  std::vector<std::string> again = train("killed");
  size_t kills = 0;
  unsigned longest = static_cast<unsigned>(whole.count()) / 2 + 1;  // milliseconds
  for (size_t i = 0; i < 200; ++i) {
    Program program(again);
    program.wait(std::chrono::milliseconds(1 + random() % longest));
    program.signal(SIGKILL);
    const Outcome outcome = program.finish();
    if (outcome.status == 0) {
      if (kills > 0) break;
      std::filesystem::remove_all(path("killed"));
      longest = std::max(longest / 2, 1u);
      continue;
    }
    if (outcome.status != 128 + SIGKILL) {  // killed before there was anything to resume
      ASSERT_THAT(outcome.err, HasSubstr("no checkpoint")) << outcome.err;
      again = train("killed");
      continue;
    }
    ++kills;
    again = train("killed");
    if (std::filesystem::exists(path("killed") + "/checkpoint.safetensors")) again.push_back("--resume");
  }
  const bool done = std::filesystem::exists(path("killed") + "/indexer.safetensors");
  if (!done || std::filesystem::exists(path("killed") + "/checkpoint.safetensors")) {
    EXPECT_EQ(run(again).status, 0);
  }
  EXPECT_GT(kills, 0u);
  EXPECT_EQ(read_text_file(path("killed") + "/indexer.safetensors"),
            read_text_file(path("whole") + "/indexer.safetensors"));
}

TEST_F(TrainCli, ShowsALiveLineAndStopsCleanlyAtCtrlC) {
  Program program(train("out", {"--steps", "100000"}), Program::Streams::terminal);
  ASSERT_TRUE(program.wait_for("mass"));
  ASSERT_TRUE(program.wait_for("tok/s"));
  program.signal(SIGINT);
  const Outcome outcome = program.finish();
  EXPECT_EQ(outcome.status, 130);
  EXPECT_THAT(outcome.out, HasSubstr("--resume"));
  EXPECT_TRUE(std::filesystem::exists(path("out") + "/checkpoint.safetensors"));
}

TEST_F(TrainCli, RefusesBadLayersShapesAndStates) {
  for (const auto& [option, value] : std::vector<std::pair<std::string, std::string>>{{"--layers", "1-"},
                                                                                      {"--layers", "3-1"},
                                                                                      {"--layers", "1,,2"},
                                                                                      {"--layers", "0,0-1"},
                                                                                      {"--layers", "1,"},
                                                                                      {"--layers", "7"},
                                                                                      {"--shape", "round"},
                                                                                      {"--states", "wet"},
                                                                                      {"--rate", "0"},
                                                                                      {"--steps", "0"}}) {
    const Outcome outcome = run(train("bad", {option, value}));
    EXPECT_EQ(outcome.status, 2) << option << " " << value << "\n" << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(path("bad") + "/indexer.safetensors"));
  }
}

}  // namespace
}  // namespace keysieve::testing
