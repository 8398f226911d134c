#include "train/lightning_maps.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "indexer/indexer.h"
#include "train/lightning_config.h"

namespace keysieve {
namespace {

// A layer whose q and k follow from a made-up hidden state by matrices and biases, as a Llama's or Qwen2's
// do.
class LightningMapsTest : public ::testing::Test {
 protected:
  static constexpr size_t kTokens = 700, kHidden = 24, kHeads = 4, kKvHeads = 2, kDim = 8;

  LightningMapsTest() {
    shape_ = {.layers = 1,
              .hidden = kHidden,
              .heads = kHeads,
              .kv_heads = kKvHeads,
              .head_dim = kDim,
              .rope_theta = 50,
              .rms_norm_eps = 1e-5f,
              .fingerprint = {}};
    for (size_t i = 0; i < kDim / 2; ++i)
      rope_.frequency.push_back(std::pow(50.0, -2.0 * static_cast<double>(i) / kDim));
    places_.resize(kTokens);
    std::iota(places_.begin(), places_.end(), 0);
    hidden_ = floats(kTokens * kHidden, 1, 0.5f);  // with a mean, as hidden states have
    q_map_ = floats(kHeads * kDim * kHidden, 2);
    k_map_ = floats(kKvHeads * kDim * kHidden, 3);
    q_bias_ = floats(kHeads * kDim, 4);
    k_bias_ = floats(kKvHeads * kDim, 5);
    config_ = lightning_config({.heads = kHeads, .dim = kDim + 1, .rope = kDim}, shape_, 64);
    config_.has_bias = true;
  }

  static std::vector<float> floats(size_t count, uint32_t seed, float mean = 0) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(mean, 1.0f);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    return values;
  }

  // The second KV head's keys become `scale` times the first's, each pair turned by its own angle.
  void second_head_follows(float scale) {
    const auto pair_of = [&](std::vector<float>& values, size_t columns) {
      for (size_t p = 0; p < kDim / 2; ++p) {
        const float c = scale * std::cos(static_cast<float>(p)), s = scale * std::sin(static_cast<float>(p));
        for (size_t j = 0; j < columns; ++j) {
          const float re = values[p * columns + j], im = values[(p + kDim / 2) * columns + j];
          values[(kDim + p) * columns + j] = c * re - s * im;
          values[(kDim + p + kDim / 2) * columns + j] = s * re + c * im;
        }
      }
    };
    pair_of(k_map_, kHidden);
    pair_of(k_bias_, 1);
  }

  RowMatrix projected(const std::vector<float>& map, const std::vector<float>& bias, size_t heads) {
    RowMatrix rows =
        view_of(hidden_.data(), kTokens, kHidden) * view_of(map.data(), heads * kDim, kHidden).transpose();
    rows.rowwise() += view_of(bias.data(), 1, heads * kDim).row(0);
    kernels_->rope(rows.data(), heads * kDim, places_.data(), kTokens, heads, kDim, rope_);
    return rows;
  }

  LightningMaps maps() {
    q_ = projected(q_map_, q_bias_, kHeads);
    k_ = projected(k_map_, k_bias_, kKvHeads);
    KernelContext context{*kernels_, threads_, scratch_};
    LightningMoments moments;
    add_window(moments, {0, kTokens, hidden_.data(), q_.data(), k_.data()}, shape_, rope_, 4, 16, context);
    far_ = moments.far;
    return lightning_maps(moments, config_, shape_, rope_, std::vector<WindowStart>{{0}}, kTokens);
  }

