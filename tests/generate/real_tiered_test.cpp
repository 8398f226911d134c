#include <algorithm>
#include <fstream>
#include <sstream>

#include "fixture.h"
#include "keysieve/session.h"

namespace keysieve {
namespace {

std::string bytes_of(const std::filesystem::path& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

// Below a budget of 512 a tiered cache takes a prompt in smaller chunks than a full one. The saved states,
// every key, value and index key and the last logits, are the same bytes all the same.
TEST(RealModelTiered, EqualsTheFullCacheBelowAWholeChunkToo) {
  const auto models = testing::models_dir();
  if (!models) GTEST_SKIP() << "no models/";
  const std::filesystem::path file = *models / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(file)) GTEST_SKIP() << "no " << file;
  const LanguageModel model = LanguageModel::load(file.string());
  SessionOptions options;
  options.indexer =
      LightningIndexer::load((testing::source_folder() / "indexers/smollm2-135m").string(), model);
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < 1000; ++i)
    tokens.push_back(static_cast<int32_t>((i * i * 7 + i * 31) % 40000 + 500));
  const std::filesystem::path folder = testing::TinyWorld::get().folder;
  for (const size_t budget : {72u, 300u}) {
    options.budget = budget;
    options.cache = CacheKind::full;
    Session full(model, options);
    full.prefill(tokens);
    full.save(folder / "full.session");
    options.cache = CacheKind::tiered;
    Session tiered(model, options);
    tiered.prefill(tokens);
    tiered.save(folder / "tiered.session");
    EXPECT_GT(tiered.statistics().memory.kv_moved_bytes, 0u);
    EXPECT_TRUE(std::ranges::equal(full.last_logits(), tiered.last_logits())) << budget;
    EXPECT_TRUE(bytes_of(folder / "full.session") == bytes_of(folder / "tiered.session")) << budget;
  }
}

}  // namespace
}  // namespace keysieve
