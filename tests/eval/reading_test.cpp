#include "eval/reading.h"

#include <algorithm>

#include "fixture.h"

namespace keysieve {
namespace {

using testing::expect_error;
using testing::prose;

class ReadingTest : public testing::EvalTest {
 protected:
  Reading read(AttentionMode mode, size_t budget) {
    return run_reading(EvalSetting(model_, sparse(budget)), bytes(prose(200)), {.mode = mode, .queries = 5})
        .value();
  }
};

TEST_F(ReadingTest, DenseReadsEverything) {
  for (const LayerReading& layer : read(AttentionMode::dense, 48).layers) {
    EXPECT_NEAR(layer.captured, 1.0, 1e-6);
    for (size_t i = 0; i < layer.reads.size(); ++i) {
      EXPECT_EQ(layer.reads[i].size(), 196 + i);
      EXPECT_EQ(layer.reads[i].find('0'), std::string::npos);
    }
  }
}

// Each mode's share stands where its rule says: recent reads exactly what `recent` weighs, the oracle all but
// the best (it must also keep sinks and recent), and nothing more than the best.
TEST_F(ReadingTest, SharesAgreeWithTheRules) {
  for (const LayerReading& layer : read(AttentionMode::recent, 48).layers) {
    EXPECT_NEAR(layer.captured, layer.recent, 1e-9);
    EXPECT_LT(layer.captured, layer.best);
    for (const std::string& digits : layer.reads)
      EXPECT_EQ(digits.size() - static_cast<size_t>(std::ranges::count(digits, '0')), 48u);
  }
  double chosen = 0;
  for (const LayerReading& layer : read(AttentionMode::oracle, 48).layers) {
    EXPECT_LE(layer.captured, layer.best + 1e-9);
    chosen += layer.captured - layer.recent;
  }
  EXPECT_GT(chosen, 0);
}

TEST_F(ReadingTest, ACacheWithABudgetReadsWhatItKept) {
  const Reading reading = read(AttentionMode::streaming, 48);
  EXPECT_EQ(reading.queries, (std::vector<size_t>{195, 196, 197, 198, 199}));
  for (const LayerReading& layer : reading.layers) {
    ASSERT_EQ(layer.reads.size(), 5u);
    EXPECT_GT(layer.captured, 0);
    EXPECT_LT(layer.captured, 1);
  }
}

TEST_F(ReadingTest, RefusesMoreQueriesThanTokens) {
  const EvalSetting setting(model_, sparse(48));
  expect_error(ErrorKind::usage, {"--queries", "9 of 9"},
               [&] { run_reading(setting, bytes(prose(9)), {.queries = 9}); });
}

}  // namespace
}  // namespace keysieve
