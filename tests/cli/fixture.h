#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "core/file_io.h"
#include "core/json.h"
#include "program.h"
#include "support/golden.h"
#include "support/tiny_model.h"

namespace keysieve::testing {

// The program, a tiny model and an indexer for it in a folder of this test's own.
class CliTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::getenv("KEYSIEVE_PROGRAM") == nullptr) GTEST_SKIP() << "KEYSIEVE_PROGRAM names no program";
    // A pipe whose reader has gone must not end the tests.
    std::signal(SIGPIPE, SIG_IGN);
    folder_ = ::testing::TempDir() + "/keysieve_cli_" + std::to_string(::getpid());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    model_ = write_tiny_model(folder_ / "models" / "tiny").string();
    indexer_ = write_tiny_indexer(folder_ / "indexers" / "tiny", "").string();
    setenv("KEYSIEVE_MODELS", (folder_ / "models").c_str(), 1);
    setenv("KEYSIEVE_INDEXERS", (folder_ / "indexers").c_str(), 1);
    setenv("XDG_STATE_HOME", (folder_ / "state").c_str(), 1);
    setenv("TERM", "xterm", 1);
  }
  void TearDown() override {
    if (folder_.empty()) return;
    std::filesystem::remove_all(folder_);
    unsetenv("KEYSIEVE_MODELS");
    unsetenv("KEYSIEVE_INDEXERS");
  }

  // One verb on the tiny model with one thread.
  std::vector<std::string> on_tiny(const std::string& verb, std::vector<std::string> more) const {
    std::vector<std::string> list = {verb, "--model", model_};
    if (verb != "tokenize") list.insert(list.end(), {"--threads", "1"});
    list.insert(list.end(), more.begin(), more.end());
    return list;
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  // A run that must succeed and print one JSON document and nothing else.
  static Json json_of(const Outcome& outcome) {
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_TRUE(outcome.out.ends_with('\n'));
    return parse_json(outcome.out, "standard output");
  }
  // A run that must fail with one line `keysieve: ...` on standard error that holds `part`.
  static void expect_failure(const Outcome& outcome, int status, const std::string& part) {
    EXPECT_EQ(outcome.status, status) << outcome.err;
    EXPECT_THAT(outcome.err, ::testing::StartsWith("keysieve: "));
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
    EXPECT_TRUE(outcome.err.ends_with('\n'));
    EXPECT_THAT(outcome.err, ::testing::HasSubstr(part));
  }

  std::filesystem::path folder_;
  std::string model_;
  std::string indexer_;
};

}  // namespace keysieve::testing
