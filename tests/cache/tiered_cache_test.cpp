#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <random>
#include <set>

#include "cache/tiered_cache.h"
#include "keysieve/error.h"
#include "rows.h"
#include "support/files.h"

namespace keysieve {
namespace {

constexpr size_t kBudget = 12;
constexpr size_t kChunk = 8;
constexpr size_t kCapacity = 400;
constexpr size_t kRecord = 2 * kKvHeads * kHeadDim * sizeof(float);

CacheShape tiered_shape(KvType type = KvType::f32) {
  return {.layers = 2,
          .kv_heads = kKvHeads,
          .head_dim = kHeadDim,
          .kv_type = type,
          .capacity = kCapacity,
          .index_heads = 1,
          .index_dim = 4,
          .index_type = IndexKeyType::f32};
}

std::unique_ptr<TieredCache> cache_of(size_t sets, const std::filesystem::path& folder = {},
                                      KvType type = KvType::f32) {
  const TieredCacheOptions options{.budget = kBudget, .budgets = {}, .chunk = kChunk, .sets = sets};
  return make_tiered_cache(tiered_shape(type), make_kernels("reference"), options, folder);
}

// Every number of a row follows from its layer, position, head and place; halves hold it too.
float value_of(size_t layer, size_t position, size_t head, size_t d) {
  const float value = static_cast<float>(position) + 0.25f * static_cast<float>(head + 2 * layer);
  return d % 2 == 0 ? value : -value;
}

void append(KvCache& cache, size_t layer, size_t count) {
  const size_t first = cache.size(layer);
  std::vector<float> keys, values, index_keys;
  std::vector<int32_t> positions;
  for (size_t position = first; position < first + count; ++position) {
    positions.push_back(static_cast<int32_t>(position));
    for (size_t head = 0; head < kKvHeads; ++head) {
      for (size_t d = 0; d < kHeadDim; ++d) {
        keys.push_back(value_of(layer, position, head, d));
        values.push_back(-value_of(layer, position, head, d));
      }
    }
    for (size_t d = 0; d < 4; ++d) index_keys.push_back(static_cast<float>(position));
  }
  cache.append(layer, {keys.data(), values.data(), index_keys.data(), positions.data(), count});
}

void fill(KvCache& cache, size_t layer, size_t to) {
  while (cache.size(layer) < to) append(cache, layer, std::min(kChunk, to - cache.size(layer)));
}

// Selections of some queries, as the model hands them over.
struct Selections {
  Selections(size_t count, size_t sets) : queries(count), groups(sets), counts(count * sets) {
    slots.resize(count * sets * kBudget);
  }
  void choose(size_t query, size_t group, const std::vector<uint32_t>& positions) {
    std::copy(positions.begin(), positions.end(), rows().row(query, group));
    counts[query * groups + group] = static_cast<uint32_t>(positions.size());
  }
  SelectedRows rows(size_t first = 0) {
    return {slots.data() + first * groups * kBudget, counts.data() + first * groups, queries - first, groups,
            kBudget};
  }
  size_t queries;
  size_t groups;
  std::vector<uint32_t> slots;
  std::vector<uint32_t> counts;
};

std::vector<uint32_t> some_positions(std::mt19937& random, size_t size) {
  std::set<uint32_t> chosen;
  while (chosen.size() < kBudget) chosen.insert(static_cast<uint32_t>(random() % size));
  return {chosen.begin(), chosen.end()};
}

// Stages all of them part by part; each row must be that of the position chosen. Returns the parts.
size_t expect_staged(TieredCache& cache, size_t layer, Selections selections, const Threads& threads) {
  Selections chosen = selections;
  size_t parts = 0;
  for (size_t first = 0; first < selections.queries; ++parts) {
    const SelectedRows rows = selections.rows(first);
    const StagedRows staged = cache.stage(layer, rows, threads);
    EXPECT_GE(staged.queries, 1u);
    if (staged.queries == 0) return 0;
    for (size_t query = 0; query < staged.queries; ++query) {
      for (size_t head = 0; head < kKvHeads; ++head) {
        const size_t group = selections.groups == 1 ? 0 : head;
        for (size_t i = 0; i < rows.count(query, group); ++i) {
          const uint32_t slot = rows.row(query, group)[i];
          const uint32_t position = chosen.rows(first).row(query, group)[i];
          for (size_t d = 0; d < kHeadDim; ++d) {
            const float expected = value_of(layer, position, head, d);
            EXPECT_EQ(load(staged.kv.key_row(head, slot), staged.kv.type, d), expected);
            EXPECT_EQ(load(staged.kv.value_row(head, slot), staged.kv.type, d), -expected);
          }
        }
      }
    }
    first += staged.queries;
  }
  return parts;
}

template <class Action>
std::string file_error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(to_string(error.kind()), "file") << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

// The process's open file in `folder`, by the link that /proc has for it.
std::filesystem::path open_file_in(const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code ignored;
    const std::string target = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (target.starts_with(folder.string() + "/")) return entry.path();
  }
  ADD_FAILURE() << "no open file in " << folder;
  return {};
}

TEST(TieredCache, BringsBackWhatWasChosen) {
  const Threads threads(2);
  const testing::TempFolder folder;
  for (const bool on_disk : {false, true}) {
    for (const KvType type : {KvType::f32, KvType::f16}) {
      for (const size_t sets : {size_t{1}, kKvHeads}) {
        const auto cache = cache_of(sets, on_disk ? folder.path() : std::filesystem::path(), type);
        std::mt19937 random(7);
        size_t most_parts = 0;
        for (size_t size = 3; size <= 300; size += 1 + random() % kChunk) {
          for (size_t layer = 0; layer < 2; ++layer) {
            append(*cache, layer, size - cache->size(layer));
            if (size <= kBudget) continue;
            Selections selections(1 + random() % 5, sets);
            for (size_t query = 0; query < selections.queries; ++query) {
              for (size_t set = 0; set < sets; ++set) {
                selections.choose(query, set, some_positions(random, size));
              }
            }
            most_parts = std::max(most_parts, expect_staged(*cache, layer, selections, threads));
          }
          const size_t row = kRecord / (type == KvType::f32 ? 1 : 2);
          EXPECT_LE(cache->bytes().hot, 2 * (kBudget + kChunk) * row);
          EXPECT_EQ(cache->bytes().cold, 2 * size * row);
        }
        EXPECT_GT(most_parts, 1u);  // 5 queries of 12 rows do not fit 20 slots
        EXPECT_GT(cache->bytes().moved, 0u);
        cache->clear();
        EXPECT_EQ(cache->bytes().total() + cache->bytes().moved, 0u);
      }
    }
  }
}

TEST(TieredCache, WhatIsAskedForAgainStaysHot) {
  const Threads threads(1);
  const auto cache = cache_of(1);
  fill(*cache, 0, 200);
  Selections again(1, 1);
  again.choose(0, 0, {0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110});
  expect_staged(*cache, 0, again, threads);
  EXPECT_EQ(cache->bytes().moved, 12 * kRecord);
  for (size_t step = 0; step < 50; ++step) {
    append(*cache, 0, 1);
    expect_staged(*cache, 0, again, threads);
  }
  EXPECT_EQ(cache->bytes().moved, 12 * kRecord);
}

TEST(TieredCache, NeighboursThatChooseTogetherFitTogether) {
  const Threads threads(1);
  const auto cache = cache_of(1);
  fill(*cache, 0, 200);
  Selections selections(kChunk, 1);
  for (size_t query = 0; query < kChunk; ++query) {
    std::vector<uint32_t> positions = {1, 50, 99};
    for (uint32_t i = 0; i <= query; ++i) positions.push_back(192 + i);
    selections.choose(query, 0, positions);
  }
  EXPECT_EQ(expect_staged(*cache, 0, selections, threads), 1u);
  EXPECT_EQ(cache->bytes().moved, 3 * kRecord);  // the chunk's own rows are hot already
}

// Queries with no more candidates than the budget read slots 0 .. n without a selection.
TEST(TieredCache, GoingBackPutsTheBeginningInOrder) {
  const Threads threads(1);
  for (const size_t to : {size_t{5}, kBudget + 3, size_t{90}}) {
    const auto cache = cache_of(kKvHeads);
    fill(*cache, 0, 150);
    EXPECT_TRUE(cache->truncate(to));
    EXPECT_EQ(cache->size(0), to);
    append(*cache, 0, 2);
    if (to < kBudget) {
      const KvView kv = cache->kv(0);
      for (size_t slot = 0; slot < to + 2; ++slot) {
        EXPECT_EQ(load(kv.key_row(1, slot), kv.type, 1), value_of(0, slot, 1, 1));
      }
    }
    std::mt19937 random(3);
    fill(*cache, 0, 170);
    Selections selections(3, kKvHeads);
    for (size_t i = 0; i < 6; ++i) selections.choose(i / 2, i % 2, some_positions(random, 170));
    expect_staged(*cache, 0, selections, threads);
  }
}

TEST(TieredCache, ALostFileIsAnErrorAndNeverZeros) {
  const Threads threads(1);
  const testing::TempFolder folder;
  const auto cache = cache_of(1, folder.path());
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));  // nothing to be left behind
  fill(*cache, 0, 200);
  EXPECT_EQ(::truncate(open_file_in(folder.path()).c_str(), 100), 0);
  Selections selections(1, 1);
  selections.choose(0, 0, {0, 50, 120});
  EXPECT_THAT(file_error_of([&] { cache->stage(0, selections.rows(), threads); }),
              ::testing::HasSubstr("has lost rows"));
  // Writing on would bring the file back to its length, with zeros.
  EXPECT_THAT(file_error_of([&] { append(*cache, 0, 1); }), ::testing::HasSubstr("has lost rows"));
  cache->clear();
  fill(*cache, 0, 100);
  Selections after(1, 1);
  after.choose(0, 0, {0, 50, 60});
  expect_staged(*cache, 0, after, threads);
}

