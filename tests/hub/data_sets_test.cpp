#include <minizip/zip.h>

#include <atomic>
#include <memory>

#include "fixture.h"
#include "support/golden.h"

namespace keysieve::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class DataSetsTest : public HubTest {
 protected:
  void SetUp() override {
    HubTest::SetUp();
    set("KEYSIEVE_DATA", (folder_ / "data").string());
  }
  void serve(LoopbackServer::Handler handler) {
    server_ = std::make_unique<LoopbackServer>(std::move(handler));
    set("KEYSIEVE_DATA_MIRROR", server_->address());
  }
  void expect_no_data(const std::string& name, ErrorKind kind, const std::string& part) {
    try {
      pull_data(name, {}, quick());
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(to_string(error.kind()), to_string(kind)) << error.what();
      EXPECT_THAT(error.what(), HasSubstr(part));
    }
  }
  // A zip as the public one is: a folder, and the text in it.
  std::string zip_of(const std::string& name, const std::string& text) {
    const fs::path path = folder_ / "made.zip";
    zipFile writer = zipOpen64(path.c_str(), APPEND_STATUS_CREATE);
    const zip_fileinfo info = {};
    zipOpenNewFileInZip(writer, name.c_str(), &info, nullptr, 0, nullptr, 0, nullptr, Z_DEFLATED, 6);
    zipWriteInFileInZip(writer, text.data(), static_cast<unsigned>(text.size()));
    zipCloseFileInZip(writer);
    zipClose(writer, nullptr);
    return read_text_file(path);
  }
  std::unique_ptr<LoopbackServer> server_;
};

// The real files, where this machine has them.
TEST_F(DataSetsTest, BringsTheFilesWithTheirPinnedHashes) {
  const auto golden = golden_dir();
  const fs::path eval = golden ? *golden / ".." / "eval" : fs::path();
  if (!golden || !fs::exists(eval / "wikitext2-test.txt")) GTEST_SKIP() << "the texts are not here";
  const std::string text = read_text_file(eval / "wikitext2-test.txt");
  const std::string zip = zip_of("wikitext-2-raw/wiki.test.raw", text);
  std::atomic<int> cuts{1};
  serve([&](const ServerRequest& request) -> ServerAnswer {
    const size_t slash = request.path.rfind('/');
    const std::string name = request.path.substr(slash + 1);
    if (name.ends_with(".zip")) return {.body = zip};
    ServerAnswer answer = HubServer::bytes_of(request, read_text_file(eval / "gsm8k" / name));
    if (cuts-- > 0) answer.cut_after = 100000;
    return answer;
  });
  const PullResult gsm8k = pull_data("gsm8k", {}, quick());
  EXPECT_EQ(gsm8k.files.size(), 2u);
  EXPECT_EQ(read_text_file(folder_ / "data" / "gsm8k" / "test.jsonl"),
            read_text_file(eval / "gsm8k" / "test.jsonl"));
  EXPECT_THAT(server_->requests().front().path, HasSubstr("/openai/grade-school-math/"));
  const PullResult wikitext = pull_data("wikitext2", {}, quick());
  EXPECT_EQ(read_text_file(folder_ / "data" / "wikitext2" / "test.txt"), text);
  EXPECT_TRUE(wikitext.files.front().fetched);

  const size_t before = server_->requests().size();
  EXPECT_EQ(pull_data("gsm8k", {}, quick()).bytes_fetched, 0u);
  EXPECT_EQ(pull_data("wikitext2", {}, quick()).bytes_fetched, 0u);
  EXPECT_EQ(server_->requests().size(), before);
}

TEST_F(DataSetsTest, OtherBytesAreRefused) {
  serve([&](const ServerRequest& request) -> ServerAnswer {
    if (request.path.ends_with(".zip")) return {.body = zip_of("wikitext-2-raw/wiki.test.raw", "too short")};
    return HubServer::bytes_of(request, noise(request.path.ends_with("train.jsonl") ? 4166206 : 749738));
  });
  expect_no_data("gsm8k", ErrorKind::network, "hash");
  expect_no_data("wikitext2", ErrorKind::network, "hash");
  EXPECT_FALSE(fs::exists(folder_ / "data" / "gsm8k" / "train.jsonl"));
  EXPECT_FALSE(fs::exists(folder_ / "data" / "wikitext2" / "test.txt"));
}

TEST_F(DataSetsTest, ArchivesAreNotTrusted) {
  std::string body = "no zip at all";
  serve([&](const ServerRequest&) -> ServerAnswer { return {.body = body}; });
  expect_no_data("wikitext2", ErrorKind::format, "wiki.test.raw");
  body = zip_of("../../wikitext-2-raw/wiki.test.raw", "x");
  expect_no_data("wikitext2", ErrorKind::format, "no such member");
  // A bomb: 50 MB of zeros under the right name stop at the size the file has.
  body = zip_of("wikitext-2-raw/wiki.test.raw", std::string(50'000'000, '\0'));
  expect_no_data("wikitext2", ErrorKind::network, "hash");
}

TEST_F(DataSetsTest, WordsForNoNetworkAndNoName) {
  expect_no_data("imagenet", ErrorKind::usage, "gsm8k, wikitext2");
  set("KEYSIEVE_DATA_MIRROR", "http://127.0.0.1:1");
  expect_no_data("gsm8k", ErrorKind::network, "127.0.0.1:1");
  set("HF_HUB_OFFLINE", "1");
  expect_no_data("gsm8k", ErrorKind::network, "HF_HUB_OFFLINE");
}

}  // namespace
}  // namespace keysieve::testing
