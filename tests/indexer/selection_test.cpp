#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "indexer/fixtures.h"
#include "indexer/selection_recorder.h"

namespace keysieve {
namespace {

using testing::Bench;
using testing::error_of;
using ::testing::HasSubstr;
using testing::narrow_model;
using testing::random_floats;
using testing::StoredKeys;

// Scores with many exact ties, from a table known to the test.
class TableSelector : public ScoringSelector {
 public:
  TableSelector(SelectionPolicy policy, size_t kv_heads) : ScoringSelector(std::move(policy), kv_heads) {}
  static float value(int32_t query, size_t group, size_t slot) {
    const uint32_t hash = (static_cast<uint32_t>(query) * 73u + static_cast<uint32_t>(group) * 31u +
                           static_cast<uint32_t>(slot) * 2654435761u) >>
                          13;
    // 0 as often as anything, with either sign: the two zeros are equal.
    return hash % 5 == 0 ? (hash % 2 ? -0.0f : 0.0f) : static_cast<float>(hash % 5) - 2.5f;
  }

 protected:
  void score(float* out, const LayerQuery& query, size_t index, size_t group, bool accumulate, KernelContext&,
             int) override {
    for (size_t s = 0; s < query.candidates(index); ++s)
      out[s] = (accumulate ? out[s] : 0.0f) + value(query.inputs.positions[index], group, s);
  }
};

std::vector<uint32_t> brute_force(const SelectionPolicy& policy, size_t budget, int32_t query, size_t group,
                                  size_t candidates) {
  std::vector<uint32_t> all(candidates);
  std::iota(all.begin(), all.end(), 0u);
  if (candidates <= budget) return all;
  const auto kept = [&](uint32_t s) { return s < policy.sinks || s + policy.recent >= candidates; };
  std::sort(all.begin(), all.end(), [&](uint32_t a, uint32_t b) {
    if (kept(a) != kept(b)) return kept(a);
    const float x = TableSelector::value(query, group, a);
    const float y = TableSelector::value(query, group, b);
    return x != y ? x > y : a > b;
  });
  all.resize(budget);
  std::sort(all.begin(), all.end());
  return all;
}

TEST(ScoringSelector, EqualsBruteForce) {
  const std::tuple<size_t, size_t, size_t> policies[] = {
      {1, 0, 0}, {7, 0, 0}, {16, 4, 8}, {12, 4, 8}, {40, 3, 0}};
  for (const std::string_view family : {"reference", "auto"}) {
    Bench bench(family);
    for (const auto& [budget, sinks, recent] : policies) {
      for (const size_t groups : {1, 3}) {
        const SelectionPolicy policy{
            budget, {}, sinks, recent, groups == 1 ? SelectionScope::shared : SelectionScope::per_group};
        TableSelector selector(policy, 3);
        ASSERT_EQ(selector.groups(), groups);
        SelectionBuffer buffer;
        for (const size_t first : {0, 5, 12, 60}) {
          const size_t tokens = 33;
          std::vector<int32_t> positions(tokens);
          std::iota(positions.begin(), positions.end(), static_cast<int32_t>(first));
          const LayerQuery query{
              0, {nullptr, nullptr, nullptr, positions.data(), tokens}, first, {}, {}, nullptr, nullptr};
          const bool sparse = selector.select(query, bench.context, buffer);
          ASSERT_EQ(sparse, first + tokens > budget);
          if (!sparse) continue;
          const SelectionView view = buffer.view();
          EXPECT_EQ(view.budget, budget);
          for (size_t i = 0; i < tokens; ++i) {
            for (size_t g = 0; g < groups; ++g) {
              const std::vector<uint32_t> found(view.row(i, g), view.row(i, g) + view.count(i, g));
              ASSERT_EQ(found, brute_force(policy, budget, positions[i], g, first + i + 1))
                  << "budget " << budget << " query " << positions[i] << " group " << g;
            }
          }
        }
      }
    }
  }
}

// A block's queries read sinks, the best of the middle by the sum of their scores, and the end up to
// themselves. The chunk begins and ends within a block.
TEST(ScoringSelector, NeighboursChooseTogether) {
  for (const size_t query_block : {2, 4, 7}) {
    const SelectionPolicy policy{.budget = 24,
                                 .budgets = {},
                                 .sinks = 3,
                                 .recent = 5,
                                 .scope = SelectionScope::per_group,
                                 .query_block = query_block};
    Bench bench("auto");
    TableSelector selector(policy, 2);
    const size_t first = 22, tokens = 41;
    std::vector<int32_t> positions(tokens);
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(first));
    const LayerQuery query{
        0, {nullptr, nullptr, nullptr, positions.data(), tokens}, first, {}, {}, nullptr, nullptr};
    SelectionBuffer buffer;
    ASSERT_TRUE(selector.select(query, bench.context, buffer));
    for (size_t begin = 0; begin < tokens;) {
      size_t end = begin + 1;
      // The first two queries have 23 and 24 candidates: all are read, whatever the block.
      while (begin >= 2 && end < tokens && (first + end) % query_block != 0) ++end;
      const size_t candidates = first + begin + 1;
      for (size_t g = 0; g < 2; ++g) {
        for (size_t i = begin; i < end; ++i) {
          std::vector<uint32_t> expected(first + i + 1);
          std::iota(expected.begin(), expected.end(), 0u);
          if (candidates > policy.budget) {
            std::vector<uint32_t> middle(candidates - policy.sinks - policy.recent);
            std::iota(middle.begin(), middle.end(), static_cast<uint32_t>(policy.sinks));
            const auto total = [&](uint32_t slot) {
              float sum = 0;
              for (size_t j = begin; j < end; ++j) sum += TableSelector::value(positions[j], g, slot);
              return sum;
            };
            std::sort(middle.begin(), middle.end(), [&](uint32_t a, uint32_t b) {
              return total(a) != total(b) ? total(a) > total(b) : a > b;
            });
            middle.resize(policy.budget - policy.sinks - policy.recent - (end - begin - 1));
            expected.erase(
                std::remove_if(expected.begin(), expected.end(),
                               [&](uint32_t slot) {
                                 return slot >= policy.sinks && slot + policy.recent < candidates &&
                                        std::find(middle.begin(), middle.end(), slot) == middle.end();
                               }),
                expected.end());
          }
          const auto found = buffer.slots(i, g);
          ASSERT_EQ(std::vector<uint32_t>(found.begin(), found.end()), expected)
              << "block of " << query_block << ", query " << positions[i] << ", group " << g;
        }
      }
      begin = end;
    }
  }
}

// The same scores, which threads may share out by slots.
class PartsSelector final : public TableSelector {
 public:
  explicit PartsSelector(const SelectionPolicy& policy) : TableSelector(policy, 1) {}
  std::atomic<int> parts = 0;

