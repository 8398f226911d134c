#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#include "cache/fixed_cache.h"
#include "cache/full_cache.h"
#include "keysieve/error.h"
#include "rows.h"

namespace keysieve {
namespace {

constexpr size_t kIndexDim = 6;

CacheShape shape_of(KvType kv_type = KvType::f32, IndexKeyType index_type = IndexKeyType::f32,
                    size_t index_heads = kKvHeads, size_t layers = 1) {
  return {.layers = layers,
          .kv_heads = kKvHeads,
          .head_dim = kHeadDim,
          .kv_type = kv_type,
          .capacity = 200,
          .index_heads = index_heads,
          .index_dim = kIndexDim,
          .index_type = index_type};
}

template <class Action>
std::string error_of(ErrorKind kind, const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

// Every number of a row follows from its position, so that a row that strayed is seen.
float key_value(int32_t position, size_t head, size_t d) {
  return static_cast<float>(position) + 0.25f * static_cast<float>(head) + 0.0625f * static_cast<float>(d);
}
float index_value(int32_t position, size_t head, size_t d) {
  // The last dimension is 127 and the others whole numbers, so that int8 holds them exactly.
  return d + 1 == kIndexDim
             ? 127.0f
             : static_cast<float>((position * 7 + static_cast<int32_t>(head * 3 + d)) % 120 - 60);
}

void append(KvCache& cache, size_t layer, const std::vector<int32_t>& positions) {
  const size_t index_heads = cache.shape().index_heads;
  std::vector<float> keys, values, index_keys;
  for (const int32_t position : positions) {
    for (size_t head = 0; head < kKvHeads; ++head) {
      for (size_t d = 0; d < kHeadDim; ++d) {
        keys.push_back(key_value(position, head, d));
        values.push_back(-key_value(position, head, d));
      }
    }
    for (size_t head = 0; head < index_heads; ++head) {
      for (size_t d = 0; d < kIndexDim; ++d) index_keys.push_back(index_value(position, head, d));
    }
  }
  cache.append(layer, {keys.data(), values.data(), index_keys.data(), positions.data(), positions.size()});
}

// Every slot holds the row of the position it claims, in every head.
void expect_rows_in_place(const KvCache& cache, size_t layer) {
  const KvView kv = cache.kv(layer);
  const int32_t* slot_positions = cache.slot_positions(layer);
  for (size_t slot = 0; slot < cache.size(layer); ++slot) {
    const auto position = [&](size_t head) {
      if (!slot_positions) return static_cast<int32_t>(slot);
      return slot_positions[(cache.sets() == 1 ? 0 : head) * kv.capacity + slot];
    };
    for (size_t head = 0; head < kKvHeads; ++head) {
      for (size_t d = 0; d < kHeadDim; ++d) {
        ASSERT_EQ(load(kv.key_row(head, slot), kv.type, d), key_value(position(head), head, d));
        ASSERT_EQ(load(kv.value_row(head, slot), kv.type, d), -key_value(position(head), head, d));
      }
    }
    for (size_t head = 0; head < cache.index_keys(layer).size(); ++head) {
      float key[kIndexDim];
      load_index_key(key, cache.index_keys(layer)[head], slot);
      for (size_t d = 0; d < kIndexDim; ++d) ASSERT_EQ(key[d], index_value(position(head), head, d));
    }
  }
}

std::vector<int32_t> range(int32_t first, int32_t last) {
  std::vector<int32_t> positions(static_cast<size_t>(last - first));
  std::iota(positions.begin(), positions.end(), first);
  return positions;
}

TEST(FullCache, KeepsEveryRow) {
  for (const KvType kv_type : {KvType::f32, KvType::f16}) {
    for (const IndexKeyType index_type : {IndexKeyType::f32, IndexKeyType::i8}) {
      FullCache cache(shape_of(kv_type, index_type, 2, 2), make_kernels("reference"));
      append(cache, 0, range(0, 17));
      append(cache, 0, {17});
      append(cache, 1, range(0, 3));
      EXPECT_EQ(cache.size(0), 18u);
      EXPECT_EQ(cache.positions(0, 0), range(0, 18));
      EXPECT_FALSE(cache.over_budget(0));
      expect_rows_in_place(cache, 0);
      expect_rows_in_place(cache, 1);
      const size_t value = kv_type == KvType::f32 ? 4 : 2;
      EXPECT_EQ(cache.bytes().hot, 2 * kKvHeads * kHeadDim * value * (18 + 3));
      EXPECT_GT(cache.bytes().index, 0u);
      EXPECT_EQ(cache.bytes().cold, 0u);
      cache.truncate(10);
      EXPECT_EQ(cache.size(0), 10u);
      append(cache, 0, range(10, 12));
      expect_rows_in_place(cache, 0);
      cache.clear();
      EXPECT_EQ(cache.size(0), 0u);
      EXPECT_EQ(cache.bytes().total(), 0u);
      append(cache, 0, range(0, 5));
      expect_rows_in_place(cache, 0);
    }
  }
}

TEST(FullCache, RefusesWhatDoesNotFit) {
  FullCache cache(shape_of(), make_kernels("reference"));
  append(cache, 0, range(0, 199));
  error_of(ErrorKind::mismatch, [&] { append(cache, 0, range(199, 201)); });
  error_of(ErrorKind::usage, [&] { append(cache, 0, {200}); });
  append(cache, 0, {199});
  EXPECT_EQ(cache.size(0), 200u);
}

// The rule in plain words, on (position, score) pairs: protected first, then score, then the more recent.
std::vector<int32_t> keep_brute_force(std::vector<std::pair<int32_t, float>> entries, size_t budget,
                                      size_t sinks, size_t recent, int32_t newest) {
  const auto is_protected = [&](int32_t p) {
    return p < static_cast<int32_t>(sinks) || p > newest - static_cast<int32_t>(recent);
  };
  std::sort(entries.begin(), entries.end(), [&](const auto& a, const auto& b) {
    if (is_protected(a.first) != is_protected(b.first)) return is_protected(a.first);
    return a.second != b.second ? a.second > b.second : a.first > b.first;
  });
  entries.resize(std::min(entries.size(), budget));
  std::vector<int32_t> positions;
  for (const auto& entry : entries) positions.push_back(entry.first);
  std::sort(positions.begin(), positions.end());
  return positions;
}

struct Plan {
  size_t budget, sinks, recent, sets;
  IndexKeyType index_type;
};

class FixedCacheRule : public ::testing::TestWithParam<Plan> {};

// Prompt, cut, decode, a second turn in chunks, cut, decode: against the rule, with scores full of ties.
TEST_P(FixedCacheRule, EqualsBruteForce) {
  const Plan plan = GetParam();
  FixedCache cache(
      shape_of(KvType::f32, plan.index_type, plan.sets == 1 ? 1 : kKvHeads),
      {.budget = plan.budget, .budgets = {}, .sinks = plan.sinks, .recent = plan.recent, .sets = plan.sets},
      make_kernels("reference"));
  std::vector<std::vector<int32_t>> expected(plan.sets);
  std::mt19937 random(7);
  int32_t next = 0;
  size_t newcomers_dropped = 0;
  const auto add = [&](int32_t count) {
    append(cache, 0, range(next, next + count));
    for (auto& set : expected) {
      for (int32_t i = 0; i < count; ++i) set.push_back(next + i);
    }
    next += count;
  };
  const auto cut = [&] {
    if (!cache.over_budget(0)) return;
    std::vector<float> scores;
    for (size_t set = 0; set < plan.sets; ++set) {
      std::map<int32_t, float> by_position;
      const int32_t* positions = cache.slot_positions(0) + set * cache.kv(0).capacity;
      for (size_t slot = 0; slot < cache.size(0); ++slot) {
        const uint32_t draw = random() % 4;
        float score = draw == 0 ? -0.0f : static_cast<float>(draw) - 1.0f;
        // Among so many ties the newest row would never be the lowest by chance.
        if (positions[slot] == next - 1 && random() % 3 == 0) score = -1.0f;
        by_position[positions[slot]] = score;
        scores.push_back(by_position[positions[slot]]);
      }
      std::vector<std::pair<int32_t, float>> entries(by_position.begin(), by_position.end());
      expected[set] = keep_brute_force(entries, plan.budget, plan.sinks, plan.recent, next - 1);
      newcomers_dropped += std::count(expected[set].begin(), expected[set].end(), next - 1) == 0;
    }
    cache.keep_best(0, scores);
    EXPECT_EQ(cache.size(0), plan.budget);
  };
  const auto check = [&] {
    for (size_t set = 0; set < plan.sets; ++set) ASSERT_EQ(cache.positions(0, set), expected[set]);
    ASSERT_NO_FATAL_FAILURE(expect_rows_in_place(cache, 0));
  };
  add(50);
  add(21);
  check();
  cut();
  check();
  uint64_t constant = 0;
  for (int step = 0; step < 60; ++step) {
    add(1);
    cut();
    check();
    EXPECT_EQ(cache.kv(0).capacity, plan.budget + 1);
    if (step == 0) constant = cache.bytes().total();
    EXPECT_EQ(cache.bytes().total(), constant);
  }
  add(13);  // the next turn
  check();
  const int32_t* positions = cache.slot_positions(0);
  EXPECT_TRUE(std::is_sorted(positions, positions + cache.size(0)));
  add(40);
  cut();
  check();
  for (int step = 0; step < 20; ++step) {
    add(1);
    cut();
    check();
  }
  if (plan.recent == 0) EXPECT_GT(newcomers_dropped, 0u);
  cache.clear();
  EXPECT_EQ(cache.size(0), 0u);
  EXPECT_EQ(cache.bytes().total(), 0u);
}

INSTANTIATE_TEST_SUITE_P(
    All, FixedCacheRule,
    ::testing::Values(Plan{16, 0, 0, 1, IndexKeyType::f32}, Plan{16, 0, 0, 2, IndexKeyType::i8},
                      Plan{16, 4, 8, 2, IndexKeyType::f32}, Plan{33, 4, 8, 1, IndexKeyType::i8},
                      Plan{1, 0, 0, 1, IndexKeyType::f32}, Plan{70, 1, 1, 2, IndexKeyType::i8}));

TEST(FixedCache, GivesThePrefillStoreBackAtTheCut) {
  CacheShape shape = shape_of();
  shape.capacity = 100000;
  FixedCache cache(shape, {.budget = 32, .budgets = {}, .sets = 1}, make_kernels("reference"));
  append(cache, 0, range(0, 20000));
  const uint64_t before = cache.bytes().total();
  EXPECT_EQ(cache.kv(0).capacity, 100000u);
  cache.keep_best(0, std::vector<float>(20000, 1.0f));
  EXPECT_EQ(cache.kv(0).capacity, 33u);
  EXPECT_LT(cache.bytes().total(), before / 500);
  EXPECT_EQ(cache.positions(0, 0), range(19968, 20000));
}

TEST(FixedCache, ALongPromptNeedsTheBudgetAndAChunk) {
  constexpr size_t kChunk = 20;
  CacheShape shape = shape_of();
  shape.capacity = 100000;
  const FixedCacheOptions options{
      .budget = 32, .budgets = {}, .sinks = 2, .recent = 4, .sets = 2, .chunk = kChunk};
  FixedCache cache(shape, options, make_kernels("reference"));
  EXPECT_TRUE(cache.cuts_each_chunk());
  std::vector<int32_t> expected;
  std::mt19937 random(3);
  uint64_t most = 0;
  for (int32_t next = 0; next < 4000; next += kChunk) {
    append(cache, 0, range(next, next + static_cast<int32_t>(kChunk)));
    for (int32_t p = next; p < next + static_cast<int32_t>(kChunk); ++p) expected.push_back(p);
    EXPECT_EQ(cache.kv(0).capacity, 32 + kChunk + 1);
    most = std::max(most, cache.bytes().total());
    if (!cache.over_budget(0)) continue;
    std::vector<std::pair<int32_t, float>> entries;
    std::vector<float> scores;
    for (const int32_t position : expected) {
      scores.push_back(static_cast<float>(random() % 100));
      entries.emplace_back(position, scores.back());
    }
    scores.insert(scores.end(), scores.begin(), scores.end());  // both sets
    cache.keep_best(0, scores);
    expected = keep_brute_force(entries, 32, 2, 4, next + static_cast<int32_t>(kChunk) - 1);
    for (size_t set = 0; set < 2; ++set) ASSERT_EQ(cache.positions(0, set), expected);
    ASSERT_NO_FATAL_FAILURE(expect_rows_in_place(cache, 0));
  }
  EXPECT_EQ(cache.bytes().total(), most);
  append(cache, 0, {4000});
  cache.keep_best(0, std::vector<float>(2 * 33, 0.0f));
  EXPECT_EQ(cache.kv(0).capacity, 33u);
}

// Bytes in memory, where a session file would be.
class Bytes final : public StateWriter, public StateReader {
 public:
  void write(std::span<const std::byte> bytes) override { all.insert(all.end(), bytes.begin(), bytes.end()); }
  void read(std::span<std::byte> bytes) override {
    if (bytes.size() > all.size() - taken) throw Error(ErrorKind::format, "bytes", "too few", "more");
    std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(taken), bytes.size(), bytes.begin());
    taken += bytes.size();
  }
  std::vector<std::byte> all;
  size_t taken = 0;
};

// A prompt that was cancelled between two chunks leaves more rows than the budget, some of them after a cut.
TEST(FixedCache, IsSavedAndLoadedWhereverAPromptStopped) {
  const FixedCacheOptions options{.budget = 32, .budgets = {}, .sinks = 2, .recent = 4, .sets = 2};
  FixedCache cache(shape_of(), options, make_kernels("reference"));
  const auto expect_survives = [&](size_t tokens) {
    Bytes file;
    cache.save(file);
    FixedCache loaded(shape_of(), options, make_kernels("reference"));
    loaded.load(file, tokens);
    EXPECT_EQ(file.taken, file.all.size());
    for (size_t set = 0; set < 2; ++set) EXPECT_EQ(loaded.positions(0, set), cache.positions(0, set));
    expect_rows_in_place(loaded, 0);
  };
  append(cache, 0, range(0, 20));
  expect_survives(20);
  append(cache, 0, range(20, 50));
  expect_survives(50);
  cache.keep_best(0, std::vector<float>(2 * 50, 0.0f));
  expect_survives(50);
  append(cache, 0, range(50, 60));
  expect_survives(60);
  Bytes lying;
  lying.StateWriter::value<uint64_t>(31);  // after 60 tokens no fewer than 32
  FixedCache empty(shape_of(), options, make_kernels("reference"));
  EXPECT_THAT(error_of(ErrorKind::format, [&] { empty.load(lying, 60); }),
              ::testing::HasSubstr("31 rows in layer 0"));
}

TEST(FixedCache, BudgetsByLayer) {
  FixedCache cache(shape_of(KvType::f16, IndexKeyType::i8, 1, 3), {.budget = 8, .budgets = {0, 5}, .sets = 1},
                   make_kernels("reference"));
  for (size_t layer = 0; layer < 3; ++layer) append(cache, layer, range(0, 12));
  EXPECT_FALSE(cache.over_budget(0));
  EXPECT_TRUE(cache.over_budget(1));
  cache.keep_best(0, {});
  cache.keep_best(1, std::vector<float>(12, 0.0f));
  cache.keep_best(2, std::vector<float>(12, 0.0f));
  EXPECT_EQ(cache.size(0), 12u);
  EXPECT_EQ(cache.size(1), 5u);
  EXPECT_EQ(cache.size(2), 8u);
}

TEST(FixedCache, NanScoresGoFirst) {
  FixedCache cache(shape_of(), {.budget = 3, .budgets = {}, .sets = 1}, make_kernels("reference"));
  append(cache, 0, range(0, 4));
  cache.keep_best(0, std::vector<float>{-5.0f, 1.0f, NAN, 2.0f});
  EXPECT_THAT(cache.positions(0, 0), ::testing::ElementsAre(0, 1, 3));
}

TEST(FixedCache, RefusesWhatCannotWork) {
  const auto kernels = make_kernels("reference");
  const auto make = [&](FixedCacheOptions options) { FixedCache(shape_of(), std::move(options), kernels); };
  error_of(ErrorKind::usage, [&] { make({.budget = 0, .budgets = {}}); });
  error_of(ErrorKind::usage, [&] { make({.budget = 12, .budgets = {}, .sinks = 4, .recent = 8}); });
  error_of(ErrorKind::usage, [&] { make({.budget = 20, .budgets = {0, 12}, .sinks = 4, .recent = 8}); });
  error_of(ErrorKind::usage, [&] { make({.budget = 12, .budgets = {}, .sets = 3}); });
  FixedCache cache(shape_of(), {.budget = 4, .budgets = {}, .sets = 1}, kernels);
  append(cache, 0, range(0, 6));
  error_of(ErrorKind::usage, [&] { append(cache, 0, {5}); });
  error_of(ErrorKind::usage, [&] { cache.keep_best(0, std::vector<float>(5)); });
}

}  // namespace
}  // namespace keysieve
