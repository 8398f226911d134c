#include <gmock/gmock.h>

#include "cache/fixed_cache.h"
#include "indexer/indexer.h"
#include "indexer/selection_recorder.h"
#include "indexer/selectors.h"
#include "keysieve/error.h"
#include "model_support.h"

// The seed-shape indexers on a tiny Qwen3 model: selections, logits and the fixed cache, against a float64
// reference. No cut in the recorded data is nearer than 9.5e-4 standard deviations of the scores (exact ties
// apart), so a float32 forward must select the same positions everywhere.

namespace keysieve {
namespace {

using testing::all_logits;
using testing::golden_dir;
using testing::max_difference;

constexpr double kBound = 5e-4;  // scores and logits; two float32 implementations differ by 1.2e-5

struct Policy {
  const char* folder;
  size_t sinks;
  size_t recent;
};
constexpr Policy kPlain{"k16", 0, 0};
constexpr Policy kSinksRecent{"k16_sinks4_recent8", 4, 8};
constexpr size_t kBudget = 16;

std::unique_ptr<KvCache> make_fixed(const CacheShape& shape, std::shared_ptr<const Kernels> kernels) {
  FixedCacheOptions options;
  options.budget = kBudget;
  return std::make_unique<FixedCache>(shape, options, std::move(kernels));
}

class GoldenSparse : public ::testing::TestWithParam<std::tuple<std::string_view, const char*>> {
 protected:
  void SetUp() override {
    if (!golden_dir()) GTEST_SKIP() << "no golden data";
    folder_ = *golden_dir() / "indexer" / std::get<1>(GetParam());
    const auto model_folder = *golden_dir() / "models/qwen3-bf16";
    model_ = Model::load(model_folder, {.kernels = std::string(std::get<0>(GetParam()))});
    tokens_ = testing::read_ids(model_folder / "input_ids.npy");
    indexer_ = std::make_shared<const Indexer>(
        Indexer::load(folder_, model_->shape(), model_->shared_kernels(), model_->threads()));
  }

  std::shared_ptr<KeySelector> selector(size_t budget, Policy policy) const {
    SelectionPolicy selection = SelectionPolicy::from(indexer_->config());
    selection.budget = budget;
    selection.sinks = policy.sinks;
    selection.recent = policy.recent;
    return std::make_shared<LearnedSelector>(indexer_, selection);
  }

  // Scores along the forward as recorded: [layers, T, T], NaN for keys after the query.
  std::vector<float> scores_along(SequenceState& state, const ForwardOptions& more = {}) {
    const size_t tokens = tokens_.size();
    std::vector<float> scores(model_->config().layers * tokens * tokens, NAN);
    ForwardTaps taps;
    taps.scores = [&](size_t layer, size_t query, size_t, std::span<const int32_t> positions,
                      std::span<const float> values) {
      for (size_t i = 0; i < positions.size(); ++i) {
        scores[(layer * tokens + query) * tokens + static_cast<size_t>(positions[i])] = values[i];
      }
    };
    ForwardOptions options = more;
    options.taps = &taps;
    prefill(state, tokens_, options);
    return scores;
  }

  static void expect_scores_near(std::span<const float> expected, std::span<const float> found) {
    ASSERT_EQ(expected.size(), found.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(std::isnan(expected[i]), std::isnan(found[i])) << i;
      if (!std::isnan(expected[i])) ASSERT_NEAR(expected[i], found[i], kBound) << i;
    }
  }

  void check_policy(Policy policy, size_t chunk);

