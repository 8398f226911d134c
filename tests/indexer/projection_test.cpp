#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "formats/npy.h"
#include "indexer/fixtures.h"
#include "indexer/selection_recorder.h"
#include "support/golden.h"

namespace keysieve {
namespace {

using testing::Bench;
using testing::golden_model;
using testing::TemporaryFolder;

// One layer with heads as wide as the small models' are.
ModelShape wide_model() {
  return {.layers = 1,
          .hidden = 96,
          .heads = 6,
          .kv_heads = 2,
          .head_dim = 64,
          .rope_theta = 1e4,
          .rms_norm_eps = 1e-6f,
          .fingerprint = {}};
}

void expect_near(std::span<const float> found, std::span<const float> expected, float tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  float worst = 0;
  for (size_t i = 0; i < found.size(); ++i) worst = std::max(worst, std::fabs(found[i] - expected[i]));
  EXPECT_LE(worst, tolerance);
}

// The recorded run of the seed shape: layer 0 from its normed input to the selected positions.
class Golden : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  void SetUp() override {
    golden_ = testing::golden_dir();
    if (!golden_) GTEST_SKIP() << "no golden data";
    folder_ = *golden_ / "indexer" / std::get<0>(GetParam());
    const auto layer0 = testing::unpack_npz(*golden_ / "models/qwen3-bf16/layer0.npz", scratch_.path());
    hidden_ = NpyFile(layer0.at("attn_input")).floats();
    positions_.resize(kTokens);
    std::iota(positions_.begin(), positions_.end(), 0);
  }
  LayerInputs inputs() const { return {hidden_.data(), nullptr, nullptr, positions_.data(), kTokens}; }

