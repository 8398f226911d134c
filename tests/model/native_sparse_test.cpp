#include <gmock/gmock.h>

#include "cache/fixed_cache.h"
#include "indexer/indexer.h"
#include "indexer/selectors.h"
#include "model_support.h"
#include "tiny_folder.h"

// The native indexer (the model's own post-RoPE q and k, a set per KV head) along a whole forward. With
// identity maps its scores are the sum over a group's heads of the true attention probabilities, which is
// worked out here again.

namespace keysieve {
namespace {

using testing::all_logits;
using testing::max_difference;

constexpr size_t kSparseTokens = 40;
constexpr size_t kSparseBudget = 12;
constexpr size_t kSinks = 2;
constexpr size_t kRecent = 4;

std::vector<int32_t> some_tokens() {
  std::vector<int32_t> tokens(kSparseTokens);
  for (size_t i = 0; i < kSparseTokens; ++i) tokens[i] = static_cast<int32_t>(i * i % 19);
  return tokens;
}

class NativeSparse : public ::testing::TestWithParam<std::string_view> {
 protected:
  void SetUp() override { model_ = folder_.load({.kernels = std::string(GetParam())}); }

  // chunk 0: cut once, after the prompt.
  auto fixed_cache(size_t voters, size_t chunk) const {
    return [this, voters, chunk](const CacheShape& shape, std::shared_ptr<const Kernels> kernels) {
      const FixedCacheOptions fixed{.budget = kSparseBudget,
                                    .budgets = {},
                                    .sinks = kSinks,
                                    .recent = kRecent,
                                    .sets = model_->config().kv_heads,
                                    .voters = voters,
                                    .chunk = chunk};
      return std::make_unique<FixedCache>(shape, fixed, std::move(kernels));
    };
  }
  std::shared_ptr<KeySelector> selector(size_t budget, SelectionScope scope = SelectionScope::per_group,
                                        IndexKeyChoice keys = IndexKeyChoice::f32) const {
    const ModelConfig& model = model_->config();
    IndexerConfig config = IndexerConfig::native_for(model_->shape(), model.head_dim, budget);
    config.map_per_head = true;
    config.key_choice = keys;
    IndexerLayerWeights layer;
    layer.q = identity(model.heads, model.head_dim, 1.0f / std::sqrt(static_cast<float>(model.head_dim)));
    layer.k = identity(model.kv_heads, model.head_dim, 1.0f);
    const std::vector<IndexerLayerWeights> layers(model.layers, layer);
    const auto indexer = std::make_shared<const Indexer>(config, layers, model_->shape(),
                                                         model_->shared_kernels(), model_->threads());
    SelectionPolicy policy;
    policy.budget = budget;
    policy.sinks = kSinks;
    policy.recent = kRecent;
    policy.scope = scope;
    return std::make_shared<LearnedSelector>(indexer, policy);
  }

  static std::vector<float> identity(size_t count, size_t dim, float scale) {
    std::vector<float> maps(count * dim * dim, 0.0f);
    for (size_t m = 0; m < count; ++m) {
      for (size_t i = 0; i < dim; ++i) maps[(m * dim + i) * dim + i] = scale;
    }
    return maps;
  }

  // The positions query t of KV head `group` should read, from q [T, heads, head_dim] and k [T, kv_heads,
  // head_dim].
  std::vector<int32_t> expected_selection(std::span<const float> q, std::span<const float> k, size_t t,
                                          size_t group) const;

