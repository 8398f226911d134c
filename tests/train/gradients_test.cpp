#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/split_mix.h"
#include "student_case.h"
#include "train/student.h"

namespace keysieve {
namespace {

std::vector<float> random_values(size_t count, uint64_t seed, double spread) {
  SplitMix random(seed);
  std::vector<float> values(count);
  // The sum of three uniforms: close enough to a normal of standard deviation `spread`.
  for (float& value : values)
    value = static_cast<float>(spread * 2 * (random.unit() + random.unit() + random.unit() - 1.5));
  return values;
}

// One layer's numbers for 80 tokens: 4 heads of 8, 2 KV heads, 24 wide.
class Gradients : public testing::StudentCase {
 protected:
  Gradients() : StudentCase(24, 4) {
    loss_.budget = 24;
    queries_ = sample_queries(kTokens, 37, loss_.budget, {}, 3);  // more than a tile
  }

  IndexerLayerWeights native_start(const IndexerConfig& config) const {
    IndexerLayerWeights start;
    const size_t maps = config.map_per_head ? config.heads : config.key_heads;
    start.q = random_values(maps * config.dim * config.head_dim, 11, 0.3);
    start.k = random_values(config.key_heads * config.dim * config.head_dim, 12, 0.4);
    return start;
  }
  IndexerLayerWeights lightning_start(const IndexerConfig& config, bool bias, bool norm) const {
    IndexerLayerWeights start;
    const size_t width = config.heads * config.dim;
    start.q = random_values(width * config.hidden, 21, 0.2);
    start.k = random_values(config.dim * config.hidden, 22, 0.2);
    start.head_weight = random_values(config.heads * config.hidden, 23, 0.5);
    if (bias) {
      start.q_bias = random_values(width, 24, 0.2);
      start.k_bias = random_values(config.dim, 25, 0.2);
    }
    if (norm) {
      start.q_norm = random_values(width, 26, 0.2);
      for (float& value : start.q_norm) value += 1;
      start.k_norm = random_values(config.dim, 27, 0.2);
      for (float& value : start.k_norm) value += 1;
    }
    return start;
  }

  LossMeasures learn(LayerStudent& student, float weight, int threads = 1) {
    const auto kernels = make_kernels("reference");
    const Threads pool(threads);
    KernelScratch scratch(pool);
    KernelContext context{*kernels, pool, scratch};
    const LayerView view{0, kTokens, hidden_.data(), q_.data(), k_.data()};
    const Teacher teacher(view, shape_, loss_.sharpness);
    return student.learn(view, teacher, queries_, loss_, weight, context);
  }

  // Every value of every tensor against a central difference. Where a selection or a ReLU changes between the
  // two sides the difference means nothing: `kinks` is the share of values that may disagree.
  void expect_right(LayerStudent& student, size_t tensors, double kinks, float relative_step = 4e-3f) {
    ASSERT_EQ(student.tensors().size(), tensors);
    learn(student, 1.0f);
    for (TrainedTensor& tensor : student.tensors()) {
      SCOPED_TRACE(tensor.name);
      double largest = 0;
      for (const float g : tensor.gradient) largest = std::max(largest, std::fabs(static_cast<double>(g)));
      EXPECT_GT(largest, 1e-3);
      size_t wrong = 0;
      double worst = 0;
      for (size_t i = 0; i < tensor.value.size(); ++i) {
        const float before = tensor.value[i];
        const float step = relative_step * tensor.unit;
        tensor.value[i] = before + step;
        const double above = learn(student, 0.0f).loss;
        const float high = tensor.value[i];
        tensor.value[i] = before - step;
        const double below = learn(student, 0.0f).loss;
        const double slope =
            (above - below) / (static_cast<double>(high) - static_cast<double>(tensor.value[i]));
        tensor.value[i] = before;
        const double off = std::fabs(slope - static_cast<double>(tensor.gradient[i])) / largest;
        wrong += off > 0.01 ? 1 : 0;
        worst = std::max(worst, off);
      }
      EXPECT_LE(static_cast<double>(wrong), kinks * static_cast<double>(tensor.value.size())) << worst;
    }
  }

