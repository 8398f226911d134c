#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "indexer/heavy_hitters.h"
#include "indexer/snap_kv.h"

// The rules by which baselines keep rows, over attention that the test makes up.

namespace keysieve {
namespace {

constexpr size_t kGroups = 2;

// Every query gives position p of group g the score 1 / (1 + p) + g; two votes give twice that.
class MadeUpAttention final : public KeySelector {
 public:
  size_t groups() const override { return kGroups; }
  size_t budget(size_t) const override { return 8; }
  bool select(const LayerQuery&, KernelContext&, SelectionBuffer&) override { return false; }
  void scores(float* scores, const LayerQuery& query, size_t voters, KernelContext&) override {
    for (size_t group = 0; group < kGroups; ++group) {
      for (size_t s = 0; s < query.slots(); ++s) {
        const size_t position =
            query.slot_positions == nullptr
                ? s
                : static_cast<size_t>(query.slot_positions[group * query.kv.capacity + s]);
        scores[group * query.slots() + s] = static_cast<float>(voters) * of(group, position);
      }
    }
  }
  static float of(size_t group, size_t position) {
    return 1.0f / static_cast<float>(1 + position) + static_cast<float>(group);
  }
};

class CacheRules : public ::testing::Test {
 protected:
  // Queries at positions first .. first + tokens - 1 over slots in order of position.
  LayerQuery query(size_t first, size_t tokens) {
    positions_.resize(tokens);
    for (size_t t = 0; t < tokens; ++t) positions_[t] = static_cast<int32_t>(first + t);
    LayerQuery query{};
    query.first_visible = first;
    query.inputs.positions = positions_.data();
    query.inputs.tokens = tokens;
    return query;
  }
  std::vector<float> scores(KeySelector& rule, const LayerQuery& of, size_t voters) {
    std::vector<float> scores(kGroups * of.slots());
    rule.scores(scores.data(), of, voters, context_);
    return scores;
  }

  std::shared_ptr<const Kernels> kernels_ = make_kernels("reference");
  Threads threads_{1};
  KernelScratch scratch_{threads_};
  KernelContext context_{*kernels_, threads_, scratch_};
  std::vector<int32_t> positions_;
  std::shared_ptr<MadeUpAttention> attention_ = std::make_shared<MadeUpAttention>();
};

TEST_F(CacheRules, SnapKvAveragesTheWindowsVotesOverNeighbours) {
  SnapKvSelector rule(attention_);
  SelectionBuffer unused;
  EXPECT_FALSE(rule.select(query(0, 20), context_, unused));
  const std::vector<float> found = scores(rule, query(10, 10), 3);
  for (size_t group = 0; group < kGroups; ++group) {
    for (size_t s = 0; s < 20; ++s) {
      float sum = 0;
      float count = 0;
      for (size_t p = s < 3 ? 0 : s - 3; p <= std::min<size_t>(s + 3, 19); ++p) {
        sum += 3 * MadeUpAttention::of(group, p);
        ++count;
      }
      EXPECT_NEAR(found[group * 20 + s], sum / count, 1e-6) << group << " " << s;
    }
  }
  // A step of decode is weighed by its own attention alone.
  const std::vector<float> step = scores(rule, query(19, 1), 1);
  for (size_t s = 0; s < 20; ++s) EXPECT_EQ(step[s], MadeUpAttention::of(0, s));
}

TEST_F(CacheRules, HeavyHittersAddUpWhatEveryQueryGave) {
  HeavyHitterSelector rule(attention_);
  SelectionBuffer unused;
  EXPECT_FALSE(rule.select(query(0, 6), context_, unused));
  EXPECT_FALSE(rule.select(query(6, 4), context_, unused));
  std::vector<float> found = scores(rule, query(6, 4), 1);  // the chunk has been counted
  for (size_t s = 0; s < 10; ++s) {
    const float votes = s < 6 ? 10.0f : 4.0f;
    EXPECT_FLOAT_EQ(found[s], votes * MadeUpAttention::of(0, s));
    EXPECT_FLOAT_EQ(found[10 + s], votes * MadeUpAttention::of(1, s));
  }
  // After a cut slots hold other positions, each group its own; a step of decode counts itself.
  const std::vector<int32_t> kept = {0, 7, 10, 9, 1, 10};  // [groups, 3]
  LayerQuery step = query(2, 1);
  positions_[0] = 10;
  step.kv.capacity = 3;
  step.slot_positions = kept.data();
  found = scores(rule, step, 1);
  EXPECT_FLOAT_EQ(found[0], 11 * MadeUpAttention::of(0, 0));
  EXPECT_FLOAT_EQ(found[1], 5 * MadeUpAttention::of(0, 7));
  EXPECT_FLOAT_EQ(found[2], 1 * MadeUpAttention::of(0, 10));
  EXPECT_FLOAT_EQ(found[3], 5 * MadeUpAttention::of(1, 9));
  // A new sequence begins at 0.
  rule.select(query(0, 2), context_, unused);
  found = scores(rule, query(0, 2), 1);
  EXPECT_FLOAT_EQ(found[0], 2 * MadeUpAttention::of(0, 0));
}

}  // namespace
}  // namespace keysieve