TEST(TieredCache, AFullDiskIsAnError) {
  const testing::TempFolder folder;
  const auto cache = cache_of(1, folder.path());
  // A limit on the size of files stands in for the disk's.
  std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit small{128 * kRecord, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error = file_error_of([&] { fill(*cache, 0, 300); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_THAT(error, ::testing::HasSubstr("cannot grow past"));
  EXPECT_THAT(error, ::testing::HasSubstr(folder.path().string()));
  EXPECT_EQ(cache->size(0), 128u);  // what is in the cache is what is in the store
}

TEST(TieredCache, AFolderThatCannotHoldItIsAnError) {
  EXPECT_THAT(file_error_of([] { cache_of(1, "/nonexistent/folder"); }),
              ::testing::HasSubstr("--cold-store"));
}

TEST(TieredCache, DenseLayersStayInMemory) {
  const TieredCacheOptions options{.budget = kBudget, .budgets = {0, kBudget}, .chunk = kChunk, .sets = 1};
  const auto cache = make_tiered_cache(tiered_shape(), make_kernels("reference"), options, {});
  for (const size_t layer : {0, 1}) fill(*cache, layer, 100);
  const KvView kv = cache->kv(0);
  for (size_t slot = 0; slot < 100; ++slot) {
    EXPECT_EQ(load(kv.value_row(1, slot), kv.type, 2), -value_of(0, slot, 1, 2));
  }
  EXPECT_EQ(cache->bytes().cold, 100 * kRecord);
  EXPECT_EQ(cache->bytes().hot, (100 + kBudget + kChunk) * kRecord);
}

}  // namespace
}  // namespace keysieve