  // The largest difference between the indexer's products and logits of the model's heads, which it takes in
  // the order of how far they read, over the largest logit.
  double worst_product(const LightningMaps& maps) {
    const Indexer indexer(config_, {{maps.weights}}, shape_, kernels_, threads_);
    KernelContext context{*kernels_, threads_, scratch_};
    const LayerInputs inputs{hidden_.data(), q_.data(), k_.data(), places_.data(), kTokens};
    RowMatrix keys(kTokens, config_.dim), queries(kTokens, kHeads * config_.dim), weights(kTokens, kHeads);
    indexer.project_keys(keys.data(), 0, inputs, context);
    indexer.project_queries(queries.data(), weights.data(), 0, inputs, context);
    std::vector<size_t> order(kHeads);
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return far_[a] > far_[b]; });
    double worst = 0, largest = 0;
    for (size_t i = 0; i < kHeads; ++i) {
      const auto dim = static_cast<Eigen::Index>(config_.dim);
      const size_t g = order[i] * kKvHeads / kHeads;
      const RowMatrix found = queries.middleCols(static_cast<Eigen::Index>(i) * dim, dim) * keys.transpose();
      const RowMatrix wanted = q_.middleCols(static_cast<Eigen::Index>(order[i] * kDim), kDim) *
                               k_.middleCols(static_cast<Eigen::Index>(g * kDim), kDim).transpose() /
                               std::sqrt(8.0f);
      worst = std::max(worst, static_cast<double>((found - wanted).cwiseAbs().maxCoeff()));
      largest = std::max(largest, static_cast<double>(wanted.cwiseAbs().maxCoeff()));
    }
    return worst / largest;
  }

  std::shared_ptr<const Kernels> kernels_ = make_kernels("reference");
  Threads threads_{1};
  KernelScratch scratch_{threads_};
  ModelShape shape_;
  RopeTable rope_;
  IndexerConfig config_;
  std::vector<int32_t> places_;
  std::vector<float> hidden_, q_map_, k_map_, q_bias_, k_bias_;
  RowMatrix q_, k_;
  Eigen::VectorXd far_;
};

TEST_F(LightningMapsTest, OneKeyServesKvHeadsWhoseKeysFollowFromEachOther) {
  second_head_follows(0.6f);
  const LightningMaps made = maps();
  EXPECT_NEAR(made.kept_energy, 1.0, 1e-6);
  EXPECT_LT(worst_product(made), 1e-3);
}

TEST_F(LightningMapsTest, OfIndependentKeysItKeepsTheMoreAskedFor) {
  const LightningMaps made = maps();
  EXPECT_GT(made.kept_energy, 0.5);
  EXPECT_LT(made.kept_energy, 0.9);
  EXPECT_GT(worst_product(made), 0.05);
}

TEST_F(LightningMapsTest, ThresholdsAndGainChangeEveryScoreAlike) {
  second_head_follows(1.0f);
  const LightningMaps made = maps();
  const std::vector<float> thresholds{1, 2, 3, 4};
  const IndexerLayerWeights weights = with_heads(made, config_, thresholds, 2.0f);
  KernelContext context{*kernels_, threads_, scratch_};
  const LayerInputs inputs{hidden_.data(), nullptr, nullptr, places_.data(), kTokens};
  const auto project = [&](const IndexerLayerWeights& of) {
    const Indexer indexer(config_, {{of}}, shape_, kernels_, threads_);
    RowMatrix keys(kTokens, config_.dim), queries(kTokens, kHeads * config_.dim), heads(kTokens, kHeads);
    indexer.project_keys(keys.data(), 0, inputs, context);
    indexer.project_queries(queries.data(), heads.data(), 0, inputs, context);
    return std::pair<RowMatrix, RowMatrix>(
        queries.middleCols(static_cast<Eigen::Index>(config_.dim), static_cast<Eigen::Index>(config_.dim)) *
            keys.transpose(),
        heads);
  };
  const auto [plain, plain_weights] = project(made.weights);
  const auto [moved, moved_weights] = project(weights);
  EXPECT_LT((plain - moved - RowMatrix::Constant(kTokens, kTokens, 2.0f)).cwiseAbs().maxCoeff(), 1e-3f);
  EXPECT_LT((2 * plain_weights - moved_weights).cwiseAbs().maxCoeff(), 1e-4f);
  EXPECT_NEAR(plain_weights.mean(), 1.0f, 0.1f);  // a head counts once
}

TEST_F(LightningMapsTest, RefusesAnIndexerNoneOfWhosePairsTurnsAsTheModelsDo) {
  for (double& frequency : rope_.frequency) frequency *= 3.3;
  config_.rope_theta = 7;
  try {
    maps();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::mismatch);
    EXPECT_NE(std::string(error.what()).find("random weights"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace keysieve
