#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "fixture.h"
#include "hub/hub_cache.h"

namespace keysieve::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::map<std::string, HubServer::File> two_shards() {
  return {
      {".gitattributes", {"*.safetensors filter=lfs"}},
      {"README.md", {"# a model"}},
      {"config.json", {R"({"model_type": "qwen3"})"}},
      {"tokenizer.json", {noise(200000, 7), true}},
      {"chat_template.jinja", {"{{ messages }}"}},
      {"model.safetensors.index.json",
       {R"({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})"}},
      {"model-00001-of-00002.safetensors", {noise(700000, 1), true}},
      {"model-00002-of-00002.safetensors", {noise(300000, 2), true}},
      {"consolidated.safetensors", {noise(1000, 3), true}},
      {"onnx/model.onnx", {noise(1000, 4), true}}};
}

class PullTest : public HubTest {
 protected:
  void serve(std::map<std::string, HubServer::File> files, HubServer::Fault fault = {},
             const std::string& id = "org/model") {
    files_ = files;
    server_ = std::make_unique<HubServer>(id, std::move(files), std::move(fault));
    set("HF_ENDPOINT", server_->endpoint() + "/");
  }
  void expect_whole(const PullResult& result, const std::string& name) const {
    const fs::path path = result.folder / name;
    EXPECT_EQ(read_text_file(path), files_.at(name).content) << name;
    EXPECT_TRUE(fs::is_symlink(path));
    EXPECT_EQ(fs::canonical(path).filename(), HubServer::etag_of(files_.at(name)));
    EXPECT_TRUE(fs::read_symlink(path).is_relative());
  }
  static bool is_storage(const ServerRequest& request) {
    return request.method == "GET" && request.path.starts_with("/storage/");
  }

  std::map<std::string, HubServer::File> files_;
  std::unique_ptr<HubServer> server_;
};

