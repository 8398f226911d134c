#include "fixture.h"

// chat and demo: the verbs that people use, piped and on a terminal.

namespace keysieve {
namespace {

using ::testing::HasSubstr;
using testing::models_dir;
using ::testing::Not;
using testing::Outcome;
using testing::Program;
using testing::run;

class Chat : public testing::CliTest {
 protected:
  // The prompt shows before the terminal is set to editing; control keys are safe to send a moment later.
  static bool at_prompt(Program& program) {
    const bool shown = program.wait_for("> ");
    program.wait(std::chrono::milliseconds(300));
    return shown;
  }
};
class Demo : public testing::CliTest {};

TEST_F(Chat, PipedEachLineIsATurn) {
  const Outcome outcome =
      run(on_tiny("chat", {"-n", "5", "--ignore-eos", "--json"}), "Hello\n\nAnd you?\r\n/stats\n");
  const Json json = json_of(outcome);
  ASSERT_EQ(json["turns"].size(), 2u);
  EXPECT_EQ(json["turns"][1]["prompt"], "And you?");
  // The second turn holds the first one and reuses what the cache has of it.
  EXPECT_GT(json["turns"][1]["prompt_tokens"], json["turns"][0]["prompt_tokens"]);
  EXPECT_GT(json["turns"][1]["reused_tokens"], 20);
  EXPECT_THAT(outcome.err, HasSubstr("tok/s"));
}

TEST_F(Chat, CommandsAreObeyed) {
  const Json json =
      json_of(run(on_tiny("chat", {"-n", "5", "--json"}), "One\n/clear\nOne\n/exit\nnever asked\n"));
  ASSERT_EQ(json["turns"].size(), 2u);
  EXPECT_EQ(json["turns"][1]["prompt_tokens"], json["turns"][0]["prompt_tokens"]);
  EXPECT_EQ(json["turns"][1]["text"], json["turns"][0]["text"]);
  const Outcome help = run(on_tiny("chat", {}), "/help\n/nonsense\n/stats\n");
  EXPECT_EQ(help.status, 0);
  EXPECT_THAT(help.out, HasSubstr("/clear"));
  EXPECT_THAT(help.out, HasSubstr("no command /nonsense"));
  EXPECT_THAT(help.out, HasSubstr("nothing was answered yet"));
}

TEST_F(Chat, AConversationThatOutgrowsTheContextIsAnError) {
  const std::string line = std::string(300, 'a') + "\n";
  expect_failure(run(on_tiny("chat", {"-n", "2"}), line + line), 1, "--context");
}

TEST_F(Chat, OnATerminalCtrlCStopsTheAnswerNotTheChat) {
  Program program(on_tiny("chat", {"--ignore-eos", "-n", "1000000", "--context", "1000000"}),
                  Program::Streams::terminal);
  ASSERT_TRUE(program.wait_for("/help lists the commands"));
  ASSERT_TRUE(at_prompt(program));
  program.write("Hello\r");
  const size_t before = program.seen();
  for (int i = 0; i < 200 && program.seen() < before + 60; ++i) program.wait(std::chrono::milliseconds(50));
  program.write("\x03");
  ASSERT_TRUE(program.wait_for("[stopped]"));
  ASSERT_TRUE(at_prompt(program));
  program.write("/stats\r");
  EXPECT_TRUE(program.wait_for("decode"));
  program.write("/exit\r");
  EXPECT_EQ(program.finish(std::chrono::seconds(20)).status, 0);
  // What was typed is remembered in the state folder.
  EXPECT_THAT(read_text_file(folder_ / "state/keysieve/chat_history"), HasSubstr("Hello"));
}

TEST_F(Chat, CtrlCAtThePromptDropsTheLine) {
  Program program(on_tiny("chat", {"-n", "2"}), Program::Streams::terminal);
  ASSERT_TRUE(at_prompt(program));
  program.write("never asked\x03");
  ASSERT_TRUE(at_prompt(program));
  program.write("/stats\r");
  EXPECT_TRUE(program.wait_for("nothing was answered yet"));
  program.write("/exit\r");
  EXPECT_EQ(program.finish(std::chrono::seconds(20)).status, 0);
}

TEST_F(Chat, CtrlDEndsIt) {
  Program program(on_tiny("chat", {}), Program::Streams::terminal);
  ASSERT_TRUE(at_prompt(program));
  program.write("\x04");
  EXPECT_EQ(program.finish(std::chrono::seconds(20)).status, 0);
}

TEST_F(Demo, WithoutAnIndexerItSaysWhatToDo) {
  const Outcome outcome = run(on_tiny("demo", {}));
  expect_failure(outcome, 1, "indexer auto");
  EXPECT_THAT(outcome.err, HasSubstr("calibrate"));
}

TEST_F(Demo, OnePromptBothWaysPiped) {
  const Outcome outcome = run(on_tiny(
      "demo", {"--prompt", std::string(80, 'b'), "--indexer", indexer_, "--budget", "24", "-n", "12"}));
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  for (const char* part : {"budget 24", "[dense]", "[sparse, budget 24]", "tok/s", "positions", "KV read",
                           "KV kept", "Saved at", "Agreement:"}) {
    EXPECT_THAT(outcome.out, HasSubstr(part));
  }
}

TEST_F(Demo, ModelCardAliasesAndJson) {
  const Json json = json_of(run(on_tiny(
      "demo", {"--prompt", std::string(80, 'b'), "--indexer-path", indexer_ + "/indexer.safetensors",
               "--run-config", indexer_ + "/run_config.json", "--top-k", "24", "-n", "12", "--json"})));
  EXPECT_EQ(json["budget"], 24);
  ASSERT_EQ(json["answers"].size(), 1u);
  const Json& answer = json["answers"][0];
  EXPECT_EQ(answer["sparse"]["decode"]["positions_read"], 24);
  EXPECT_GT(answer["dense"]["decode"]["positions_read"], 80);
  EXPECT_TRUE(answer["agreement"]["equal"].is_boolean());
  EXPECT_TRUE(json["summary"]["decode_positions_saved_percent"].is_number());
}

TEST_F(Demo, OnATerminalTheAnswersStandSideBySide) {
  Program program(on_tiny("demo", {"--prompt", "abc", "--indexer", indexer_, "--budget", "24", "-n", "4"}),
                  Program::Streams::terminal);
  const Outcome outcome = program.finish();
  EXPECT_EQ(outcome.status, 0);
  // 100 columns: 48 for each side and " | " between.
  EXPECT_THAT(outcome.out, HasSubstr("dense" + std::string(43, ' ') + " | sparse, budget 24"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("[dense]")));
}

TEST_F(Demo, InteractiveShowsBoth) {
  const Outcome outcome =
      run(on_tiny("demo", {"--interactive", "--indexer", indexer_, "--budget", "24", "-n", "4"}),
          "Hello\n/clear\nAgain\n/exit\n");
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("> Hello"));
  EXPECT_THAT(outcome.out, HasSubstr("> Again"));
  const Json json =
      json_of(run(on_tiny("demo", {"--interactive", "--indexer", indexer_, "-n", "4", "--json"}), "Hi\n"));
  EXPECT_EQ(json["turns"].size(), 1u);
}

// The main job on the real model, with the indexer that ships: both find the fact in the long document.
TEST(DemoRealModel, TheFactIsFoundByBoth) {
  if (std::getenv("KEYSIEVE_PROGRAM") == nullptr) GTEST_SKIP() << "KEYSIEVE_PROGRAM names no program";
  const std::filesystem::path indexer = testing::source_folder() / "indexers/smollm2-135m";
  if (!models_dir() || !std::filesystem::exists(*models_dir() / "smollm2-135m"))
    GTEST_SKIP() << "no real model";
  if (!std::filesystem::exists(indexer)) GTEST_SKIP() << "no indexer ships for it";
  setenv("KEYSIEVE_MODELS", models_dir()->c_str(), 1);
  const Outcome outcome = run({"demo", "--indexer", indexer.string(), "--json"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const Json json = parse_json(outcome.out, "standard output");
  ASSERT_EQ(json["answers"].size(), 4u);
  const Json& question = json["answers"][3];
  EXPECT_GT(question["dense"]["prompt_tokens"], 3500);
  EXPECT_TRUE(question["agreement"]["dense_found"]) << question["dense"]["text"];
  EXPECT_TRUE(question["agreement"]["sparse_found"]) << question["sparse"]["text"];
  EXPECT_EQ(question["sparse"]["decode"]["positions_read"], 512);
}

// Greedy continuations as recorded, on the exact kernels: the whole program from text to text.
TEST(GenerateRealModel, ContinuesAsRecorded) {
  if (std::getenv("KEYSIEVE_PROGRAM") == nullptr) GTEST_SKIP() << "KEYSIEVE_PROGRAM names no program";
  if (!testing::golden_dir()) GTEST_SKIP() << "no golden data";
  if (!models_dir() || !std::filesystem::exists(*models_dir() / "smollm2-135m"))
    GTEST_SKIP() << "no real model";
  setenv("KEYSIEVE_MODELS", models_dir()->c_str(), 1);
  for (const char* name : {"code", "chat"}) {
    const Json recorded =
        read_json_file(*testing::golden_dir() / "real/smollm2-135m-instruct-q4_1" / name / "greedy.json");
    const Outcome outcome = run({"generate", "--model", "smollm2-135m", "--raw", "-", "--kernels",
                                 "reference", "--kv", "f32", "-n", "24", "--ignore-eos", "--json"},
                                recorded["prompt"]);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(parse_json(outcome.out, "standard output")["token_ids"], recorded["ids"]) << name;
  }
}

}  // namespace
}  // namespace keysieve
