#include <sys/resource.h>

#include <atomic>
#include <map>
#include <optional>

#include "fixture.h"
#include "support/loopback_server.h"

namespace keysieve::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// The program against a Hub on this machine that has a tiny model and an indexer for it.
class PullCliTest : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    if (IsSkipped()) return;
    setenv("HF_HOME", (folder_ / "hf").c_str(), 1);
    for (const char* name : {"HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"})
      unsetenv(name);
  }
  void TearDown() override {
    for (const char* name : {"HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT"})
      unsetenv(name);
    CliTest::TearDown();
  }
  static std::map<std::string, HubServer::File> files_of(const fs::path& folder) {
    std::map<std::string, HubServer::File> files;
    for (const auto& entry : fs::directory_iterator(folder)) {
      files[entry.path().filename().string()] = {read_text_file(entry.path()),
                                                 entry.path().extension() == ".safetensors"};
    }
    return files;
  }
  void serve(const std::string& id, const fs::path& folder, HubServer::Fault fault = {}) {
    server_ = std::make_unique<HubServer>(id, files_of(folder), std::move(fault));
    setenv("HF_ENDPOINT", server_->endpoint().c_str(), 1);
  }
  std::unique_ptr<HubServer> server_;
};

TEST_F(PullCliTest, AHubIdIsFetchedOnFirstUseAndNotAgain) {
  const fs::path here = folder_ / "models" / "tiny";
  serve("org/tiny", here);
  const std::vector<std::string> arguments = {"generate", "--model",      "org/tiny", "--raw",
                                              "--prompt", "ab",           "--json",   "--threads",
                                              "1",        "--max-tokens", "3"};
  const Outcome first = run(arguments);
  const Json document = json_of(first);
  EXPECT_THAT(first.err, HasSubstr("org/tiny is not on this machine: fetching "));
  EXPECT_THAT(first.err, HasSubstr("fetched "));
  const size_t asked = server_->requests().size();
  const Outcome second = run(arguments);
  EXPECT_EQ(json_of(second)["token_ids"], document["token_ids"]);
  EXPECT_EQ(server_->requests().size(), asked);
  EXPECT_EQ(second.err.find("fetch"), std::string::npos) << second.err;
  // The same as from its folder, and through another verb.
  std::vector<std::string> from_folder = arguments;
  from_folder[2] = here.string();
  EXPECT_EQ(json_of(run(from_folder))["token_ids"], document["token_ids"]);
  EXPECT_EQ(json_of(run({"inspect", "org/tiny", "--json"}))["kind"], "hub folder");
}

TEST_F(PullCliTest, AnIndexerIsFetchedToo) {
  serve("org/index", folder_ / "indexers" / "tiny");
  const Outcome outcome = run(on_tiny("generate", {"--indexer", "org/index", "--raw", "--prompt", "ab",
                                                   "--json", "--max-tokens", "2", "--budget", "16"}));
  json_of(outcome);
  EXPECT_THAT(outcome.err, HasSubstr("org/index is not on this machine"));
}

// What the published model's users type: both ids are fetched on first use, and the indexer is one of its
// kind, in a file of its name, with settings as its run_config.json has them.
TEST_F(PullCliTest, TheDemoFetchesAModelAndItsPublishedIndexer) {
  const fs::path published = folder_ / "published";
  write_tiny_seed_indexer(published);
  serve("org/tiny-4bit", folder_ / "models" / "tiny");
  server_->also_serve("someone/Tiny-index", files_of(published));
  const std::vector<std::string> arguments = {"demo",
                                              "--model",
                                              "org/tiny-4bit",
                                              "--indexer",
                                              "someone/Tiny-index",
                                              "--prompt",
                                              std::string(80, 'b'),
                                              "-n",
                                              "12",
                                              "--threads",
                                              "1",
                                              "--json"};
  const Outcome first = run(arguments);
  const Json document = json_of(first);
  EXPECT_THAT(first.err, HasSubstr("org/tiny-4bit is not on this machine"));
  EXPECT_THAT(first.err, HasSubstr("someone/Tiny-index is not on this machine"));
  EXPECT_EQ(document["budget"], 24);
  EXPECT_EQ(document["answers"][0]["sparse"]["decode"]["positions_read"], 24);
  const size_t asked = server_->requests().size();
  EXPECT_EQ(json_of(run(arguments))["answers"][0]["sparse"]["text"],
            document["answers"][0]["sparse"]["text"]);
  EXPECT_EQ(server_->requests().size(), asked);
}

