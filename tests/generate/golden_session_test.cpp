#include <algorithm>

#include "fixture.h"

// The public API against recorded outputs: the whole way from files to logits, selections and the fixed
// cache.

namespace keysieve {
namespace {

using testing::golden_dir;
using testing::max_difference;
using testing::read_ids;

constexpr double kBound = 5e-4;  // between float32 paths; two such differ by about 1e-5

class GoldenSession : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!golden_dir()) GTEST_SKIP() << "no golden data";
    folder_ = *golden_dir() / "indexer" / GetParam();
    base_ = *golden_dir() / "models/qwen3-bf16";
  }
  SessionOptions options(const LanguageModel& model, CacheKind cache) const {
    SessionOptions sparse;
    sparse.indexer = LightningIndexer::load(folder_.string(), model);
    sparse.budget = 16;
    sparse.cache = cache;
    return sparse;
  }

  std::filesystem::path folder_;
  std::filesystem::path base_;
};

TEST_P(GoldenSession, SparseLogitsAndSelections) {
  const LanguageModel model = LanguageModel::load(base_.string());
  SessionOptions sparse = options(model, CacheKind::full);
  for (const bool kept : {false, true}) {
    const std::filesystem::path recorded = folder_ / (kept ? "k16_sinks4_recent8" : "k16");
    sparse.sinks = kept ? 4 : 0;
    sparse.recent = kept ? 8 : 0;
    Session session(model, sparse);
    std::vector<float> found;
    Session::SelectionRecord record;
    session.logits(
        read_ids(base_ / "input_ids.npy"),
        [&](size_t, std::span<const float> row) { found.insert(found.end(), row.begin(), row.end()); },
        &record);
    EXPECT_LT(max_difference(found, NpyFile(recorded / "logits.npy").floats()), kBound);
    const NpyFile selected(recorded / "selected.npy");
    const std::vector<int64_t> expected = selected.integers();
    ASSERT_EQ(record.size(), selected.shape()[0]);
    for (size_t layer = 0; layer < record.size(); ++layer) {
      ASSERT_EQ(record[layer].size(), selected.shape()[1]);
      for (size_t query = 0; query < record[layer].size(); ++query) {
        const auto* row = expected.data() + (layer * selected.shape()[1] + query) * 16;
        std::vector<uint32_t> positions;
        for (size_t i = 0; i < 16 && row[i] >= 0; ++i) positions.push_back(static_cast<uint32_t>(row[i]));
        EXPECT_EQ(record[layer][query].front(), positions) << "layer " << layer << ", query " << query;
      }
    }
  }
}

TEST_P(GoldenSession, FixedCacheDecode) {
  const LanguageModel model = LanguageModel::load(base_.string());
  Session session(model, options(model, CacheKind::fixed));
  const std::vector<int32_t> prompt = read_ids(base_ / "input_ids.npy");
  const std::vector<int32_t> fed = read_ids(folder_ / "fixed_cache/fed_tokens.npy");
  const std::vector<float> logits = NpyFile(folder_ / "fixed_cache/logits.npy").floats();
  const size_t vocabulary = model.info().vocabulary;
  session.prefill(prompt);
  for (size_t step = 0; step < fed.size(); ++step) {
    const auto row = session.last_logits();
    EXPECT_EQ(std::max_element(row.begin(), row.end()) - row.begin(), fed[step]) << "step " << step;
    session.prefill({&fed[step], 1});
    const auto expected = std::span(logits).subspan(step * vocabulary, vocabulary);
    EXPECT_LT(max_difference(session.last_logits(), expected), kBound) << "step " << step;
    EXPECT_LE(session.statistics().kv_bytes_kept, 17 * model.info().kv_bytes_per_token);
  }
  // The same through generate().
  GenerateOptions greedy;
  greedy.max_tokens = fed.size();
  greedy.ignore_end_tokens = true;
  session.clear();
  EXPECT_EQ(session.generate(prompt, greedy).token_ids, fed);
}

INSTANTIATE_TEST_SUITE_P(Variants, GoldenSession, ::testing::Values("bias", "norm"));

}  // namespace
}  // namespace keysieve