 protected:
  bool scores_in_parts() const override { return true; }
  void score_part(float* out, const LayerQuery& query, size_t index, size_t first, size_t count,
                  KernelContext&, int) override {
    for (size_t s = 0; s < count; ++s) out[first + s] = value(query.inputs.positions[index], 0, first + s);
    ++parts;
  }
};

TEST(ScoringSelector, OnlyOneQueryAloneIsScoredInParts) {
  const SelectionPolicy policy{.budget = 100, .budgets = {}, .sinks = 2, .recent = 6, .query_block = 4};
  Bench bench("auto");
  const size_t first = 2000;
  std::vector<int32_t> positions(4);
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(first));
  for (const size_t tokens : {1, 3, 4}) {  // each of them one block
    const LayerQuery query{
        0, {nullptr, nullptr, nullptr, positions.data(), tokens}, first, {}, {}, nullptr, nullptr};
    TableSelector whole(policy, 1);
    PartsSelector in_parts(policy);
    SelectionBuffer expected, found;
    ASSERT_TRUE(whole.select(query, bench.context, expected));
    ASSERT_TRUE(in_parts.select(query, bench.context, found));
    EXPECT_EQ(in_parts.parts > 0, tokens == 1);
    for (size_t i = 0; i < tokens; ++i) {
      const auto want = expected.slots(i, 0), got = found.slots(i, 0);
      ASSERT_EQ(std::vector<uint32_t>(got.begin(), got.end()),
                std::vector<uint32_t>(want.begin(), want.end()))
          << "query " << i << " of " << tokens;
    }
  }
}