TEST_F(PullCliTest, PullSaysWhatItBrought) {
  serve("org/tiny", folder_ / "models" / "tiny");
  const Json document = json_of(run({"pull", "org/tiny", "--json"}));
  EXPECT_EQ(document["commit"], server_->commit());
  EXPECT_EQ(document["bytes"], document["bytes_fetched"]);
  EXPECT_TRUE(fs::exists(fs::path(document["folder"].get<std::string>()) / "config.json"));
  const Outcome again = run({"pull", "org/tiny"});
  EXPECT_EQ(again.status, 0) << again.err;
  EXPECT_THAT(again.out, HasSubstr("were here"));
}

TEST_F(PullCliTest, IncludeMayBeGivenTwice) {
  serve("org/tiny", folder_ / "models" / "tiny");
  const Json document =
      json_of(run({"pull", "--include", "config.json", "--include", "tokenizer*", "org/tiny", "--json"}));
  EXPECT_EQ(document["files"].size(), 3u);  // tokenizer.json and tokenizer_config.json
}

TEST_F(PullCliTest, AKilledPullGoesOn) {
  std::atomic<bool> slow{true};
  serve("org/tiny", folder_ / "models" / "tiny",
        [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
          if (!slow || !request.path.starts_with("/storage/")) return std::nullopt;
          const std::string content = read_text_file(folder_ / "models" / "tiny" / "model.safetensors");
          ServerAnswer answer = HubServer::bytes_of(request, content);
          answer.body.resize(content.size() / 2);
          answer.announce = content.size();
          answer.pause_after_body = 30;
          return answer;
        });
  const fs::path blobs = folder_ / "hf" / "hub" / "models--org--tiny" / "blobs";
  {
    Program program({"pull", "org/tiny"});
    const fs::path weights = folder_ / "models" / "tiny" / "model.safetensors";
    const std::string etag = HubServer::etag_of({read_text_file(weights), true});
    const auto half_there = [&] {
      std::error_code failed;
      return fs::file_size(blobs / (etag + ".incomplete"), failed) == fs::file_size(weights) / 2 && !failed;
    };
    for (int tries = 0; tries < 500 && !half_there(); ++tries) program.wait(std::chrono::milliseconds(20));
    ASSERT_TRUE(half_there());
    program.signal(SIGKILL);
    EXPECT_EQ(program.finish().status, 128 + SIGKILL);
  }
  slow = false;
  const Json document = json_of(run({"pull", "org/tiny", "--json"}));
  EXPECT_LT(document["bytes_fetched"], document["bytes"]);
  bool resumed = false;
  for (const ServerRequest& request : server_->requests()) resumed |= request.from.value_or(0) > 0;
  EXPECT_TRUE(resumed);
  json_of(run({"generate", "--model", "org/tiny", "--raw", "--prompt", "ab", "--json", "--max-tokens", "2"}));
}

TEST_F(PullCliTest, ControlCLeavesWhatCameAndSaysSo) {
  serve("org/tiny", folder_ / "models" / "tiny",
        [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
          if (!request.path.starts_with("/storage/")) return std::nullopt;
          return ServerAnswer{.body = "x", .announce = 1000000, .pause_after_headers = 30};
        });
  Program program({"pull", "org/tiny"});
  for (int tries = 0; tries < 500 && server_->count("GET", "/storage/") == 0; ++tries)
    program.wait(std::chrono::milliseconds(20));
  program.signal(SIGINT);
  const Outcome outcome = program.finish();
  EXPECT_EQ(outcome.status, 130);
  EXPECT_THAT(outcome.err, HasSubstr("goes on where it stopped"));
}

// A limit on the size of files stands for a full disk: the write fails in the same place.
TEST_F(PullCliTest, AFullDiskIsSaidAndNothingIsLost) {
  serve("org/tiny", folder_ / "models" / "tiny");
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small = {fs::file_size(folder_ / "models" / "tiny" / "model.safetensors") - 1000,
                        before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Outcome outcome = run({"pull", "org/tiny"});
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  expect_failure(outcome, 1, "the disk is full");
  const Json document = json_of(run({"pull", "org/tiny", "--json"}));
  EXPECT_LT(document["bytes_fetched"], 4000);
}

TEST_F(PullCliTest, Refusals) {
  serve("org/tiny", folder_ / "models" / "tiny");
  expect_failure(run({"pull", "org/none"}), 1, "404 Not Found");
  expect_failure(run({"pull", "none"}), 2, "no Hub id");
  expect_failure(run({"pull", "data"}), 2, "gsm8k or wikitext2");
  expect_failure(run({"pull", "data", "imagenet"}), 2, "one of gsm8k, wikitext2");
  expect_failure(run({"generate", "--model", "org/none", "--prompt", "x", "--indexer", "none"}), 1, "404");
  setenv("HF_HUB_OFFLINE", "1", 1);
  expect_failure(run({"pull", "org/tiny"}), 1, "HF_HUB_OFFLINE");
}

}  // namespace
}  // namespace keysieve::testing
