#include "train/layer_budgets.h"

#include <gmock/gmock.h>

#include <numeric>

#include "support/files.h"
#include "support/tiny_model.h"
#include "train/calibrate.h"

namespace keysieve {
namespace {

using ::testing::ElementsAre;
using testing::expect_error;

TEST(SpreadBudget, EachStepGoesWhereItCatchesMost) {
  BudgetCurves curves;
  curves.budgets = {64, 128, 192, 384};
  curves.captured = {{0.90, 0.95, 0.96, 0.97},   // sharp: little to win
                     {0.10, 0.30, 0.50, 0.95},   // diffuse: every position counts
                     {0.50, 0.50, 0.90, 0.91}};  // flat at first
  EXPECT_THAT(spread_budget(curves, 3 * 64, {}), ElementsAre(64, 64, 64));
  EXPECT_THAT(spread_budget(curves, 3 * 64 + 64, {}), ElementsAre(64, 128, 64));
  // 0.40 for 128 positions beats 0.20 for 64, and the same slope goes to the first layer.
  EXPECT_THAT(spread_budget(curves, 3 * 64 + 128, {}), ElementsAre(64, 192, 64));
  EXPECT_THAT(spread_budget(curves, 3 * 64 + 256, {}), ElementsAre(64, 192, 192));
  EXPECT_THAT(spread_budget(curves, 3 * 64 + 2 * 320, {}), ElementsAre(192, 384, 192));
  EXPECT_THAT(spread_budget(curves, 100000, {}), ElementsAre(384, 384, 384));
  const size_t dense[] = {1};
  EXPECT_THAT(spread_budget(curves, 2 * 64 + 128, dense), ElementsAre(64, 0, 192));
  expect_error(ErrorKind::usage, {"191", "at least 192"}, [&] { (void)spread_budget(curves, 191, {}); });
}

TEST(LayerBudgets, CalibrationSpreadsATotalAndTheCurvesRise) {
  const testing::TempFolder folder;
  const auto model = Model::load(testing::write_tiny_model(folder.path() / "tiny"),
                                 {.kernels = "auto", .threads = 1, .context = 512});
  std::vector<std::vector<int32_t>> windows(2);
  for (size_t w = 0; w < 2; ++w) {
    for (size_t i = 0; i < 500; ++i)
      windows[w].push_back(static_cast<int32_t>((i * i * 7 + i * (31 + w)) % 250));
  }
  CalibrationOptions options;
  options.rank = 4;
  options.recent = 8;
  options.budget_total = testing::TinyModel::kLayers * 128;
  const auto made = calibrate(model, windows, options);
  ASSERT_TRUE(made);
  const std::vector<size_t>& budgets = made->config.budgets;
  ASSERT_EQ(budgets.size(), testing::TinyModel::kLayers);
  const size_t sum = std::accumulate(budgets.begin(), budgets.end(), size_t{0});
  EXPECT_LE(sum, options.budget_total);
  EXPECT_GT(sum, options.budget_total - 192);
  EXPECT_TRUE(made->config.refine_layers.empty());
  EXPECT_EQ(made->config.budget, sum / budgets.size());
  EXPECT_GT(made->captured, 0.3);
  EXPECT_LT(made->captured, 1.0);

  const auto curves = captured_curves(model, made->config, made->layers, windows, nullptr);
  ASSERT_TRUE(curves);
  EXPECT_THAT(curves->budgets, ElementsAre(64, 128, 192));
  for (const std::vector<double>& layer : curves->captured) {
    EXPECT_TRUE(std::is_sorted(layer.begin(), layer.end()));
    EXPECT_LT(layer.front(), layer.back());
  }

  options.dense_layers = {0};
  const auto partly = calibrate(model, windows, options);
  EXPECT_EQ(partly->config.budgets[0], 0u);
  EXPECT_GT(partly->config.budgets[1], 0u);
  options.refine_layers = {1, 99};
  expect_error(ErrorKind::usage, {"refine layers", "99"}, [&] { (void)calibrate(model, windows, options); });
  options.refine_layers = {1};
  options.dense_layers = {99};
  expect_error(ErrorKind::usage, {"dense layers", "99"}, [&] { (void)calibrate(model, windows, options); });
  options.dense_layers.resize(testing::TinyModel::kLayers);
  std::iota(options.dense_layers.begin(), options.dense_layers.end(), size_t{0});
  for (const size_t total : {size_t{0}, options.budget_total}) {
    options.budget_total = total;
    expect_error(ErrorKind::usage, {"dense layers", "all"},
                 [&] { (void)calibrate(model, windows, options); });
  }
  options.dense_layers.clear();
  options.budget_total = 64;
  expect_error(ErrorKind::usage, {"64"}, [&] { (void)calibrate(model, windows, options); });
  const std::atomic<bool> stop{true};
  EXPECT_FALSE(captured_curves(model, made->config, made->layers, windows, &stop));
}

}  // namespace
}  // namespace keysieve