// Scores that are shares of attention: a few slots carry most of it.
class ShareSelector final : public ScoringSelector {
 public:
  explicit ShareSelector(const SelectionPolicy& policy) : ScoringSelector(policy, 1) {}
  static float value(size_t slot) { return 1.0f / static_cast<float>(1 + (slot * 37) % 101); }

 protected:
  void score(float* out, const LayerQuery& query, size_t index, size_t, bool accumulate, KernelContext&,
             int) override {
    for (size_t s = 0; s < query.candidates(index); ++s) out[s] = (accumulate ? out[s] : 0.0f) + value(s);
  }
};

TEST(ScoringSelector, ReadsTheFewestSlotsThatCarryTheMass) {
  const size_t first = 150, tokens = 8;
  std::vector<int32_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(first));
  const LayerQuery query{
      0, {nullptr, nullptr, nullptr, positions.data(), tokens}, first, {}, {}, nullptr, nullptr};
  size_t read_before = 0;
  for (const double mass : {0.2, 0.5, 0.7, 0.9, 1.0}) {
    for (const size_t query_block : {1, 4}) {
      const SelectionPolicy policy{
          .budget = 100, .budgets = {}, .sinks = 2, .recent = 6, .query_block = query_block, .mass = mass};
      Bench bench;
      ShareSelector selector(policy);
      SelectionBuffer buffer;
      ASSERT_TRUE(selector.select(query, bench.context, buffer));
      for (size_t i = 0; i < tokens; ++i) {
        const auto slots = buffer.slots(i, 0);
        ASSERT_TRUE(std::is_sorted(slots.begin(), slots.end()));
        ASSERT_LE(slots.size(), 100u);
        const std::vector<uint32_t> read(slots.begin(), slots.end());
        for (const uint32_t always : {0u, 1u}) EXPECT_EQ(read[always], always);
        EXPECT_EQ(read.back(), first + i);
        double carried = 0, all = 0, least = 1;
        for (size_t s = 0; s <= first + i; ++s) all += ShareSelector::value(s);
        for (const uint32_t s : read) {
          carried += ShareSelector::value(s);
          if (s >= 2 && s + 10 < first + i) least = std::min<double>(least, ShareSelector::value(s));
        }
        if (query_block > 1 || mass == 1) continue;
        EXPECT_TRUE(carried >= mass * all - 1e-6 || read.size() == 100) << mass;
        if (read.size() > 8) EXPECT_LT(carried - least, mass * all) << mass;  // none too many
      }
      if (query_block == 1) {
        EXPECT_GT(buffer.slots(7, 0).size(), read_before);
        read_before = buffer.slots(7, 0).size();
      }
    }
  }
  EXPECT_EQ(read_before, 100u);
}

TEST(ScoringSelector, BudgetsDifferByLayer) {
  Bench bench;
  TableSelector selector({.budget = 8, .budgets = {0, 5}, .sinks = 1, .recent = 1}, 1);
  std::vector<int32_t> positions(20);
  std::iota(positions.begin(), positions.end(), 0);
  SelectionBuffer buffer;
  LayerQuery query{0, {nullptr, nullptr, nullptr, positions.data(), 20}, 0, {}, {}, nullptr, nullptr};
  EXPECT_FALSE(selector.select(query, bench.context, buffer));
  query.layer = 1;
  EXPECT_TRUE(selector.select(query, bench.context, buffer));
  EXPECT_EQ(buffer.slots(19, 0).size(), 5u);
  query.layer = 2;
  EXPECT_TRUE(selector.select(query, bench.context, buffer));
  EXPECT_EQ(buffer.slots(19, 0).size(), 8u);
}

