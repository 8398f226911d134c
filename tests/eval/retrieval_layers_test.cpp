#include "eval/retrieval_layers.h"

#include <gmock/gmock.h>

#include <atomic>

#include "eval/needle.h"
#include "fixture.h"

namespace keysieve {
namespace {

using ::testing::ElementsAre;
using testing::EvalTest;
using testing::expect_error;
using testing::prose;
using Kind = RetrievalRow::Kind;

class RetrievalLayers : public EvalTest {
 protected:
  EvalSetting setting(size_t refine, CacheKind cache = CacheKind::full) const {
    SessionOptions options = sparse(48);
    options.refine = refine;
    options.cache = cache;
    return {model_, options};
  }
  static RetrievalLayersOptions options() {
    return {.context = 300, .trials = 2, .haystacks = {prose(20000)}, .seed = 3};
  }
};

TEST_F(RetrievalLayers, ARowForEachLayerBesideDenseNoneAndAll) {
  const EvalSetting refined = setting(96);
  size_t last = 0;
  RetrievalLayersOptions wanted = options();
  wanted.on_progress = [&](size_t done, size_t total) {
    EXPECT_EQ(done, ++last);
    EXPECT_EQ(total, 10u);
  };
  const auto rows = run_retrieval_layers(refined, wanted);
  ASSERT_TRUE(rows);
  ASSERT_EQ(rows->size(), 5u);
  EXPECT_EQ(last, 10u);
  EXPECT_EQ(rows->at(0).kind, Kind::dense);
  EXPECT_EQ(rows->at(1).kind, Kind::none);
  EXPECT_EQ(rows->at(2).kind, Kind::all);
  EXPECT_THAT(rows->at(3).layers, ElementsAre(0));
  EXPECT_THAT(rows->at(4).layers, ElementsAre(1));
  for (const RetrievalRow& row : *rows) {
    ASSERT_EQ(row.each.size(), 2u);
    EXPECT_EQ(row.code_nll, (row.each[0] + row.each[1]) / 2);
  }
  for (const size_t other : {0, 2, 3, 4}) EXPECT_NE(rows->at(other).each, rows->at(1).each) << other;
  EXPECT_NE(rows->at(3).each, rows->at(4).each);
  // Both layers together are all this model has.
  wanted = options();
  wanted.sets = {{1}, {0, 1}};
  const auto sets = run_retrieval_layers(refined, wanted);
  ASSERT_TRUE(sets);
  ASSERT_EQ(sets->size(), 5u);
  EXPECT_EQ(sets->at(3).each, rows->at(4).each);
  EXPECT_EQ(sets->at(4).each, rows->at(2).each);
}

TEST_F(RetrievalLayers, AsksWhatNeedlesAreAskedWithTheSamePolicy) {
  const auto rows = run_retrieval_layers(setting(96), options());
  ASSERT_TRUE(rows);
  for (const auto [refine, row] : {std::pair(size_t{0}, 1u), std::pair(size_t{96}, 2u)}) {
    const auto needles = run_needle(setting(refine), {.contexts = {300},
                                                      .trials = 2,
                                                      .modes = {AttentionMode::sparse},
                                                      .haystacks = options().haystacks,
                                                      .seed = 3});
    ASSERT_TRUE(needles);
    for (size_t i = 0; i < 2; ++i)
      EXPECT_NEAR(rows->at(row).each[i], needles->trials[i].code_nll.value(), 1e-3) << refine;
    EXPECT_EQ(rows->at(row).passed, needles->rows[0].passed);
  }
}

TEST_F(RetrievalLayers, CanBeCancelledAndRefusesNonsense) {
  const std::atomic<bool> stop = true;
  RetrievalLayersOptions wanted = options();
  wanted.cancel = &stop;
  EXPECT_FALSE(run_retrieval_layers(setting(96), wanted));
  const auto refused = [&](const EvalSetting& asked, const RetrievalLayersOptions& with, ErrorKind kind,
                           const std::vector<std::string>& words) {
    expect_error(kind, words, [&] { (void)run_retrieval_layers(asked, with); });
  };
  refused(setting(48), options(), ErrorKind::usage, {"refine", "budget of 48"});
  refused(setting(96, CacheKind::tiered), options(), ErrorKind::usage, {"full cache"});
  refused(setting(96, CacheKind::fixed), options(), ErrorKind::usage, {"full cache"});
  refused(EvalSetting(model_, {}), options(), ErrorKind::usage, {"no indexer"});
  wanted = options();
  wanted.sets = {{0}, {2}};
  refused(setting(96), wanted, ErrorKind::usage, {"layer 2", "0 to 1"});
  wanted.sets = {{}};
  refused(setting(96), wanted, ErrorKind::usage, {"empty"});
  wanted = options();
  wanted.context = 600;
  refused(setting(96), wanted, ErrorKind::mismatch, {"600", "512"});
  wanted = options();
  wanted.trials = 0;
  refused(setting(96), wanted, ErrorKind::usage, {"0 trials"});
}

}  // namespace
}  // namespace keysieve
