#include "fixture.h"

namespace keysieve {
namespace {

using ::testing::HasSubstr;
using testing::Outcome;
using testing::run;
using ::testing::StartsWith;

class Usage : public testing::CliTest {
 protected:
  // The contract of errors: status, one line on standard error, and with --json an object on standard output.
  void refused(std::vector<std::string> arguments, int status, const std::string& part) {
    const Outcome plain = run(arguments);
    expect_failure(plain, status, part);
    EXPECT_EQ(plain.out, "");
    arguments.push_back("--json");
    const Outcome json = run(arguments);
    expect_failure(json, status, part);
    const Json document = parse_json(json.out, "standard output");
    EXPECT_EQ("keysieve: " + document["error"]["message"].get<std::string>() + "\n", json.err);
    EXPECT_EQ(document["error"]["kind"] == "usage", status == 2) << json.out;
  }
};

TEST_F(Usage, VersionAndHelp) {
  const Outcome version = run({"--version"});
  EXPECT_EQ(version.status, 0);
  EXPECT_THAT(version.out, StartsWith("keysieve 0.1.0\nkernels: reference"));
  const Outcome help = run({"--help"});
  EXPECT_EQ(help.status, 0);
  for (const char* verb : {"demo", "generate", "chat", "tokenize", "logits", "inspect"}) {
    EXPECT_THAT(help.out, HasSubstr(verb));
    const Outcome own = run({verb, "--help"});
    EXPECT_EQ(own.status, 0);
    EXPECT_EQ(own.err, "");
    EXPECT_THAT(own.out, HasSubstr("Examples:\n"));
    EXPECT_THAT(own.out, HasSubstr("keysieve " + std::string(verb)));
  }
}

TEST_F(Usage, UnknownCommandsAndOptions) {
  expect_failure(run({}), 2, "command: none, expected demo, generate");
  refused({"frobnicate"}, 2, "'frobnicate', expected demo");
  refused({"generate", "--frob"}, 2, "--frob; see keysieve generate --help");
  expect_failure(run({"generate", "--prompt"}), 2, "--prompt");
  refused({"logits", "--out", "x.npy"}, 2, "--tokens is required");
  refused({"inspect"}, 2, "required");
}

TEST_F(Usage, NumbersAreWholeNumbersInRange) {
  for (const char* bad : {"-1", "3.5", "x", "", "0x10", "99999999999999999999", "1e3", "+5"}) {
    refused(on_tiny("generate", {"--prompt", "a", std::string("--max-tokens=") + bad}), 2, "--max-tokens");
  }
  refused(on_tiny("generate", {"--prompt", "a", "--threads", "0"}), 2, "1 to 4096");
  refused(on_tiny("generate", {"--prompt", "a", "--seed", "-4"}), 2, "--seed");
  for (const char* bad : {"nan", "inf", "warm", ""}) {
    refused(on_tiny("generate", {"--prompt", "a", std::string("--temperature=") + bad}), 2, "--temperature");
  }
  refused(on_tiny("generate", {"--prompt", "a", "--temperature=-1"}), 2, "temperature: -1");
  refused(on_tiny("generate", {"--prompt", "a", "--top-p", "1.5"}), 2, "top-p");
}

TEST_F(Usage, ChoicesAreListed) {
  refused(on_tiny("generate", {"--prompt", "a", "--kernels", "abacus"}), 2, "abacus");
  refused(on_tiny("generate", {"--prompt", "a", "--cache", "hot"}), 2, "hot");
  refused(on_tiny("generate", {"--prompt", "a", "--selection", "mine"}), 2, "shared or per-group");
  refused(on_tiny("generate", {"--prompt", "a", "--kv", "f8"}), 2, "f8");
  refused(on_tiny("generate", {"--prompt", "a", "--think", "--no-think"}), 2, "--no-think");
  refused(on_tiny("generate", {"--prompt", "a", "--chat-template", "nonsense"}), 2, "chatml");
}

TEST_F(Usage, OptionsThatContradictEachOther) {
  refused(on_tiny("generate", {"--prompt", "a", "--prompt-file", "b"}), 2, "2 prompts given");
  refused(on_tiny("generate", {}), 2, "0 prompts given");
  refused(on_tiny("generate", {"--prompt", "a", "--dense", "--budget", "5"}), 2, "--budget");
  refused(on_tiny("generate", {"--prompt", "a", "--cache", "fixed"}), 2, "--indexer");
  refused(on_tiny("generate", {"--prompt", "a", "--cache", "tiered"}), 2, "--indexer");
  refused(on_tiny("generate", {"--prompt", "a", "--cold-store", "ram"}), 2, "--cache tiered");
  refused(on_tiny("demo", {"--dense"}), 2, "no indexer");
  refused(on_tiny("demo", {"--prompt", "a", "--interactive"}), 2, "--interactive");
}

TEST_F(Usage, WhatIsNotThereIsAFailureOfTheWork) {
  refused({"generate", "--prompt", "a", "--model", path("absent")}, 1, path("absent"));
  refused({"generate", "--prompt", "a", "--model", "no-such-name"}, 1, "no-such-name");
  refused(on_tiny("generate", {"--prompt-file", path("absent")}), 1, path("absent"));
  refused(on_tiny("generate", {"--prompt", "a", "--indexer", path("absent")}), 1, path("absent"));
  refused(on_tiny("generate", {"--prompt", "a", "--indexer", "auto"}), 1, "indexer auto");
  refused({"inspect", path("absent")}, 1, path("absent"));
}

TEST_F(Usage, DamagedFilesAreFailuresOfTheWork) {
  testing::detail::write_file(folder_ / "short.gguf", std::string("GGUF\x03\0\0\0", 8));
  testing::detail::write_file(folder_ / "noise.gguf", "this is no model");
  for (const char* name : {"short.gguf", "noise.gguf"}) {
    refused({"generate", "--prompt", "a", "--model", path(name)}, 1, name);
    refused({"inspect", path(name)}, 1, name);
    refused({"generate", "--prompt", "a", "--model", model_, "--indexer", path(name)}, 1, name);
  }
}

TEST_F(Usage, HostileArgumentsStayOneLine) {
  const std::string nasty = "a\nkeysieve: all is well\x1b[2J\x07" + std::string(5000, 'x');
  for (const auto& arguments : std::vector<std::vector<std::string>>{
           {nasty},
           {"--" + nasty},
           {"generate", "--" + nasty},
           {"generate", "--prompt", "a", "--model", nasty},
           {"generate", "--prompt", "a", "--max-tokens", nasty},
           {"generate", "--prompt", "a", "--model", model_, "--kernels", nasty},
           {"inspect", nasty}}) {
    const Outcome outcome = run(arguments);
    EXPECT_THAT(outcome.status, ::testing::AnyOf(1, 2));
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
    EXPECT_EQ(outcome.err.find('\x1b'), std::string::npos);
    EXPECT_EQ(outcome.err.find('\x07'), std::string::npos);
  }
}

TEST_F(Usage, AFullDiskIsNoticed) {
  std::vector<std::string> command = on_tiny("generate", {"--prompt", "a", "--raw"});
  std::string line = "exec \"$KEYSIEVE_PROGRAM\"";
  for (const std::string& argument : command) line += " '" + argument + "'";
  line += " >/dev/full 2>" + path("err");
  EXPECT_EQ(std::system(line.c_str()) >> 8, 1);
  EXPECT_THAT(read_text_file(path("err")), HasSubstr("standard output"));
}

}  // namespace
}  // namespace keysieve