TEST(ScoringSelector, VotesOfTheLastQueriesAddUp) {
  Bench bench;
  TableSelector selector({.budget = 8, .budgets = {}, .scope = SelectionScope::per_group}, 2);
  const std::vector<int32_t> positions{4, 5, 6};
  const LayerQuery query{0, {nullptr, nullptr, nullptr, positions.data(), 3}, 4, {}, {}, nullptr, nullptr};
  for (const size_t voters : {1, 2, 3, 9}) {
    std::vector<float> scores(2 * 7);
    selector.scores(scores.data(), query, voters, bench.context);
    for (size_t g = 0; g < 2; ++g) {
      for (size_t s = 0; s < 7; ++s) {
        float expected = 0;
        for (size_t i = 3 - std::min<size_t>(voters, 3); i < 3; ++i) {
          if (s <= 4 + i) expected += TableSelector::value(positions[i], g, s);
        }
        EXPECT_EQ(scores[g * 7 + s], expected);
      }
    }
  }
}

TEST(SelectionPolicy, RefusesWhatCannotBeKept) {
  EXPECT_EQ(error_of([] { SelectionPolicy{.budget = 0, .budgets = {}}.validate(); }).first, ErrorKind::usage);
  const auto [kind, message] =
      error_of([] { SelectionPolicy{.budget = 11, .budgets = {}, .sinks = 4, .recent = 8}.validate(); });
  EXPECT_EQ(kind, ErrorKind::usage);
  EXPECT_THAT(message, HasSubstr("11, expected at least sinks 4 + recent 8"));
  EXPECT_EQ(error_of([] {
              SelectionPolicy{.budget = 20, .budgets = {0, 11}, .sinks = 4, .recent = 8}.validate();
            }).first,
            ErrorKind::usage);
  EXPECT_EQ(error_of([] {
              SelectionPolicy{.budget = 20, .budgets = {}, .sinks = SIZE_MAX, .recent = 8}.validate();
            }).first,
            ErrorKind::usage);
  for (const double mass : {0.0, -1.0, 1.5, std::nan("")}) {
    EXPECT_EQ(
        error_of([mass] { SelectionPolicy{.budget = 12, .budgets = {}, .mass = mass}.validate(); }).first,
        ErrorKind::usage);
  }
  SelectionPolicy{.budget = 12, .budgets = {0}, .sinks = 4, .recent = 8}.validate();
}

// A native indexer on random q and k, its keys stored by head.
struct NativeRun {
  static constexpr size_t kHeads = 4, kKvHeads = 2, kHeadDim = 16, kDim = 8, kTokens = 70;
  Bench bench;
  ModelShape model{.layers = 1,
                   .hidden = 32,
                   .heads = kHeads,
                   .kv_heads = kKvHeads,
                   .head_dim = kHeadDim,
                   .rope_theta = 1e4,
                   .rms_norm_eps = 1e-6f,
                   .fingerprint = {}};
  std::vector<float> q = testing::random_floats(kTokens * kHeads * kHeadDim, 1);
  std::vector<float> k = testing::random_floats(kTokens * kKvHeads * kHeadDim, 2);
  std::vector<int32_t> positions;
  std::vector<testing::StoredKeys> stored;
  std::vector<IndexKeyView> views;
  std::vector<float> queries;  // [tokens, heads, dim]
  std::vector<float> keys;     // [tokens, kv_heads, dim]
  std::shared_ptr<const Indexer> indexer;