  std::filesystem::path folder_;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<const Indexer> indexer_;
  std::vector<int32_t> tokens_;
};

void GoldenSparse::check_policy(Policy policy, size_t chunk) {
  const auto folder = folder_ / policy.folder;
  const std::vector<int64_t> selected = NpyFile(folder / "selected.npy").integers();  // [layers, T, budget]
  SelectionRecorder recorder;
  SequenceState state(model_, {.max_chunk = chunk, .selector = selector(kBudget, policy)});
  const std::vector<float> logits = all_logits(state, tokens_, {.recorder = &recorder});
  EXPECT_LE(max_difference(NpyFile(folder / "logits.npy").floats(), logits), kBound);

  ASSERT_EQ(recorder.layers().size(), model_->config().layers);
  for (size_t layer = 0; layer < recorder.layers().size(); ++layer) {
    ASSERT_EQ(recorder.layers()[layer].size(), tokens_.size());
    for (size_t t = 0; t < tokens_.size(); ++t) {
      const SelectionRecorder::Row& row = recorder.layers()[layer][t];
      std::vector<int32_t> expected;
      for (size_t i = 0; i < kBudget; ++i) {
        const int64_t position = selected[(layer * tokens_.size() + t) * kBudget + i];
        if (position >= 0) expected.push_back(static_cast<int32_t>(position));
      }
      ASSERT_EQ(row.query, static_cast<int32_t>(t));
      ASSERT_EQ(row.groups.size(), 1u);
      ASSERT_EQ(row.groups[0], expected) << "layer " << layer << ", query " << t;
    }
  }
}

TEST_P(GoldenSparse, ScoresAlongTheDenseForward) {
  SequenceState state(model_, {.selector = selector(tokens_.size(), kPlain)});  // a budget nothing exceeds
  expect_scores_near(NpyFile(folder_ / "dense_scores.npy").floats(), scores_along(state));
  EXPECT_EQ(state.work().index_bytes_read, 0u);
}

TEST_P(GoldenSparse, ScoresAlongTheSparseForward) {
  for (const Policy policy : {kPlain, kSinksRecent}) {
    SequenceState state(model_, {.selector = selector(kBudget, policy)});
    expect_scores_near(NpyFile(folder_ / policy.folder / "scores.npy").floats(), scores_along(state));
  }
}

TEST_P(GoldenSparse, SelectionsAndLogits) { check_policy(kPlain, 512); }
TEST_P(GoldenSparse, SelectionsAndLogitsWithSinksAndRecent) { check_policy(kSinksRecent, 512); }
// 13 ends a chunk before, and 17 a chunk behind, the query where the budget of 16 begins to bind; 1 is
// decode.
TEST_P(GoldenSparse, SelectionsAndLogitsInChunks) {
  for (const size_t chunk : {1, 13, 16, 17}) check_policy(kSinksRecent, chunk);
}

TEST_P(GoldenSparse, CountsWhatItReads) {
  SequenceState state(model_, {.selector = selector(kBudget, kPlain)});
  forward(state, tokens_);
  const ModelConfig& config = model_->config();
  // 16 queries read 1 .. 16 positions, the other 32 read 16; the same in every layer and KV head.
  const size_t per_head = 16 * 17 / 2 + 32 * kBudget;
  EXPECT_EQ(state.work().queries, tokens_.size() * config.layers * config.kv_heads);
  EXPECT_EQ(state.work().positions_read, per_head * config.layers * config.kv_heads);
  EXPECT_EQ(state.work().kv_bytes_read, state.work().positions_read * 2 * config.head_dim * sizeof(float));
  // Scoring: queries 16 .. 47 look at all their candidates, 72 (69 padded) values of 4 bytes each.
  const size_t scored = (48 * 49 - 16 * 17) / 2;
  EXPECT_EQ(state.work().index_bytes_read, scored * config.layers * 72 * sizeof(float));
  const CacheBytes bytes = state.memory();
  EXPECT_EQ(bytes.hot, tokens_.size() * config.layers * 2 * config.kv_width() * sizeof(float));
  EXPECT_GE(bytes.index, tokens_.size() * config.layers * 72 * sizeof(float));
}

TEST_P(GoldenSparse, FixedCacheDecode) {
  const auto folder = folder_ / "fixed_cache";
  const size_t layers = model_->config().layers;
  const std::vector<int64_t> pruned = NpyFile(folder / "pruned_positions.npy").integers();
  const std::vector<int64_t> candidates = NpyFile(folder / "candidate_positions.npy").integers();
  const std::vector<float> candidate_scores = NpyFile(folder / "candidate_scores.npy").floats();
  const std::vector<int64_t> kept = NpyFile(folder / "kept_positions.npy").integers();
  const std::vector<float> expected_logits = NpyFile(folder / "logits.npy").floats();
  const std::vector<int32_t> fed = testing::read_ids(folder / "fed_tokens.npy");
  const size_t vocabulary = model_->config().vocabulary;

  for (const size_t chunk : {512, 47, 7}) {  // 47: the prompt's last chunk is one token
    SequenceState state(
        model_, {.max_chunk = chunk, .selector = selector(kBudget, kPlain), .make_cache = make_fixed});
    prefill(state, tokens_);
    for (size_t layer = 0; layer < layers; ++layer) {
      const std::vector<int32_t> positions = state.cache().positions(layer, 0);
      const auto expected = std::span(pruned).subspan(layer * kBudget, kBudget);
      ASSERT_THAT(positions, ::testing::ElementsAreArray(expected.begin(), expected.end()))
          << "layer " << layer;
    }
    uint64_t bytes = 0;

    std::vector<std::map<int32_t, float>> scores(layers);
    ForwardTaps taps;
    taps.scores = [&](size_t layer, size_t, size_t, std::span<const int32_t> positions,
                      std::span<const float> values) {
      for (size_t i = 0; i < positions.size(); ++i) scores[layer][positions[i]] = values[i];
    };
    for (size_t step = 0; step < fed.size(); ++step) {
      ASSERT_EQ(testing::argmax(state.last_logits()), static_cast<size_t>(fed[step])) << "step " << step;
      SelectionRecorder recorder;
      scores.assign(layers, {});
      forward(state, std::span(fed).subspan(step, 1), {.recorder = &recorder, .taps = &taps});
      for (size_t layer = 0; layer < layers; ++layer) {
        const size_t row = step * layers + layer;
        ASSERT_EQ(scores[layer].size(), kBudget + 1);
        for (size_t i = 0; i <= kBudget; ++i) {
          const auto position = static_cast<int32_t>(candidates[row * (kBudget + 1) + i]);
          ASSERT_TRUE(scores[layer].contains(position)) << "step " << step << ", layer " << layer;
          ASSERT_NEAR(scores[layer][position], candidate_scores[row * (kBudget + 1) + i], kBound);
        }
        const auto expected = std::span(kept).subspan(row * kBudget, kBudget);
        ASSERT_THAT(state.cache().positions(layer, 0),
                    ::testing::ElementsAreArray(expected.begin(), expected.end()))
            << "step " << step << ", layer " << layer;
        ASSERT_EQ(recorder.layers().at(layer).at(0).groups.at(0), state.cache().positions(layer, 0));
      }
      EXPECT_LE(max_difference(std::span(expected_logits).subspan(step * vocabulary, vocabulary),
                               state.last_logits()),
                kBound)
          << "step " << step;
      // The first step opens the slot that holds the new row while it is weighed; then nothing grows.
      if (step == 0) bytes = state.memory().total();
      EXPECT_EQ(state.memory().total(), bytes) << "step " << step;
    }
    const Json fixed = read_json_file(folder / "fixed.json");
    EXPECT_EQ(testing::argmax(state.last_logits()), fixed.at("next_token").get<size_t>());
  }
}

TEST_P(GoldenSparse, ACacheThatForgetsNeedsASelector) {
  SequenceOptions options;
  options.make_cache = make_fixed;
  EXPECT_THROW(SequenceState(model_, options), Error);
}

TEST_P(GoldenSparse, TruncateGoesBack) {
  SequenceState state(model_, {.selector = selector(kBudget, kSinksRecent)});
  forward(state, tokens_);
  const std::vector<float> expected(state.last_logits().begin(), state.last_logits().end());
  ASSERT_TRUE(state.truncate(20));
  EXPECT_TRUE(state.last_logits().empty());
  EXPECT_FALSE(state.truncate(21));
  forward(state, std::span(tokens_).subspan(20));
  EXPECT_LE(max_difference(expected, state.last_logits()), kBound);
}

INSTANTIATE_TEST_SUITE_P(Indexers, GoldenSparse,
                         ::testing::Combine(::testing::ValuesIn(available_kernels()),
                                            ::testing::Values("bias", "norm")),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
                         });

}  // namespace
}  // namespace keysieve