  static constexpr size_t kTokens = 80;
  std::vector<float> hidden_ = random_values(kTokens * 24, 1, 1.0);
  std::vector<float> q_ = random_values(kTokens * 4 * 8, 2, 1.5);
  std::vector<float> k_ = random_values(kTokens * 2 * 8, 3, 1.5);
  std::vector<uint32_t> queries_;
};

TEST_F(Gradients, NativeOneMapAGroup) {
  const IndexerConfig config = native(SelectionScope::per_group, false);
  const auto student = make_student(config, shape_, native_start(config), ScoreKeys::exact);
  expect_right(*student, 2, 0);
}

TEST_F(Gradients, NativeOneMapAHeadSharedSelection) {
  const IndexerConfig config = native(SelectionScope::shared, true);
  const auto student = make_student(config, shape_, native_start(config), ScoreKeys::exact);
  expect_right(*student, 2, 0);
}

TEST_F(Gradients, NativeHinge) {
  loss_.cut = 2.0f;
  const IndexerConfig config = native(SelectionScope::per_group, false);
  const auto student = make_student(config, shape_, native_start(config), ScoreKeys::exact);
  const LossMeasures measures = learn(*student, 0.0f);
  EXPECT_GT(measures.cut, 1.0);
  EXPECT_LT(measures.found, measures.decisive);
  expect_right(*student, 2, 0.1, 1e-3f);
}

TEST_F(Gradients, Lightning) {
  const IndexerConfig config = lightning();
  const auto student = make_student(config, shape_, lightning_start(config, false, false), ScoreKeys::exact);
  expect_right(*student, 3, 0.02);
}

TEST_F(Gradients, LightningWithBiasesAndNorms) {
  const IndexerConfig config = lightning();
  const auto student = make_student(config, shape_, lightning_start(config, true, true), ScoreKeys::exact);
  expect_right(*student, 7, 0.03);
}

TEST_F(Gradients, ThreadsChangeNoBit) {
  const IndexerConfig config = native(SelectionScope::per_group, false);
  const auto one = make_student(config, shape_, native_start(config), ScoreKeys::as_stored);
  const auto two = make_student(config, shape_, native_start(config), ScoreKeys::as_stored);
  EXPECT_EQ(learn(*one, 1.0f, 1).loss, learn(*two, 1.0f, 2).loss);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(one->tensors()[i].gradient, two->tensors()[i].gradient);
}

TEST_F(Gradients, CentredKeysScoreTheSameAndTheBiasFollowsTheMap) {
  IndexerConfig config = native(SelectionScope::per_group, false);
  IndexerLayerWeights start = native_start(config);
  const auto plain = make_student(config, shape_, start, ScoreKeys::exact);
  config.has_bias = true;
  start.k_bias = random_values(config.key_heads * config.dim, 13, 1.0);
  const auto centred = make_student(config, shape_, start, ScoreKeys::exact);
  for (size_t i = 0; i < start.k_bias.size(); ++i)
    EXPECT_NEAR(centred->weights().k_bias[i], start.k_bias[i], 1e-5);
  const LossMeasures one = learn(*plain, 1.0f);
  const LossMeasures other = learn(*centred, 1.0f);
  EXPECT_NEAR(one.loss, other.loss, 1e-4 * one.loss);
  for (size_t i = 0; i < plain->tensors()[1].gradient.size(); ++i)
    EXPECT_NEAR(plain->tensors()[1].gradient[i], centred->tensors()[1].gradient[i], 1e-3);
  for (int i = 0; i < 200; ++i) learn(*centred, 1.0f);  // the running mean arrives at the keys' own
  float mean = 0;
  for (size_t t = 0; t < kTokens; ++t) mean += k_[t * 16] / static_cast<float>(kTokens);
  EXPECT_NEAR(centred->tensors()[2].value[0], mean, 1e-4);
  adam_step(centred->tensors(), 0, 0.1, {});
  EXPECT_NEAR(centred->tensors()[2].value[0], mean, 1e-4);
}

TEST_F(Gradients, TheTeacherItselfLosesNothing) {
  IndexerConfig config = native(SelectionScope::per_group, false);
  config.dim = shape_.head_dim;
  IndexerLayerWeights exact;
  for (size_t g = 0; g < shape_.kv_heads; ++g) {
    for (size_t i = 0; i < shape_.head_dim; ++i) {
      for (size_t j = 0; j < shape_.head_dim; ++j) {
        exact.q.push_back(i == j ? 1.0f / std::sqrt(8.0f) : 0.0f);
        exact.k.push_back(i == j ? 1.0f : 0.0f);
      }
    }
  }
  const auto student = make_student(config, shape_, exact, ScoreKeys::exact);
  const LossMeasures measures = learn(*student, 1.0f);
  EXPECT_EQ(measures.rows, static_cast<double>(queries_.size() * 2));
  EXPECT_NEAR(measures.divergence, 0, 1e-3);
  EXPECT_NEAR(measures.head_divergence, 0, 1e-3);
  EXPECT_NEAR(measures.captured, measures.oracle, 1e-3);
  EXPECT_EQ(measures.found, measures.decisive);
  EXPECT_GT(measures.decisive, 10);

  // A teacher of twice the sharpness is another, and its own maps are twice as large.
  loss_.sharpness = 2;
  EXPECT_GT(learn(*student, 1.0f).divergence, 0.01);
  for (float& value : exact.q) value *= 2;
  const auto sharp = make_student(config, shape_, exact, ScoreKeys::exact);
  EXPECT_NEAR(learn(*sharp, 1.0f).divergence, 0, 1e-3);
}

TEST(SampleQueries, AreSpreadDistinctAndLate) {
  const std::vector<uint32_t> marked{10, 700, 701, 702, 900};
  const std::vector<uint32_t> queries = sample_queries(1000, 64, 256, marked, 9);
  EXPECT_TRUE(std::is_sorted(queries.begin(), queries.end()));
  EXPECT_EQ(std::adjacent_find(queries.begin(), queries.end()), queries.end());
  EXPECT_GE(queries.front(), 256u);
  EXPECT_GE(queries.size(), 60u);
  for (const uint32_t wanted : {700u, 701u, 702u, 900u})
    EXPECT_TRUE(std::binary_search(queries.begin(), queries.end(), wanted));
  EXPECT_EQ(queries, sample_queries(1000, 64, 256, marked, 9));
  EXPECT_NE(queries, sample_queries(1000, 64, 256, marked, 10));
  EXPECT_EQ(sample_queries(10, 64, 256, {}, 1).size(), 5u);
}

TEST(Optimizer, WarmsUpAndCoolsDown) {
  EXPECT_NEAR(scheduled_rate(0, 100, 1.0), 0.2, 1e-12);
  EXPECT_NEAR(scheduled_rate(4, 100, 1.0), 1.0, 1e-12);
  EXPECT_NEAR(scheduled_rate(5, 100, 1.0), 1.0, 1e-12);
  EXPECT_GT(scheduled_rate(50, 100, 1.0), scheduled_rate(51, 100, 1.0));
  EXPECT_NEAR(scheduled_rate(99, 100, 1.0), 1e-6, 1e-3);
  EXPECT_GE(scheduled_rate(99, 100, 1.0), 1e-6);
}

TEST(Optimizer, StepsInUnitsClipsAndIgnoresWhatIsNotFinite) {
  std::vector<TrainedTensor> tensors;
  tensors.emplace_back("q", std::vector<float>{3, -4, 3, 4});
  tensors.emplace_back("q_bias", std::vector<float>{0, 0});
  EXPECT_FLOAT_EQ(tensors[0].unit, std::sqrt(12.5f));
  EXPECT_FLOAT_EQ(tensors[1].unit, 0.1f);
  tensors[0].gradient = {1, 0, -1, 0};
  AdamOptions options;
  options.weight_decay = 0;
  adam_step(tensors, 0, 0.01, options);
  EXPECT_NEAR(tensors[0].value[0], 3 - 0.01 * std::sqrt(12.5), 1e-4);
  EXPECT_FLOAT_EQ(tensors[0].value[1], -4);
  EXPECT_NEAR(tensors[0].mean[0], 0.1 / std::sqrt(2.0), 1e-5);  // clipped to a norm of 1
  EXPECT_EQ(tensors[0].gradient, std::vector<float>(4, 0.0f));
  const std::vector<float> before = tensors[0].value;
  tensors[0].gradient[2] = NAN;
  adam_step(tensors, 1, 0.01, options);
  EXPECT_EQ(tensors[0].value, before);
  EXPECT_EQ(tensors[0].gradient, std::vector<float>(4, 0.0f));
}

}  // namespace
}  // namespace keysieve