  explicit NativeRun(std::string_view family) : bench(family) {
    IndexerConfig config = IndexerConfig::native_for(model, kDim, 12);
    config.sinks = 2;
    config.recent = 3;
    config.key_choice = IndexKeyChoice::f32;
    IndexerLayerWeights layer;
    layer.q = testing::random_floats(kKvHeads * kDim * kHeadDim, 3, 0.3f);
    layer.k = testing::random_floats(kKvHeads * kDim * kHeadDim, 4, 0.3f);
    indexer =
        std::make_shared<const Indexer>(config, std::span(&layer, 1), model, bench.kernels, bench.threads);
    positions.resize(kTokens);
    std::iota(positions.begin(), positions.end(), 0);
    queries.resize(kTokens * kHeads * kDim);
    keys.resize(kTokens * kKvHeads * kDim);
    indexer->project_queries(queries.data(), nullptr, 0, inputs(), bench.context);
    indexer->project_keys(keys.data(), 0, inputs(), bench.context);
    for (size_t g = 0; g < kKvHeads; ++g) {
      stored.emplace_back(IndexKeyType::f32, kDim, kTokens);
      for (size_t t = 0; t < kTokens; ++t) stored[g].store(t, keys.data() + (t * kKvHeads + g) * kDim);
      views.push_back(stored[g].view());
    }
  }
  LayerInputs inputs() const { return {nullptr, q.data(), k.data(), positions.data(), kTokens}; }
  LayerQuery query() const { return {0, inputs(), 0, {}, views, nullptr, nullptr}; }

  // Softmax over the causal keys of each head, summed over the heads of the groups [first, last).
  std::vector<double> expected(size_t t, size_t first_group, size_t last_group) const {
    std::vector<double> total(t + 1, 0.0);
    const size_t per_group = kHeads / kKvHeads;
    for (size_t h = first_group * per_group; h < last_group * per_group; ++h) {
      std::vector<double> row(t + 1);
      double sum = 0;
      for (size_t s = 0; s <= t; ++s) {
        double dot = 0;
        for (size_t d = 0; d < kDim; ++d) {
          dot +=
              double{queries[(t * kHeads + h) * kDim + d]} * keys[(s * kKvHeads + h / per_group) * kDim + d];
        }
        row[s] = std::exp(dot);
        sum += row[s];
      }
      for (size_t s = 0; s <= t; ++s) total[s] += row[s] / sum;
    }
    return total;
  }
};

TEST(LearnedSelector, SumsSoftmaxesPerGroupAndShared) {
  for (const std::string_view family : {"reference", "auto"}) {
    NativeRun run(family);
    for (const SelectionScope scope : {SelectionScope::per_group, SelectionScope::shared}) {
      SelectionPolicy policy = SelectionPolicy::from(run.indexer->config());
      policy.scope = scope;
      LearnedSelector selector(run.indexer, policy);
      const size_t groups = scope == SelectionScope::shared ? 1 : 2;
      ASSERT_EQ(selector.groups(), groups);
      EXPECT_EQ(selector.key_shape().heads, 2u);
      std::vector<float> scores(groups * NativeRun::kTokens);
      selector.scores(scores.data(), run.query(), 1, run.bench.context);
      for (size_t g = 0; g < groups; ++g) {
        const auto expected =
            run.expected(NativeRun::kTokens - 1, groups == 1 ? 0 : g, groups == 1 ? 2 : g + 1);
        for (size_t s = 0; s < expected.size(); ++s) {
          // The kernels' exponential is within 7.5e-5 of the exact one, relative; its sum too.
          ASSERT_NEAR(scores[g * NativeRun::kTokens + s], expected[s], 2e-4 * expected[s] + 1e-6);
        }
      }
      SelectionBuffer buffer;
      ASSERT_TRUE(selector.select(run.query(), run.bench.context, buffer));
      for (size_t t = 12; t < NativeRun::kTokens; ++t) {
        for (size_t g = 0; g < groups; ++g) {
          const auto expected = run.expected(t, groups == 1 ? 0 : g, groups == 1 ? 2 : g + 1);
          const auto slots = buffer.slots(t, g);
          ASSERT_EQ(slots.size(), 12u);
          double worst_kept = 1e9;
          double best_dropped = -1e9;
          for (size_t s = 2; s + 3 <= t; ++s) {
            const bool kept = std::binary_search(slots.begin(), slots.end(), static_cast<uint32_t>(s));
            (kept ? worst_kept : best_dropped) =
                kept ? std::min(worst_kept, expected[s]) : std::max(best_dropped, expected[s]);
          }
          EXPECT_GE(worst_kept, best_dropped - 1e-6);
        }
      }
    }
  }
}

