#include "eval/statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "eval/needle_prompt.h"
#include "eval/scoring.h"
#include "support/files.h"

namespace keysieve {
namespace {

TEST(Wilson, AgreesWithTheFormulaWorkedOutElsewhere) {
  // scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
  struct Case {
    size_t passed, trials;
    double low, high;
  };
  for (const Case& c : {Case{0, 20, 0.0, 0.16113}, Case{15, 20, 0.53130, 0.88814}, Case{20, 20, 0.83887, 1.0},
                        Case{1, 2, 0.09453, 0.90547}, Case{7, 8, 0.52911, 0.97758}}) {
    const auto interval = wilson95(c.passed, c.trials);
    EXPECT_NEAR(interval[0], c.low, 2e-5) << c.passed << "/" << c.trials;
    EXPECT_NEAR(interval[1], c.high, 2e-5) << c.passed << "/" << c.trials;
  }
  EXPECT_EQ(wilson95(0, 0), (std::array<double, 2>{0.0, 1.0}));
}

TEST(Bootstrap, IsExactForConstantsAndTheSameEveryTime) {
  const std::vector<std::vector<double>> constant{{2, 2, 2}, {2}};
  EXPECT_EQ(bootstrap_mean95(constant), (std::array<double, 2>{2.0, 2.0}));
  const std::vector<std::vector<double>> mixed{{1, 2}, {3}, {4, 6, 8}};
  EXPECT_EQ(bootstrap_mean95(mixed, 7), bootstrap_mean95(mixed, 7));
}

TEST(Bootstrap, CoversTheMeanAtAboutTheStandardError) {
  SplitMix random(3);
  std::vector<double> values(4000);
  for (double& value : values) value = static_cast<double>(random.below(1000)) / 1000.0;
  const auto interval = bootstrap_mean95(blocks_of(values, 1));
  const double middle = mean(values);
  const double expected_half = 1.96 * std::sqrt(1.0 / 12.0 / 4000.0);
  EXPECT_NEAR(interval[0], middle - expected_half, 0.15 * expected_half);
  EXPECT_NEAR(interval[1], middle + expected_half, 0.15 * expected_half);
}

TEST(Bootstrap, BlocksWidenTheIntervalOfCorrelatedValues) {
  SplitMix random(5);
  std::vector<double> values;
  for (size_t block = 0; block < 40; ++block) {
    const auto level = static_cast<double>(random.below(100));
    values.insert(values.end(), 25, level);
  }
  const auto singly = bootstrap_mean95(blocks_of(values, 1));
  const auto in_blocks = bootstrap_mean95(blocks_of(values, 25));
  EXPECT_GT(in_blocks[1] - in_blocks[0], 3 * (singly[1] - singly[0]));  // sqrt(25) = 5 in theory
}

TEST(Bootstrap, RefusesNothingToDrawFrom) {
  testing::expect_error(ErrorKind::usage, {"bootstrap", "0 blocks"}, [] { bootstrap_mean95({}); });
  const std::vector<std::vector<double>> hollow{{1}, {}};
  testing::expect_error(ErrorKind::usage, {"empty block"}, [&] { bootstrap_mean95(hollow); });
}

TEST(Scoring, FollowsTheDefinitions) {
  const std::vector<float> p{0.0f, 1000.0f, 999.0f};
  const std::vector<float> q{0.0f, 1.0f, 1.0f};
  EXPECT_NEAR(negative_log_likelihood(p, 1), std::log(1 + std::exp(-1.0)), 1e-6);
  EXPECT_EQ(greedy_choice(p), 1);
  EXPECT_EQ(greedy_choice(q), 1);  // the first of equals
  EXPECT_EQ(kl_divergence(p, p), 0.0);
  const double a = 1 / (1 + std::exp(-1.0));
  const double log_q = 1 - std::log(1 + 2 * std::exp(1.0));
  EXPECT_NEAR(kl_divergence(p, q), a * std::log(a) + (1 - a) * std::log(1 - a) - log_q, 1e-6);
}

TEST(NamesCode, WantsTheDigitsAlone) {
  EXPECT_TRUE(names_code("The secret code is 7392.", "7392"));
  EXPECT_TRUE(names_code("17392, no: 7392", "7392"));
  EXPECT_TRUE(names_code("7392", "7392"));
  EXPECT_FALSE(names_code("The code is 73921.", "7392"));
  EXPECT_FALSE(names_code("The code is 17392.", "7392"));
  EXPECT_FALSE(names_code("", "7392"));
}

}  // namespace
}  // namespace keysieve
