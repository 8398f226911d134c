#include <cstdlib>
#include <fstream>

#include "fixture.h"
#include "generate/handles.h"

namespace keysieve {
namespace {

using testing::expect_error;
using testing::TinyModel;
using testing::TinyWorld;

// Points $KEYSIEVE_INDEXERS at a folder while it lives.
class IndexerFolder {
 public:
  explicit IndexerFolder(const std::filesystem::path& folder) {
    ::setenv("KEYSIEVE_INDEXERS", folder.c_str(), 1);
  }
  ~IndexerFolder() { ::unsetenv("KEYSIEVE_INDEXERS"); }
};

TEST(LightningIndexer, InfoDescribesTheFile) {
  const LanguageModel model = TinyWorld::get().load();
  const IndexerInfo info = LightningIndexer::load(TinyWorld::get().indexer.string(), model).info();
  EXPECT_EQ(info.shape, "native");
  EXPECT_EQ(info.layers, TinyModel::kLayers);
  EXPECT_EQ(info.heads, TinyModel::kHeads);
  EXPECT_EQ(info.dim, 4u);
  EXPECT_EQ(info.parameters, 2u * 4 * 4 * 8);  // layers, maps, dim, head_dim
  EXPECT_EQ(info.budget, 24u);
  EXPECT_EQ(info.sinks, 2u);
  EXPECT_EQ(info.recent, 8u);
  EXPECT_TRUE(info.per_group);
}

TEST(LightningIndexer, AutoFindsTheOneThatNamesTheModel) {
  const LanguageModel model = TinyWorld::get().load();
  const std::filesystem::path folder = TinyWorld::get().folder / "several";
  const std::string fingerprint = model.impl()->model->fingerprint_text();
  testing::write_tiny_indexer(folder / "a-stranger", "0123456789abcdef");
  testing::write_tiny_indexer(folder / "b-match", fingerprint);
  std::filesystem::create_directories(folder / "c-damaged");
  std::ofstream(folder / "c-damaged" / "run_config.json") << "{";
  const IndexerFolder environment(folder);
  EXPECT_THAT(LightningIndexer::load("auto", model).info().path, ::testing::HasSubstr("b-match"));
  // By short name too.
  EXPECT_THAT(LightningIndexer::load("b-match", model).info().path, ::testing::HasSubstr("b-match"));
  // Naming the stranger is refused: it was made for another model.
  EXPECT_THROW((void)LightningIndexer::load("a-stranger", model), Error);
}

TEST(LightningIndexer, AutoWithoutOneSaysWhatToDo) {
  const LanguageModel model = TinyWorld::get().load();
  const std::filesystem::path folder = TinyWorld::get().folder / "none";
  testing::write_tiny_indexer(folder / "stranger", "0123456789abcdef");
  const IndexerFolder environment(folder);
  expect_error(ErrorKind::file,
               {"indexer auto", "calibrate", "--dense", model.impl()->model->fingerprint_text()},
               [&] { (void)LightningIndexer::load("auto", model); });
}

TEST(LightningIndexer, RunConfigMayLieElsewhere) {
  const LanguageModel model = TinyWorld::get().load();
  const std::filesystem::path folder = TinyWorld::get().folder / "apart";
  testing::write_tiny_indexer(folder / "weights", "");
  std::filesystem::rename(folder / "weights" / "run_config.json", folder / "run_config.json");
  const std::string weights = (folder / "weights" / "indexer.safetensors").string();
  EXPECT_EQ(LightningIndexer::load(weights, model, folder / "run_config.json").info().budget, 24u);
  expect_error(ErrorKind::file, {"run_config.json", "--run-config"},
               [&] { (void)LightningIndexer::load(weights, model); });
}

}  // namespace
}  // namespace keysieve