TEST_F(PullTest, BringsWhatAModelNeedsIntoTheLayoutOfThePythonClient) {
  serve(two_shards());
  const PullResult result = pull("org/model", quick());
  EXPECT_EQ(result.commit, server_->commit());
  EXPECT_EQ(result.folder, cache() / "models--org--model" / "snapshots" / server_->commit());
  for (const char* name :
       {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors.index.json",
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
    expect_whole(result, name);
  }
  EXPECT_FALSE(fs::exists(result.folder / "consolidated.safetensors"));
  EXPECT_FALSE(fs::exists(result.folder / "onnx"));
  EXPECT_FALSE(fs::exists(result.folder / "README.md"));
  EXPECT_EQ(read_text_file(cache() / "models--org--model" / "refs" / "main"), server_->commit());
  EXPECT_EQ(result.files.size(), 6u);
  EXPECT_EQ(result.bytes, result.bytes_fetched);
  for (const auto& entry : fs::directory_iterator(cache() / "models--org--model" / "blobs"))
    EXPECT_NE(entry.path().extension(), ".incomplete");
}

TEST_F(PullTest, WhatIsHereIsNotFetchedAgain) {
  serve(two_shards());
  pull("org/model", quick());
  const size_t before = server_->requests().size();
  const PullResult again = pull("org/model", quick());
  EXPECT_EQ(again.bytes_fetched, 0u);
  EXPECT_GT(again.bytes, 1000000u);
  EXPECT_EQ(server_->requests().size(), before + 1);  // the listing
  EXPECT_FALSE(needs_pull("org/model", PullKind::model));
}

TEST_F(PullTest, NeedsPullSeesWhatIsMissing) {
  EXPECT_TRUE(needs_pull("org/model", PullKind::model));
  EXPECT_TRUE(needs_pull("org/model", PullKind::indexer));
  EXPECT_FALSE(needs_pull("smollm2-135m", PullKind::model));
  EXPECT_FALSE(needs_pull("auto", PullKind::indexer));
  EXPECT_FALSE(needs_pull("/some/where/else", PullKind::model));
  serve(two_shards());
  const PullResult result = pull("org/model", quick());
  fs::remove(result.folder / "model-00002-of-00002.safetensors");
  EXPECT_TRUE(needs_pull("org/model", PullKind::model));
}

TEST_F(PullTest, TheTokenGoesToTheHubAndNotToTheStorage) {
  set("HF_TOKEN", " hf_secret\n");
  serve(two_shards());
  pull("org/model", quick());
  size_t storage = 0;
  for (const ServerRequest& request : server_->requests()) {
    const auto token = request.headers.find("authorization");
    if (request.path.starts_with("/storage/")) {
      ++storage;
      EXPECT_EQ(token, request.headers.end());
    } else {
      ASSERT_NE(token, request.headers.end()) << request.path;
      EXPECT_EQ(token->second, "Bearer hf_secret");
    }
  }
  EXPECT_EQ(storage, 3u);
}

TEST_F(PullTest, TheTokenOfTheUsualFileIsUsed) {
  fs::create_directories(folder_ / "hf");
  AtomicFileWriter file(folder_ / "hf" / "token");
  file.write("hf_from_file\n");
  file.commit();
  serve(two_shards());
  pull("org/model", quick());
  EXPECT_EQ(server_->requests().front().headers.at("authorization"), "Bearer hf_from_file");
}

TEST_F(PullTest, GoesOnWhereAConnectionWasCut) {
  std::atomic<int> storage{0};
  serve(two_shards(), [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
    if (!is_storage(request)) return std::nullopt;
    const int now = storage++;
    if (now > 8) return std::nullopt;
    for (const auto& [name, file] : files_) {
      if (request.path.find(HubServer::etag_of(file)) == std::string::npos) continue;
      ServerAnswer answer = HubServer::bytes_of(request, file.content);
      answer.cut_after = 100000;
      return answer;
    }
    return std::nullopt;
  });
  const PullResult result = pull("org/model", quick());
  for (const char* name : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"})
    expect_whole(result, name);
  bool ranged = false;
  for (const ServerRequest& request : server_->requests()) ranged |= request.from.value_or(0) > 0;
  EXPECT_TRUE(ranged);
  EXPECT_EQ(result.bytes_fetched, result.bytes);  // no byte came twice
}

TEST_F(PullTest, GoesOnWithWhatAKilledRunLeft) {
  serve(two_shards());
  const std::string& content = files_.at("model-00001-of-00002.safetensors").content;
  const fs::path blobs = cache() / "models--org--model" / "blobs";
  fs::create_directories(blobs);
  const std::string etag = HubServer::etag_of(files_.at("model-00001-of-00002.safetensors"));
  AtomicFileWriter part(blobs / (etag + ".incomplete"));
  part.write(std::string_view(content).substr(0, 250000));
  part.commit();
  const PullResult result = pull("org/model", quick());
  expect_whole(result, "model-00001-of-00002.safetensors");
  EXPECT_EQ(result.bytes_fetched, result.bytes - 250000);
}

TEST_F(PullTest, WrongBytesOfAnEarlierRunAreFetchedAnew) {
  serve(two_shards());
  const fs::path blobs = cache() / "models--org--model" / "blobs";
  fs::create_directories(blobs);
  const std::string etag = HubServer::etag_of(files_.at("model-00001-of-00002.safetensors"));
  AtomicFileWriter part(blobs / (etag + ".incomplete"));
  part.write(noise(250000, 99));
  part.commit();
  expect_whole(pull("org/model", quick()), "model-00001-of-00002.safetensors");
}

TEST_F(PullTest, AServerWithoutRangesIsReadFromTheStart) {
  serve(two_shards(), [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
    if (!is_storage(request)) return std::nullopt;
    for (const auto& [name, file] : files_) {
      if (request.path.find(HubServer::etag_of(file)) != std::string::npos)
        return ServerAnswer{.body = file.content};
    }
    return std::nullopt;
  });
  const fs::path blobs = cache() / "models--org--model" / "blobs";
  fs::create_directories(blobs);
  const std::string etag = HubServer::etag_of(files_.at("model-00001-of-00002.safetensors"));
  AtomicFileWriter part(blobs / (etag + ".incomplete"));
  part.write(std::string_view(files_.at("model-00001-of-00002.safetensors").content).substr(0, 1000));
  part.commit();
  expect_whole(pull("org/model", quick()), "model-00001-of-00002.safetensors");
}

TEST_F(PullTest, AWrongHashIsNeverKept) {
  serve(two_shards(), [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
    if (!is_storage(request)) return std::nullopt;
    const auto& shard = files_.at("model-00001-of-00002.safetensors");
    if (request.path.find(HubServer::etag_of(shard)) == std::string::npos) return std::nullopt;
    return HubServer::bytes_of(request, noise(shard.content.size(), 5));
  });
  expect_refused("org/model", ErrorKind::network,
                 {"model-00001-of-00002.safetensors", "hash", "nothing was kept"});
  const std::string etag = HubServer::etag_of(files_.at("model-00001-of-00002.safetensors"));
  const fs::path blob = cache() / "models--org--model" / "blobs" / etag;
  EXPECT_FALSE(fs::exists(blob));
  EXPECT_FALSE(fs::exists(blob.string() + ".incomplete"));
  EXPECT_TRUE(needs_pull("org/model", PullKind::model));
}

TEST_F(PullTest, ASmallFileWithAnotherGitHashIsRefused) {
  serve(two_shards(), [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
    if (request.method != "GET" || !request.path.ends_with("/config.json")) return std::nullopt;
    return ServerAnswer{.body = R"({"model_type": "qwen2"})"};
  });
  expect_refused("org/model", ErrorKind::network, {"config.json", "hash"});
}

TEST_F(PullTest, AWrongLengthIsSaid) {
  serve(two_shards(), [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
    if (!is_storage(request)) return std::nullopt;
    return ServerAnswer{.body = noise(10)};
  });
  expect_refused("org/model", ErrorKind::network, {"a file of 10 bytes", "200000 bytes"});
}

TEST_F(PullTest, AServerThatNeverSendsAllGivesUpInTheEnd) {
  serve(two_shards(), [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
    if (!is_storage(request)) return std::nullopt;
    ServerAnswer answer = HubServer::bytes_of(request, files_.at("tokenizer.json").content);
    answer.cut_after = 0;
    return answer;
  });
  expect_refused("org/model", ErrorKind::network, {"tokenizer.json", "after 0 bytes", "run it again"});
}

TEST_F(PullTest, RefusalsSayTheWayOut) {
  int status = 401;
  std::string code = "RepoNotFound";
  serve(two_shards(), [&](const ServerRequest&) -> std::optional<ServerAnswer> {
    return ServerAnswer{.status = status, .headers = {"X-Error-Code: " + code}};
  });
  expect_refused("org/model", ErrorKind::network, {"401 Unauthorized", "HF_TOKEN"});
  status = 403;
  code = "GatedRepo";
  expect_refused("org/model", ErrorKind::network, {"403 Forbidden", "accept its terms at http://127.0.0.1"});
  status = 404;
  code = "RepoNotFound";
  expect_refused("org/model", ErrorKind::network, {"404 Not Found", "check the name"});
  code = "RevisionNotFound";
  expect_refused("org/model", ErrorKind::network, {"RevisionNotFound", "--revision"});
}

TEST_F(PullTest, WaitsAsLongAsTheHubAsks) {
  std::atomic<int> asked{0};
  serve(two_shards(), [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
    if (request.path.starts_with("/api/") && asked++ == 0)
      return ServerAnswer{.status = 429, .headers = {"Retry-After: 1"}};
    return std::nullopt;
  });
  const auto start = std::chrono::steady_clock::now();
  pull("org/model", quick());
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(990));
  EXPECT_EQ(asked, 2);
}

TEST_F(PullTest, ServerErrorsAreTriedAgainAndThenSaid) {
  std::atomic<int> asked{0};
  serve(two_shards(), [&](const ServerRequest&) -> std::optional<ServerAnswer> {
    ++asked;
    return ServerAnswer{.status = 503};
  });
  expect_refused("org/model", ErrorKind::network, {"503 Service Unavailable"});
  EXPECT_EQ(asked, 5);
}

TEST_F(PullTest, ASilentServerIsGivenUp) {
  set("HF_HUB_DOWNLOAD_TIMEOUT", "1");
  serve(two_shards(), [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
    if (!is_storage(request)) return std::nullopt;
    return ServerAnswer{.body = "x", .announce = 200000, .pause_after_headers = 30};
  });
  PullOptions options = quick();
  options.attempts = 1;
  expect_refused("org/model", ErrorKind::network, {"tokenizer.json"}, options);
}

TEST_F(PullTest, NoServerIsSaid) {
  set("HF_ENDPOINT", "http://127.0.0.1:1");
  PullOptions options = quick();
  options.attempts = 2;
  expect_refused("org/model", ErrorKind::network, {"127.0.0.1:1", "HF_ENDPOINT"}, options);
}

TEST_F(PullTest, OfflineOpensNoConnection) {
  serve(two_shards());
  set("HF_HUB_OFFLINE", "1");
  expect_refused("org/model", ErrorKind::network, {"HF_HUB_OFFLINE"});
  EXPECT_TRUE(server_->requests().empty());
}

TEST_F(PullTest, ARenamedRepositoryIsFollowed) {
  serve(two_shards(), [&](const ServerRequest& request) -> std::optional<ServerAnswer> {
    const size_t at = request.path.find("org/old");
    if (at == std::string::npos) return std::nullopt;
    std::string renamed = request.path;
    renamed.replace(at, 7, "org/model");
    return ServerAnswer{.status = 307, .headers = {"Location: " + renamed}};
  });
  const PullResult result = pull("org/old", quick());
  expect_whole(result, "model-00001-of-00002.safetensors");
  EXPECT_THAT(result.folder.string(), HasSubstr("models--org--old"));
}

TEST_F(PullTest, HostileNamesAreRefused) {
  for (const char* name : {"../../escape.json", "/etc/passwd.json", "a/../../b.json", "a\\b.json"}) {
    serve({{name, {"x"}}});
    expect_refused("org/model", ErrorKind::network, {"names inside the repository"});
  }
  for (const char* id : {"", "model", "../x", "org/..", "a/b/c", "org/mo del"})
    expect_refused(id, ErrorKind::usage, {"no Hub id"});
  PullOptions options = quick();
  options.revision = "../../main";
  expect_refused("org/model", ErrorKind::usage, {"--revision"}, options);
}

TEST_F(PullTest, GgufRepositoriesNeedAChoice) {
  serve(
      {{"config.json", {"{}"}}, {"m-Q4_0.gguf", {noise(1000), true}}, {"m-Q8_0.gguf", {noise(2000), true}}});
  expect_refused("org/model", ErrorKind::usage, {"m-Q4_0.gguf, m-Q8_0.gguf", "--include"});
  PullOptions options = quick();
  options.include = {"*Q4_0.gguf"};
  const PullResult result = pull("org/model", options);
  ASSERT_EQ(result.files.size(), 1u);
  expect_whole(result, "m-Q4_0.gguf");
  options.include = {"*Q5*"};
  expect_refused("org/model", ErrorKind::usage, {"no file named *Q5*"}, options);
}

TEST_F(PullTest, TheIndexersRepositoryComesWhole) {
  serve({{"README.md", {"# card"}},
         {"demo.py", {"print()"}},
         {"run_config.json", {"{}"}},
         {"lightning_indexer_best_assembled.safetensors", {noise(5000), true}},
         {"ppl_results_assembled.json", {"{}"}}});
  const PullResult result = pull("org/model", quick());
  expect_whole(result, "lightning_indexer_best_assembled.safetensors");
  expect_whole(result, "run_config.json");
  EXPECT_FALSE(fs::exists(result.folder / "demo.py"));
}

TEST_F(PullTest, TwoPullsAtOnceFetchEachFileOnce) {
  serve(two_shards());
  auto other = std::async(std::launch::async, [] { return pull("org/model", quick()); });
  const PullResult second = pull("org/model", quick());
  const PullResult first = other.get();
  EXPECT_EQ(first.bytes_fetched + second.bytes_fetched, first.bytes);
  expect_whole(first, "model-00001-of-00002.safetensors");
}

TEST_F(PullTest, WaitsForALockThatAnotherProgramHolds) {
  serve(two_shards());
  const HubCache layout(cache(), {"org", "model"});
  layout.make_folders();
  const fs::path path = layout.lock(HubServer::etag_of(files_.at("model-00001-of-00002.safetensors")));
  auto lock = std::make_unique<FileLock>(path, [] {});
  std::atomic<bool> done{false};
  std::thread other([&] {
    pull("org/model", quick());
    done = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_FALSE(done);
  lock.reset();
  other.join();
  EXPECT_TRUE(done);
}

TEST_F(PullTest, StopsWhenAskedAndGoesOnAfterwards) {
  serve(two_shards());
  std::atomic<bool> cancel{false};
  PullOptions options = quick();
  options.cancel = &cancel;
  options.progress = [&](const PullProgress& at) {
    if (at.done > 300000) cancel = true;
  };
  expect_refused("org/model", ErrorKind::network, {"stopped", "goes on"}, options);
  const PullResult result = pull("org/model", quick());
  EXPECT_LT(result.bytes_fetched, result.bytes);
  expect_whole(result, "model-00001-of-00002.safetensors");
}

TEST_F(PullTest, ProgressOnlyGrowsAndEndsAtTheTotal) {
  serve(two_shards());
  PullOptions options = quick();
  uint64_t last = 0;
  uint64_t total = 0;
  options.progress = [&](const PullProgress& at) {
    EXPECT_GE(at.done, last);
    last = at.done;
    total = at.total;
  };
  const PullResult result = pull("org/model", options);
  EXPECT_EQ(last, result.bytes);
  EXPECT_EQ(total, result.bytes);
}

}  // namespace
}  // namespace keysieve::testing
