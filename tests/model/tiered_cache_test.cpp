#include <gmock/gmock.h>

#include "cache/tiered_cache.h"
#include "indexer/indexer.h"
#include "indexer/selectors.h"
#include "model_support.h"
#include "tiny_folder.h"

// A tiered cache changes where rows lie and nothing else: the logits are those of a full cache with the same
// selector, bit for bit.

namespace keysieve {
namespace {

constexpr size_t kTieredTokens = 300;
constexpr size_t kTieredBudget = 24;

class TieredModel : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override {
    testing::TinyFolder folder({{"max_position_embeddings", 512}});
    model_ = folder.load({.kernels = std::string(GetParam())});
    for (size_t i = 0; i < kTieredTokens; ++i) tokens_.push_back(static_cast<int32_t>((i * i + i / 7) % 19));
  }

  static std::vector<float> random_floats(size_t count, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(random()) * 0x1p-31f - 1.0f;
    return values;
  }

  std::shared_ptr<KeySelector> selector(IndexerShape shape, SelectionScope scope, size_t query_block) const {
    const ModelConfig& c = model_->config();
    IndexerConfig config;
    IndexerLayerWeights layer;
    if (shape == IndexerShape::native) {
      config = IndexerConfig::native_for(model_->shape(), 4, kTieredBudget);
      config.map_per_head = true;
      layer.q = random_floats(c.heads * 4 * c.head_dim, 5);
      layer.k = random_floats(c.kv_heads * 4 * c.head_dim, 6);
    } else {
      config.hidden = c.hidden;
      config.heads = 2;
      config.dim = 8;
      config.rope_dim = 4;
      bind_to_model(config, model_->shape(), "test");
      layer.q = random_floats(config.heads * config.dim * c.hidden, 5);
      layer.k = random_floats(config.dim * c.hidden, 6);
      layer.head_weight = random_floats(config.heads * c.hidden, 7);
    }
    const std::vector<IndexerLayerWeights> layers(c.layers, layer);
    const auto indexer = std::make_shared<const Indexer>(config, layers, model_->shape(),
                                                         model_->shared_kernels(), model_->threads());
    SelectionPolicy policy;
    policy.budget = kTieredBudget;
    policy.sinks = 2;
    policy.recent = 5;
    policy.scope = scope;
    policy.query_block = query_block;
    return std::make_shared<LearnedSelector>(indexer, policy);
  }

  // Logits of all tokens: a prompt in chunks, then one by one.
  std::vector<float> logits(SequenceState& state) const {
    std::vector<float> rows = testing::all_logits(state, {tokens_.data(), kTieredTokens - 40});
    for (size_t t = kTieredTokens - 40; t < kTieredTokens; ++t) {
      forward(state, {tokens_.data() + t, 1}, {.logits = Logits::last});
      rows.insert(rows.end(), state.last_logits().begin(), state.last_logits().end());
    }
    return rows;
  }

  std::shared_ptr<const Model> model_;
  std::vector<int32_t> tokens_;
};

TEST_P(TieredModel, EqualsTheFullCacheBitForBit) {
  const testing::TempFolder folder;
  struct Case {
    IndexerShape shape;
    SelectionScope scope;
    size_t query_block;
  };
  for (const Case& c : {Case{IndexerShape::native, SelectionScope::per_group, 1},
                        Case{IndexerShape::native, SelectionScope::per_group, 8},
                        Case{IndexerShape::native, SelectionScope::shared, 8},
                        Case{IndexerShape::seed, SelectionScope::shared, 1}}) {
    for (const KvType type : {KvType::f16, KvType::f32}) {
      for (const size_t chunk : {size_t{7}, size_t{64}}) {
        for (const bool on_disk : {false, true}) {
          SequenceOptions options{
              .max_chunk = chunk, .kv_type = type, .selector = selector(c.shape, c.scope, c.query_block)};
          SequenceState full(model_, options);
          options.selector = selector(c.shape, c.scope, c.query_block);
          options.make_cache = [&](const CacheShape& shape, std::shared_ptr<const Kernels> kernels) {
            const TieredCacheOptions tiered{
                .budget = kTieredBudget, .budgets = {}, .chunk = chunk, .sets = options.selector->groups()};
            return make_tiered_cache(shape, std::move(kernels), tiered,
                                     on_disk ? folder.path() : std::filesystem::path());
          };
          SequenceState tiered(model_, options);
          const std::vector<float> expected = logits(full);
          ASSERT_EQ(logits(tiered), expected) << "chunk " << chunk << ", block " << c.query_block;
          EXPECT_EQ(tiered.memory().hot * kTieredTokens, full.memory().hot * (kTieredBudget + chunk));
          EXPECT_EQ(tiered.memory().cold, full.memory().hot);
          EXPECT_EQ(tiered.memory().index, full.memory().index);
          EXPECT_GT(tiered.memory().moved, 0u);

          // Back into the prompt, and to where the queries are dense, and on.
          for (const size_t back : {size_t{200}, size_t{10}}) {
            ASSERT_TRUE(full.truncate(back));
            ASSERT_TRUE(tiered.truncate(back));
            const std::span<const int32_t> again(tokens_.data() + 20, 90);
            for (SequenceState* state : {&full, &tiered}) prefill(*state, again, {.logits = Logits::last});
            ASSERT_TRUE(std::ranges::equal(tiered.last_logits(), full.last_logits())) << back;
          }
          tiered.clear();
          ASSERT_EQ(logits(tiered), expected);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, TieredModel, ::testing::ValuesIn(available_kernels()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace keysieve