  static constexpr size_t kTokens = 48;
  std::optional<std::filesystem::path> golden_;
  std::filesystem::path folder_;
  TemporaryFolder scratch_;
  std::vector<float> hidden_;
  std::vector<int32_t> positions_;
};

TEST_P(Golden, ProjectionsMatch) {
  Bench bench(std::get<1>(GetParam()));
  const Indexer indexer = Indexer::load(folder_, golden_model(), bench.kernels, bench.threads);
  const auto recorded = testing::unpack_npz(folder_ / "layer0_projections.npz", scratch_.path());
  std::vector<float> q(kTokens * 6 * 69);
  std::vector<float> k(kTokens * 69);
  std::vector<float> w(kTokens * 6);
  indexer.project_keys(k.data(), 0, inputs(), bench.context);
  indexer.project_queries(q.data(), w.data(), 0, inputs(), bench.context);
  expect_near(q, NpyFile(recorded.at("q")).floats(), 5e-5f);
  expect_near(k, NpyFile(recorded.at("k")).floats(), 5e-5f);
  expect_near(w, NpyFile(recorded.at("w")).floats(), 5e-5f);
  EXPECT_GT(indexer.bytes(), size_t{2} * 2 * 489 * 128);
}

TEST_P(Golden, ScoresAndSelectionMatch) {
  Bench bench(std::get<1>(GetParam()));
  const auto indexer =
      std::make_shared<const Indexer>(Indexer::load(folder_, golden_model(), bench.kernels, bench.threads));
  testing::StoredKeys keys(IndexKeyType::f32, 69, kTokens);
  std::vector<float> k(kTokens * 69);
  indexer->project_keys(k.data(), 0, inputs(), bench.context);
  for (size_t t = 0; t < kTokens; ++t) keys.store(t, k.data() + t * 69);
  const IndexKeyView view = keys.view();

  const std::vector<float> dense = NpyFile(folder_ / "dense_scores.npy").floats();  // [layers, T, T]
  LearnedSelector scorer(indexer, SelectionPolicy::from(indexer->config()));
  for (size_t t = 0; t < kTokens; ++t) {
    LayerInputs one = inputs();
    one.hidden += t * 128;
    one.positions += t;
    one.tokens = 1;
    std::vector<float> scores(t + 1);
    scorer.scores(scores.data(), {0, one, t, {}, {&view, 1}, nullptr, nullptr}, 1, bench.context);
    expect_near(scores, std::span(dense).subspan(t * kTokens, t + 1), 5e-4f);
  }

  for (const auto& [policy_folder, sinks, recent] :
       {std::tuple{"k16", 0u, 0u}, std::tuple{"k16_sinks4_recent8", 4u, 8u}}) {
    const auto selected = NpyFile(folder_ / policy_folder / "selected.npy").integers();  // [layers, T, 16]
    LearnedSelector selector(indexer, {.budget = 16, .budgets = {}, .sinks = sinks, .recent = recent});
    SelectionRecorder recorder;
    SelectionBuffer buffer;
    ASSERT_TRUE(selector.select({0, inputs(), 0, {}, {&view, 1}, nullptr, &recorder}, bench.context, buffer));
    for (size_t t = 0; t < kTokens; ++t) {
      std::vector<int32_t> expected;
      for (size_t i = 0; i < 16; ++i) {
        const int64_t position = selected[t * 16 + i];
        if (position >= 0) expected.push_back(static_cast<int32_t>(position));
      }
      ASSERT_EQ(recorder.layers()[0][t].groups[0], expected) << policy_folder << " query " << t;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Golden,
                         ::testing::Combine(::testing::Values("bias", "norm"),
                                            ::testing::Values("reference", "auto")),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::get<1>(info.param);
                         });

// Every head by its own map, in double.
std::vector<float> map_heads(const std::vector<float>& maps, const std::vector<float>& x, size_t heads,
                             size_t heads_per_map, size_t dim, size_t head_dim) {
  std::vector<float> out(x.size() / head_dim * dim);
  for (size_t row = 0; row < x.size() / head_dim; ++row) {
    const float* map = maps.data() + row % heads / heads_per_map * dim * head_dim;
    for (size_t i = 0; i < dim; ++i) {
      double sum = 0;
      for (size_t j = 0; j < head_dim; ++j) sum += double{map[i * head_dim + j]} * x[row * head_dim + j];
      out[row * dim + i] = static_cast<float>(sum);
    }
  }
  return out;
}

TEST(NativeProjection, MapsEachHead) {
  const ModelShape model = wide_model();
  for (const bool map_per_head : {false, true}) {
    for (const std::string_view family : {"reference", "auto"}) {
      Bench bench(family);
      IndexerConfig config = IndexerConfig::native_for(model);
      config.map_per_head = map_per_head;
      IndexerLayerWeights layer;
      const size_t maps = map_per_head ? 6 : 2;
      layer.q = testing::random_floats(maps * 32 * 64, 1, 0.125f);
      layer.k = testing::random_floats(2 * 32 * 64, 2, 0.125f);
      const Indexer indexer(config, {&layer, 1}, model, bench.kernels, bench.threads);
      for (const size_t tokens : {1, 4, 5, 64, 131}) {
        const auto q = testing::random_floats(tokens * 6 * 64, 3);
        const auto k = testing::random_floats(tokens * 2 * 64, 4);
        const LayerInputs inputs{nullptr, q.data(), k.data(), nullptr, tokens};
        std::vector<float> queries(tokens * 6 * 32);
        std::vector<float> keys(tokens * 2 * 32);
        indexer.project_queries(queries.data(), nullptr, 0, inputs, bench.context);
        indexer.project_keys(keys.data(), 0, inputs, bench.context);
        expect_near(queries, map_heads(layer.q, q, 6, 6 / maps, 32, 64), 2e-5f);
        expect_near(keys, map_heads(layer.k, k, 2, 1, 32, 64), 2e-5f);
      }
    }
  }
}

TEST(Indexer, RefusesWeightsOfTheWrongSize) {
  Bench bench;
  const ModelShape model = wide_model();
  IndexerLayerWeights layer{.q = std::vector<float>(7),
                            .k = {},
                            .head_weight = {},
                            .q_bias = {},
                            .k_bias = {},
                            .q_norm = {},
                            .k_norm = {}};
  const auto make = [&] {
    Indexer(IndexerConfig::native_for(model), {&layer, 1}, model, bench.kernels, bench.threads);
  };
  EXPECT_EQ(testing::error_of(make).first, ErrorKind::mismatch);
}

}  // namespace
}  // namespace keysieve
