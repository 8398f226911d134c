#include "eval/retrieval_layers.h"

#include <gmock/gmock.h>

#include <atomic>
#include <cmath>

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
    ASSERT_EQ(row.each_kl.size(), 2u);
    EXPECT_EQ(row.kl, (row.each_kl[0] + row.each_kl[1]) / 2);
    EXPECT_EQ(row.kl > 0, row.kind != Kind::dense);
    const double first = row.each[0] - rows->at(1).each[0], second = row.each[1] - rows->at(1).each[1];
    EXPECT_NEAR(row.over_none, (first + second) / 2, 1e-12);
    EXPECT_NEAR(row.over_none_error, std::abs(first - second) / 2,
                1e-12);  // of two: their deviation / sqrt(2)
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

TEST_F(RetrievalLayers, GoesOnFromWhatIsKnown) {
  const testing::TempFolder folder;
  const auto file = folder.path() / "retrieval.part";
  const Json question = {{"asked", "this"}};
  const auto whole = run_retrieval_layers(setting(96), options());
  ASSERT_TRUE(whole);
  // Stopped in the second text, after its third row.
  std::atomic<bool> stop = false;
  RetrievalLayersOptions wanted = options();
  PartialResults partial(file, question);
  wanted.partial = &partial;
  wanted.cancel = &stop;
  wanted.on_progress = [&](size_t done, size_t) { stop = done == 8; };
  EXPECT_FALSE(run_retrieval_layers(setting(96), wanted));
  PartialResults found(file, question);
  EXPECT_EQ(found.size(), 8u);
  // What is known is taken, not asked again.
  Json changed = *found.find("trial 0 1");
  changed["code_nll"] = 77.0;
  found.put("trial 0 1", changed);
  wanted.partial = &found;
  wanted.cancel = nullptr;
  wanted.on_progress = {};
  const auto rest = run_retrieval_layers(setting(96), wanted);
  ASSERT_TRUE(rest);
  EXPECT_EQ(found.size(), 10u);
  for (size_t r = 0; r < whole->size(); ++r) {
    EXPECT_EQ(rest->at(r).each_passed, whole->at(r).each_passed) << r;
    EXPECT_EQ(rest->at(r).each_kl, whole->at(r).each_kl) << r;
    EXPECT_EQ(rest->at(r).each[1], whole->at(r).each[1]) << r;
    EXPECT_EQ(rest->at(r).each[0], r == 4 ? 77.0 : whole->at(r).each[0]) << r;
  }
  found.put("trial 1 all", {{"passed", true}, {"kl", 0.5}});
  expect_error(ErrorKind::format, {"trial 1 all", "code_nll"},
               [&] { (void)run_retrieval_layers(setting(96), wanted); });
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