TEST(LearnedSelector, ChunksGiveTheSameSelections) {
  NativeRun run("auto");
  LearnedSelector selector(run.indexer, SelectionPolicy::from(run.indexer->config()));
  SelectionBuffer whole;
  SelectionBuffer part;
  ASSERT_TRUE(selector.select(run.query(), run.bench.context, whole));
  for (size_t first = 9; first < NativeRun::kTokens; first += 7) {
    LayerQuery query = run.query();
    query.first_visible = first;
    query.inputs.tokens = std::min<size_t>(7, NativeRun::kTokens - first);
    query.inputs.q += first * NativeRun::kHeads * NativeRun::kHeadDim;
    query.inputs.positions += first;
    ASSERT_TRUE(selector.select(query, run.bench.context, part));
    for (size_t i = 0; i < query.inputs.tokens; ++i) {
      for (size_t g = 0; g < 2; ++g) {
        const auto a = whole.slots(first + i, g);
        const auto b = part.slots(i, g);
        EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end()));
      }
    }
  }
}

TEST(RecentSelector, KeepsSinksAndTheWindow) {
  Bench bench;
  RecentSelector selector({.budget = 6, .budgets = {}, .sinks = 2, .recent = 1}, 1);
  std::vector<int32_t> positions(30);
  std::iota(positions.begin(), positions.end(), 0);
  SelectionBuffer buffer;
  ASSERT_TRUE(
      selector.select({0, {nullptr, nullptr, nullptr, positions.data(), 30}, 0, {}, {}, nullptr, nullptr},
                      bench.context, buffer));
  const auto last = buffer.slots(29, 0);
  EXPECT_THAT(std::vector<uint32_t>(last.begin(), last.end()), ::testing::ElementsAre(0, 1, 26, 27, 28, 29));
  EXPECT_EQ(selector.key_shape().heads, 0u);
}

