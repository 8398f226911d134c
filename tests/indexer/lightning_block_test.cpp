#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "indexer/fixtures.h"

namespace keysieve {
namespace {

using testing::Bench;
using testing::StoredKeys;

// An indexer of the published shape on made-up hidden states, of which the first query of each four has
// scores a hundred times as large as the others'.
struct LightningRun {
  static constexpr size_t kHidden = 8, kHeads = 3, kDim = 12, kTokens = 48, kStored = 300;
  Bench bench;
  std::vector<float> hidden = testing::random_floats(kTokens * kHidden, 1);
  std::vector<float> keys = testing::random_floats(kStored * kDim, 2);
  std::vector<int32_t> positions;
  StoredKeys stored{IndexKeyType::f32, kDim, kStored};
  IndexKeyView view = stored.view();
  std::shared_ptr<const Indexer> indexer;

  explicit LightningRun(std::string_view family) : bench(family) {
    for (size_t t = 0; t < kTokens; t += 4)
      for (size_t i = 0; i < kHidden; ++i) hidden[t * kHidden + i] *= 10.0f;  // queries and head weights both
    for (size_t slot = 0; slot < kStored; ++slot) stored.store(slot, keys.data() + slot * kDim);
    IndexerConfig config;
    config.layers = 1;
    config.hidden = kHidden;
    config.heads = kHeads;
    config.dim = kDim;
    config.query_block = 4;
    IndexerLayerWeights layer;
    layer.q = testing::random_floats(kHeads * kDim * kHidden, 3);
    layer.k = testing::random_floats(kDim * kHidden, 4);
    layer.head_weight = testing::random_floats(kHeads * kHidden, 5);
    const ModelShape model = testing::narrow_model();
    indexer =
        std::make_shared<const Indexer>(config, std::span(&layer, 1), model, bench.kernels, bench.threads);
    positions.resize(kTokens);
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(kStored - kTokens));
  }

  // `count` queries from `first` on.
  LayerQuery query(size_t first, size_t count) {
    return {0,
            {hidden.data() + first * kHidden, nullptr, nullptr, positions.data() + first, count},
            kStored - kTokens + first,
            {},
            {&view, 1},
            nullptr,
            nullptr};
  }
};

TEST(LightningBlock, NeighboursCountAlikeWhateverTheSizeOfTheirScores) {
  for (const std::string_view family : {"reference", "auto"}) {
    LightningRun run(family);
    const SelectionPolicy policy{.budget = 40, .budgets = {}, .sinks = 2, .recent = 4, .query_block = 4};
    LearnedSelector selector(run.indexer, policy);
    SelectionBuffer buffer;
    ASSERT_TRUE(selector.select(run.query(0, LightningRun::kTokens), run.bench.context, buffer));
    SelectionPolicy one_by_one = policy;
    one_by_one.query_block = 1;
    LearnedSelector alone(run.indexer, one_by_one);
    size_t differing = 0;
    for (size_t block = 0; block < LightningRun::kTokens; block += 4) {
      const size_t candidates = LightningRun::kStored - LightningRun::kTokens + block + 1;
      std::vector<double> total(candidates);
      for (size_t i = block; i < block + 4; ++i) {
        std::vector<float> scores(candidates + 16);
        alone.scores(scores.data(), run.query(i, 1), 1, run.bench.context);
        const float top =
            *std::max_element(scores.begin(), scores.begin() + static_cast<std::ptrdiff_t>(candidates));
        double sum = 0;
        for (size_t s = 0; s <= candidates - 1 + (i - block); ++s)
          sum += std::exp(static_cast<double>(scores[s] - top));
        for (size_t s = 0; s < candidates; ++s)
          total[s] += std::exp(static_cast<double>(scores[s] - top)) / sum;
      }
      const auto slots = buffer.slots(block + 3, 0);
      ASSERT_EQ(slots.size(), 40u);
      double least_kept = 1e9, most_dropped = 0;
      for (size_t s = 2; s + 4 < candidates; ++s) {
        const bool kept = std::binary_search(slots.begin(), slots.end(), static_cast<uint32_t>(s));
        (kept ? least_kept : most_dropped) =
            kept ? std::min(least_kept, total[s]) : std::max(most_dropped, total[s]);
      }
      EXPECT_GE(least_kept, most_dropped * (1 - 1e-4) - 1e-7) << family << ", block at " << block;
      SelectionBuffer single;
      ASSERT_TRUE(alone.select(run.query(block, 1), run.bench.context, single));
      const auto first = buffer.slots(block, 0), of_first_alone = single.slots(0, 0);
      differing += !std::equal(first.begin(), first.end(), of_first_alone.begin(), of_first_alone.end());
    }
    EXPECT_GT(differing, 0u);  // the loud first query does not choose for all
  }
}

}  // namespace
}  // namespace keysieve