  testing::TinyFolder folder_;
  std::shared_ptr<const Model> model_;
  std::vector<int32_t> tokens_ = some_tokens();
};

std::vector<int32_t> NativeSparse::expected_selection(std::span<const float> q, std::span<const float> k,
                                                      size_t t, size_t group) const {
  const ModelConfig& c = model_->config();
  std::vector<double> scores(t + 1, 0.0);
  const size_t per_group = c.heads / c.kv_heads;
  for (size_t h = group * per_group; h < (group + 1) * per_group; ++h) {
    std::vector<double> weights(t + 1);
    double sum = 0;
    for (size_t s = 0; s <= t; ++s) {
      double dot = 0;
      for (size_t d = 0; d < c.head_dim; ++d) {
        dot += static_cast<double>(q[(t * c.heads + h) * c.head_dim + d]) *
               static_cast<double>(k[(s * c.kv_heads + group) * c.head_dim + d]);
      }
      weights[s] = std::exp(dot / std::sqrt(static_cast<double>(c.head_dim)));
      sum += weights[s];
    }
    for (size_t s = 0; s <= t; ++s) scores[s] += weights[s] / sum;
  }
  for (size_t s = 0; s <= t; ++s) {
    if (s < kSinks || s + kRecent > t) scores[s] = 1e9;  // always kept
  }
  std::vector<int32_t> order(t + 1);
  for (size_t s = 0; s <= t; ++s) order[s] = static_cast<int32_t>(s);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), kSparseBudget));
  std::sort(order.begin(), order.end());
  return order;
}

TEST_P(NativeSparse, ABudgetNothingExceedsIsDense) {
  const std::vector<float> dense = all_logits(model_, tokens_);
  EXPECT_EQ(all_logits(model_, tokens_, {.selector = selector(kSparseTokens)}), dense);
}

TEST_P(NativeSparse, EachGroupReadsItsOwnBestPositions) {
  std::vector<float> q;
  std::vector<float> k;
  ForwardTaps taps;
  taps.projections = [&](const TapPlace& place, const float* q_rows, const float* k_rows, const float*) {
    q.insert(q.end(), q_rows, q_rows + place.tokens * model_->config().q_width());
    k.insert(k.end(), k_rows, k_rows + place.tokens * model_->config().kv_width());
  };
  for (const size_t chunk : {40, 7, 1}) {
    q.clear();
    k.clear();
    SelectionRecorder recorder;
    SequenceState state(model_, {.max_chunk = chunk, .selector = selector(kSparseBudget)});
    prefill(state, tokens_, {.recorder = &recorder, .taps = &taps});
    for (size_t t = 0; t < kSparseTokens; ++t) {
      const SelectionRecorder::Row& row = recorder.layers().at(0).at(t);
      for (size_t group = 0; group < model_->config().kv_heads; ++group) {
        const auto& found = row.groups.size() == 1 ? row.groups[0] : row.groups.at(group);
        ASSERT_EQ(found, expected_selection(q, k, t, group)) << "chunk " << chunk << ", query " << t;
      }
    }
  }
}

TEST_P(NativeSparse, ChunksDoNotMatter) {
  for (const IndexKeyChoice keys : {IndexKeyChoice::f32, IndexKeyChoice::i8}) {
    for (const SelectionScope scope : {SelectionScope::per_group, SelectionScope::shared}) {
      const std::vector<float> whole =
          all_logits(model_, tokens_, {.selector = selector(kSparseBudget, scope, keys)});
      for (const size_t chunk : {1, 11, 13}) {
        const std::vector<float> pieces = all_logits(
            model_, tokens_, {.max_chunk = chunk, .selector = selector(kSparseBudget, scope, keys)});
        EXPECT_LE(max_difference(whole, pieces), 2e-4) << "chunk " << chunk;
      }
    }
  }
}

// In decode threads go on to a set's rows while others choose; with a recorder all is chosen first.
TEST_P(NativeSparse, ChoosingOnTheWayGivesTheSameBits) {
  const SequenceOptions options{.max_chunk = 1, .selector = selector(kSparseBudget)};
  SequenceState on_the_way(model_, options);
  SequenceState before(model_, options);
  SelectionRecorder recorder;
  EXPECT_EQ(all_logits(on_the_way, tokens_, {}), all_logits(before, tokens_, {.recorder = &recorder}));
  EXPECT_EQ(recorder.layers().at(0).size(), kSparseTokens);
}

