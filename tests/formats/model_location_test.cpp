#include "formats/model_location.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>

#include "support/files.h"

namespace keysieve {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::GgufBuilder;
using testing::safetensors_bytes;
using testing::TempFolder;

class Locate : public ::testing::Test {
 protected:
  fs::path root() const { return folder_.path(); }
  fs::path gguf(const fs::path& name) { return folder_.write(name, GgufBuilder().build()); }
  fs::path safetensors(const fs::path& name) { return folder_.write(name, safetensors_bytes("{}", "")); }
  void hub_model(const fs::path& name) {
    folder_.write(name / "config.json", "{}");
    safetensors(name / "model.safetensors");
  }
  SearchPaths search() const { return {.folders = {root() / "models"}, .hub_caches = {root() / "hub"}}; }
  ModelLocation locate(const std::string& argument) const { return locate_model(argument, search()); }
  void expect_missing(const std::string& argument, const std::vector<std::string>& parts,
                      ErrorKind kind = ErrorKind::file) const {
    expect_error(kind, parts, [&] { locate(argument); });
  }

  TempFolder folder_;
};

TEST_F(Locate, TakesPaths) {
  const auto file = gguf("m.bin");  // by content, not by name
  EXPECT_EQ(locate(file.string()).path, file);
  EXPECT_EQ(locate(file.string()).kind, FileKind::gguf);
  hub_model("folder");
  EXPECT_EQ(locate((root() / "folder").string()).kind, FileKind::hub_folder);
  gguf("single/only.gguf");
  EXPECT_EQ(locate((root() / "single").string()).path, root() / "single/only.gguf");
}

TEST_F(Locate, RefusesPathsThatAreNoModel) {
  expect_missing("", {"empty"}, ErrorKind::usage);
  expect_missing(safetensors("alone.safetensors").string(), {"safetensors file alone"}, ErrorKind::format);
  expect_missing(folder_.write("text.gguf", "hello").string(), {"no model file"}, ErrorKind::format);
  fs::create_directories(root() / "empty");
  expect_missing((root() / "empty").string(), {"no model in this folder"});
  folder_.write("half/config.json", "{}");
  expect_missing((root() / "half").string(), {"no model.safetensors", "keysieve pull"});
  gguf("two/a.gguf");
  gguf("two/b.gguf");
  expect_missing((root() / "two").string(), {"2 GGUF files", "a.gguf, b.gguf"});
}

TEST_F(Locate, FindsShortNames) {
  const auto file = gguf("models/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf");
  const auto bare = gguf("models/bare.gguf");
  EXPECT_EQ(locate("smollm2-135m").path, file);
  EXPECT_EQ(locate("bare").path, bare);
  expect_missing("absent", {"model absent", "not found", (root() / "models/absent").string(), "./run demo",
                            "keysieve pull"});
  expect_missing("..", {}, ErrorKind::file);
}

TEST_F(Locate, FindsHubSnapshots) {
  const fs::path repository = "hub/models--org--name";
  hub_model(repository / "snapshots/abc");
  hub_model(repository / "snapshots/def");
  folder_.write(repository / "refs/main", "abc\n");
  EXPECT_EQ(locate("org/name").path, root() / repository / "snapshots/abc");
  EXPECT_EQ(locate("org/name").kind, FileKind::hub_folder);
  // Without refs/main, or where it names what is not there, the newest counts.
  const auto now = fs::file_time_type::clock::now();
  fs::last_write_time(root() / repository / "snapshots/abc", now - std::chrono::hours(1));
  fs::last_write_time(root() / repository / "snapshots/def", now);
  for (const char* revision : {"gone", "../../..", ""}) {
    folder_.write(repository / "refs/main", revision);
    EXPECT_EQ(locate("org/name").path, root() / repository / "snapshots/def") << revision;
  }
  fs::remove(root() / repository / "refs/main");
  EXPECT_EQ(locate("org/name").path, root() / repository / "snapshots/def");
  expect_missing("org/other", {"models--org--other", "keysieve pull org/other"});
  expect_missing("../name", {"not found"});
  expect_missing("a/b/c", {"not found"});
}

TEST_F(Locate, SurvivesLinksInACircle) {
  fs::create_directories(root() / "models");
  fs::create_symlink(root() / "models/b", root() / "models/a");
  fs::create_symlink(root() / "models/a", root() / "models/b");
  expect_missing("a", {"not found"});
  fs::create_directories(root() / "loop");
  fs::create_symlink(root() / "loop", root() / "loop/loop.gguf");
  expect_missing((root() / "loop").string(), {"no model in this folder"});
}

TEST_F(Locate, FindsIndexers) {
  const auto indexer = [&](const std::string& argument) { return locate_indexer(argument, search()); };
  const auto file = safetensors("trained/lightning_indexer_best_assembled.safetensors");
  safetensors("trained/layer_0.safetensors");
  EXPECT_EQ(indexer(file.string()).run_config, std::nullopt);
  const auto config = folder_.write("trained/run_config.json", "{}");
  EXPECT_EQ(indexer(file.string()).weights, std::vector{file});
  EXPECT_EQ(indexer(file.string()).run_config, config);
  EXPECT_EQ(indexer((root() / "trained").string()).weights, std::vector{file});
  const auto named = safetensors("models/small/indexer.safetensors");
  EXPECT_EQ(indexer("small").weights, std::vector{named});
  const auto layer0 = safetensors("layers/layer_0.safetensors");
  const auto layer1 = safetensors("layers/layer_1.safetensors");
  EXPECT_EQ(indexer((root() / "layers").string()).weights, (std::vector{layer0, layer1}));
  const auto deep0 = safetensors("deep/layer_0/indexer.safetensors");
  const auto deep1 = safetensors("deep/layer_1/indexer.safetensors");
  EXPECT_EQ(indexer((root() / "deep").string()).weights, (std::vector{deep0, deep1}));
  safetensors("many/a.safetensors");
  safetensors("many/b.safetensors");
  expect_error(ErrorKind::file, {"2 .safetensors files"}, [&] { indexer((root() / "many").string()); });
  expect_error(ErrorKind::file, {"indexer absent"}, [&] { indexer("absent"); });
  expect_error(ErrorKind::format, {"no safetensors file"}, [&] { indexer(gguf("m.gguf").string()); });
}

TEST_F(Locate, DetectsKindsByContent) {
  EXPECT_EQ(detect_kind(gguf("x")), FileKind::gguf);
  EXPECT_EQ(detect_kind(safetensors("y")), FileKind::safetensors);
  EXPECT_EQ(detect_kind(folder_.write("z", "plain text that is long enough")), FileKind::unknown);
  EXPECT_EQ(detect_kind(folder_.write("e", "")), FileKind::unknown);
  hub_model("folder");
  EXPECT_EQ(detect_kind(root() / "folder"), FileKind::hub_folder);
  folder_.write("indexer/run_config.json", "{}");
  EXPECT_EQ(detect_kind(root() / "indexer"), FileKind::indexer_folder);
  EXPECT_EQ(detect_kind(root()), FileKind::unknown);
  expect_error(ErrorKind::file, {"absent"}, [&] { detect_kind(root() / "absent"); });
}

TEST(DefaultHubCaches, FollowTheEnvironment) {
  // Restored by the end of the test; no other test reads these.
  std::vector<std::pair<const char*, std::string>> saved;
  for (const char* name : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"}) {
    if (const char* value = std::getenv(name)) saved.emplace_back(name, value);
    ::unsetenv(name);
  }
  EXPECT_TRUE(default_hub_caches().empty());
  const std::pair<const char*, const char*> steps[] = {{"HOME", "/h/.cache/huggingface/hub"},
                                                       {"XDG_CACHE_HOME", "/h/huggingface/hub"},
                                                       {"HF_HOME", "/h/hub"},
                                                       {"HF_HUB_CACHE", "/h"}};
  for (const auto& [name, expected] : steps) {
    ::setenv(name, "/h", 1);
    EXPECT_EQ(default_hub_caches(), std::vector<fs::path>{expected}) << name;
  }
  for (const char* name : {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"}) ::unsetenv(name);
  for (const auto& [name, value] : saved) ::setenv(name, value.c_str(), 1);
}

}  // namespace
}  // namespace keysieve