TEST(RandomSelector, RepeatsForASeed) {
  Bench bench;
  std::vector<int32_t> positions(200);
  std::iota(positions.begin(), positions.end(), 0);
  const LayerQuery query{3, {nullptr, nullptr, nullptr, positions.data(), 200}, 0, {}, {}, nullptr, nullptr};
  const auto draw = [&](uint64_t seed) {
    RandomSelector selector({.budget = 20, .budgets = {}, .sinks = 2, .recent = 4}, 1, seed);
    SelectionBuffer buffer;
    EXPECT_TRUE(selector.select(query, bench.context, buffer));
    const auto slots = buffer.slots(199, 0);
    return std::vector<uint32_t>(slots.begin(), slots.end());
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
  EXPECT_EQ(draw(1).size(), 20u);
}

TEST(SelectionRecorder, RecordsDenseQueriesAndPositionsOfSlots) {
  SelectionRecorder recorder;
  const std::vector<int32_t> positions{10, 11};
  const std::vector<int32_t> slot_positions{3, 9, 10, 11};
  LayerQuery query{1,      {nullptr, nullptr, nullptr, positions.data(), 2}, 2, {}, {}, slot_positions.data(),
                   nullptr};
  query.kv.capacity = 4;
  recorder.record(query, nullptr);
  ASSERT_EQ(recorder.layers().size(), 2u);
  ASSERT_EQ(recorder.layers()[1].size(), 2u);
  EXPECT_EQ(recorder.layers()[1][0].query, 10);
  EXPECT_THAT(recorder.layers()[1][0].groups[0], ::testing::ElementsAre(3, 9, 10));
  EXPECT_THAT(recorder.layers()[1][1].groups[0], ::testing::ElementsAre(3, 9, 10, 11));
}

// One query of a shared set, as in decode: its slots are shared out over the threads, whatever their number.
TEST(LearnedSelector, ThreadsShareTheSlotsOfOneQuery) {
  constexpr size_t slots = 3001, heads = 3, dim = 20;
  const ModelShape model = narrow_model();
  constexpr size_t hidden_size = 8;
  IndexerConfig config;
  config.layers = 1;
  config.hidden = hidden_size;
  config.heads = heads;
  config.dim = dim;
  IndexerLayerWeights layer;
  layer.q = random_floats(heads * dim * hidden_size, 1);
  layer.k = random_floats(dim * hidden_size, 2);
  layer.head_weight = random_floats(heads * hidden_size, 3);
  const std::vector<float> hidden = random_floats(hidden_size, 4), keys = random_floats(slots * dim, 5);
  const int32_t position = slots - 1;
  for (const IndexKeyType type : {IndexKeyType::f32, IndexKeyType::i8, IndexKeyType::i4}) {
    StoredKeys stored(type, dim, slots);
    for (size_t slot = 0; slot < slots; ++slot) stored.store(slot, keys.data() + slot * dim);
    const IndexKeyView view = stored.view();
    std::vector<uint32_t> alone;
    for (const int threads : {1, 2, 3, 7}) {
      Bench bench("auto", threads);
      const auto indexer =
          std::make_shared<const Indexer>(config, std::span(&layer, 1), model, bench.kernels, bench.threads);
      LearnedSelector selector(indexer, {.budget = 200, .budgets = {}, .sinks = 4, .recent = 8});
      SelectionBuffer buffer;
      const LayerQuery query{
          0, {hidden.data(), nullptr, nullptr, &position, 1}, slots - 1, {}, {&view, 1}, nullptr, nullptr};
      ASSERT_TRUE(selector.select(query, bench.context, buffer));
      const std::vector<uint32_t> found(buffer.slots(0, 0).begin(), buffer.slots(0, 0).end());
      if (threads == 1) alone = found;
      EXPECT_EQ(found.size(), 200u);
      EXPECT_EQ(found, alone) << threads << " threads";
    }
  }
}

TEST(LearnedSelector, RefusesWhatOneKeyAndReluScoresCannotGive) {
  Bench bench;
  const ModelShape model = narrow_model();
  IndexerConfig config;
  config.layers = 1;
  config.hidden = 8;
  config.heads = 2;
  config.dim = 4;
  IndexerLayerWeights layer;
  layer.q = std::vector<float>(8 * 8);
  layer.k = std::vector<float>(4 * 8);
  layer.head_weight = std::vector<float>(2 * 8);
  const auto indexer =
      std::make_shared<const Indexer>(config, std::span(&layer, 1), model, bench.kernels, bench.threads);
  const auto [kind, message] = error_of(
      [&] { LearnedSelector(indexer, {.budget = 4, .budgets = {}, .scope = SelectionScope::per_group}); });
  EXPECT_EQ(kind, ErrorKind::usage);
  EXPECT_THAT(message, HasSubstr("--selection shared"));
  const auto [mass_kind, mass_message] =
      error_of([&] { LearnedSelector(indexer, {.budget = 4, .budgets = {}, .mass = 0.9}); });
  EXPECT_EQ(mass_kind, ErrorKind::usage);
  EXPECT_THAT(mass_message, HasSubstr("no shares of attention"));
}

}  // namespace
}  // namespace keysieve