TEST_P(NativeSparse, AFixedCacheKeepsASetPerHeadAndConstantBytes) {
  SequenceOptions options{.selector = selector(kSparseBudget)};
  options.make_cache = fixed_cache(8, 0);
  SequenceState state(model_, options);
  prefill(state, tokens_);
  uint64_t bytes = 0;
  for (int32_t step = 0; step < 12; ++step) {
    for (size_t set = 0; set < model_->config().kv_heads; ++set) {
      const std::vector<int32_t> positions = state.cache().positions(0, set);
      ASSERT_EQ(positions.size(), kSparseBudget);
      for (size_t s = 0; s < kSinks; ++s) EXPECT_EQ(positions[s], static_cast<int32_t>(s));
      for (size_t r = 0; r < kRecent; ++r) {
        EXPECT_EQ(positions[kSparseBudget - 1 - r], static_cast<int32_t>(state.position() - 1 - r));
      }
    }
    if (step == 1) bytes = state.memory().total();
    if (step > 1) EXPECT_EQ(state.memory().total(), bytes);
    forward(state, std::vector<int32_t>{step});
  }

  // A new turn of several tokens: selected from what is left, then cut again; the token before it was
  // position 51.
  SelectionRecorder recorder;
  prefill(state, std::vector<int32_t>{1, 2, 3, 4, 5}, {.recorder = &recorder});
  ASSERT_EQ(recorder.layers().at(0).size(), 5u);
  for (size_t i = 0; i < 5; ++i) {
    const SelectionRecorder::Row& row = recorder.layers()[0][i];
    EXPECT_EQ(row.query, static_cast<int32_t>(52 + i));
    for (const auto& positions : row.groups) {
      EXPECT_EQ(positions.size(), kSparseBudget);
      EXPECT_EQ(positions.front(), 0);
      EXPECT_EQ(positions.back(), row.query);
    }
  }
  for (size_t set = 0; set < model_->config().kv_heads; ++set) {
    EXPECT_EQ(state.cache().positions(0, set).size(), kSparseBudget);
  }
}

TEST_P(NativeSparse, AFixedCacheMayBeCutAfterEachChunk) {
  constexpr size_t kChunk = 6;
  SequenceOptions options{.max_chunk = kChunk, .selector = selector(kSparseBudget)};
  options.make_cache = fixed_cache(4, kChunk);
  SequenceState state(model_, options);
  SelectionRecorder recorder;
  prefill(state, tokens_, {.recorder = &recorder}, [&](size_t done) {
    EXPECT_EQ(state.cache().size(0), std::min(done, kSparseBudget));
    return true;
  });
  // A query reads what was kept before its chunk and what the chunk has brought, never what was dropped.
  for (const SelectionRecorder::Row& row : recorder.layers().at(0)) {
    for (const auto& positions : row.groups) {
      EXPECT_LE(positions.size(), kSparseBudget);
      EXPECT_EQ(positions.front(), 0);
      EXPECT_EQ(positions.back(), row.query);
    }
  }
  const auto row = [&](size_t query) -> const SelectionRecorder::Row& {
    return recorder.layers()[0].at(query);
  };
  for (size_t first = 24; first + kChunk <= kSparseTokens; first += kChunk) {
    for (size_t set = 0; set < row(first).groups.size(); ++set) {
      std::vector<int32_t> seen;
      for (size_t i = first; i < first + kChunk; ++i) {
        for (const int32_t position : row(i).groups[set]) {
          if (static_cast<size_t>(position) < first) seen.push_back(position);
        }
      }
      std::sort(seen.begin(), seen.end());
      seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
      EXPECT_LE(seen.size(), kSparseBudget) << "chunk at " << first << " reads more than was kept";
    }
  }
}

TEST_P(NativeSparse, LayersWithoutABudgetAreDense) {
  const std::vector<float> dense = all_logits(model_, tokens_);
  auto inner = selector(kSparseBudget);
  const auto& learned = dynamic_cast<const LearnedSelector&>(*inner);
  SelectionPolicy policy = learned.policy();
  policy.budgets.assign(model_->config().layers, 0);
  const auto indexer = std::shared_ptr<const Indexer>(inner, &learned.indexer());
  EXPECT_EQ(all_logits(model_, tokens_, {.selector = std::make_shared<LearnedSelector>(indexer, policy)}),
            dense);
}

INSTANTIATE_TEST_SUITE_P(Kernels, NativeSparse, ::testing::ValuesIn(available_kernels()),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace keysieve
