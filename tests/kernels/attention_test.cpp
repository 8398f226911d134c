#include "kernels/kernel_test_support.h"

namespace keysieve::testing {
namespace {

struct Case {
  size_t heads, kv_heads, head_dim, queries, past;
  KvType type;
};

// A filled KV store and queries for one case.
struct Problem {
  explicit Problem(const Case& c) : config(c), capacity(c.past + c.queries + 3) {
    Random random(c.heads * 100 + c.head_dim + c.queries + c.past);
    const size_t values_count = c.kv_heads * capacity * c.head_dim;
    const std::vector<float> k = random.values(values_count, -2.0f, 2.0f);
    const std::vector<float> v = random.values(values_count);
    const size_t row = kv_row_bytes(c.type, c.head_dim);
    keys.resize(c.kv_heads * capacity * row);
    values.resize(keys.size());
    const auto reference = make_kernels("reference");
    for (size_t i = 0; i < c.kv_heads * capacity; ++i) {
      reference->store_kv(keys.data() + i * row, c.type, k.data() + i * c.head_dim, c.head_dim);
      reference->store_kv(values.data() + i * row, c.type, v.data() + i * c.head_dim, c.head_dim);
    }
    q = random.values(c.queries * c.heads * c.head_dim, -2.0f, 2.0f);
  }
  KvView view() const {
    return {keys.data(), values.data(), config.type, config.kv_heads, capacity, config.head_dim};
  }
  using Choose = std::function<void(size_t set, int worker)>;
  std::vector<float> run(const Kernels& kernels, const SelectionView* selection, int thread_count = 2,
                         const Choose* choose = nullptr) const {
    return run_range(kernels, selection, 0, config.queries, thread_count, choose);
  }
  // Only the queries first .. first + count - 1, the selection's row 0 being that of `first`.
  std::vector<float> run_range(const Kernels& kernels, const SelectionView* selection, size_t first,
                               size_t count, int thread_count = 2, const Choose* choose = nullptr) const {
    const Threads threads(thread_count);
    KernelScratch scratch(threads);
    const size_t width = config.heads * config.head_dim;
    std::vector<float> out(count * width, NAN);
    AttentionArgs args{};
    args.out = out.data();
    args.q = q.data() + first * width;
    args.queries = count;
    args.heads = config.heads;
    args.scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
    args.kv = view();
    args.first_visible = config.past + first;
    args.selection = selection;
    args.choose = choose;
    kernels.attention(args, scratch, threads);
    return out;
  }

  Case config;
  size_t capacity;
  std::vector<std::byte> keys, values;
  std::vector<float> q;
};

const Case kCases[] = {
    {9, 3, 64, 1, 0, KvType::f16},    {9, 3, 64, 1, 700, KvType::f16},  {9, 3, 64, 2, 255, KvType::f16},
    {9, 3, 64, 40, 100, KvType::f16}, {14, 2, 64, 33, 0, KvType::f32},  {14, 2, 64, 1, 513, KvType::f32},
    {4, 1, 128, 5, 64, KvType::f16},  {6, 3, 16, 17, 31, KvType::f32},  {6, 2, 32, 70, 1, KvType::f32},
    {4, 4, 80, 7, 90, KvType::f16},   {4, 2, 20, 7, 90, KvType::f32},   {4, 2, 20, 1, 90, KvType::f16},
    {5, 1, 64, 130, 7, KvType::f16},  {8, 1, 128, 3, 300, KvType::f32}, {12, 2, 96, 65, 63, KvType::f16},
    {9, 3, 64, 1, 700, KvType::i8},   {14, 2, 64, 40, 100, KvType::i8}, {4, 1, 128, 2, 513, KvType::i8},
    {6, 2, 32, 3, 300, KvType::i8},   {4, 2, 20, 7, 90, KvType::i8},    {4, 2, 18, 1, 90, KvType::i8},
};

TEST(Attention, DenseMatchesTheReferenceOnEveryFamily) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (const Case& c : kCases) {
      const Problem setup(c);
      EXPECT_LT(largest_difference(setup.run(*kernels, nullptr), setup.run(*reference, nullptr)), 3e-6f)
          << kernels->name() << " heads " << c.heads << " dim " << c.head_dim << " queries " << c.queries
          << " past " << c.past;
    }
  }
}

// Each query reads a random ascending subset of what it may see, itself included.
struct RandomSelection {
  RandomSelection(const Case& c, size_t groups, size_t budget)
      : slots(c.queries * groups * budget), counts(c.queries * groups) {
    Random random(7);
    for (size_t query = 0; query < c.queries; ++query) {
      for (size_t group = 0; group < groups; ++group) {
        uint32_t* row = slots.data() + (query * groups + group) * budget;
        size_t count = 0;
        const size_t visible = c.past + query + 1;
        for (size_t s = 0; s + 1 < visible && count + 1 < budget; ++s) {
          if (random.uniform(0, 1) < 0.5f) row[count++] = static_cast<uint32_t>(s);
        }
        row[count++] = static_cast<uint32_t>(visible - 1);
        counts[query * groups + group] = static_cast<uint32_t>(count);
      }
    }
    view = {slots.data(), counts.data(), groups, budget};
  }
  std::vector<uint32_t> slots;
  std::vector<uint32_t> counts;
  SelectionView view{};
};

TEST(Attention, SparseMatchesTheReferenceOnEveryFamily) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (const Case& c : kCases) {
      for (const size_t groups : {size_t{1}, c.kv_heads}) {
        const Problem setup(c);
        const RandomSelection selection(c, groups, 300);
        EXPECT_LT(
            largest_difference(setup.run(*kernels, &selection.view), setup.run(*reference, &selection.view)),
            3e-6f)
            << kernels->name() << " heads " << c.heads << " dim " << c.head_dim << " queries " << c.queries
            << " past " << c.past << " groups " << groups;
      }
    }
  }
}

// Keys outside the selection must not be read: their rows are NaN here.
TEST(Attention, KeysNotSelectedAreNotRead) {
  for (const auto& kernels : all_kernels()) {
    for (const size_t queries : {size_t{1}, size_t{20}}) {
      const Case c{6, 2, 32, queries, 200, KvType::f32};
      Problem setup(c);
      const RandomSelection selection(c, 1, 64);
      std::vector<bool> used(setup.capacity, false);
      for (size_t q = 0; q < queries; ++q) {
        for (size_t j = 0; j < selection.view.count(q, 0); ++j) used[selection.view.row(q, 0)[j]] = true;
      }
      for (size_t head = 0; head < c.kv_heads; ++head) {
        for (size_t slot = 0; slot < setup.capacity; ++slot) {
          if (used[slot]) continue;
          for (size_t d = 0; d < c.head_dim; ++d) {
            const size_t at = (head * setup.capacity + slot) * c.head_dim + d;
            reinterpret_cast<float*>(setup.keys.data())[at] = NAN;
            reinterpret_cast<float*>(setup.values.data())[at] = NAN;
          }
        }
      }
      for (const float v : setup.run(*kernels, &selection.view))
        ASSERT_FALSE(std::isnan(v)) << kernels->name();
    }
  }
}

TEST(Attention, DoesNotDependOnThreads) {
  for (const auto& kernels : all_kernels()) {
    for (const Case& c : kCases) {
      const Problem setup(c);
      EXPECT_EQ(setup.run(*kernels, nullptr, 1), setup.run(*kernels, nullptr, 3)) << kernels->name();
    }
  }
}

// A query with a selection gets the same bits in a chunk and alone, as decode runs it.
TEST(Attention, SparseResultsDoNotDependOnTheCompany) {
  for (const auto& kernels : all_kernels()) {
    for (const Case& c : kCases) {
      const Problem setup(c);
      const RandomSelection selection(c, c.kv_heads, 300);
      const std::vector<float> together = setup.run(*kernels, &selection.view);
      const size_t width = c.heads * c.head_dim;
      for (size_t query = 0; query < c.queries; query += 3) {
        const SelectionView own{selection.view.row(query, 0), selection.counts.data() + query * c.kv_heads,
                                c.kv_heads, selection.view.budget};
        const std::vector<float> alone = setup.run_range(*kernels, &own, query, 1);
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + query * width))
            << kernels->name() << " heads " << c.heads << " dim " << c.head_dim << " query " << query;
      }
    }
  }
}

// Sets that are chosen by the threads that then read them, as decode has it. Until a set is chosen its count
// is 0 and its slots are far out of range.
TEST(Attention, SetsMayBeChosenOnTheWay) {
  for (const auto& kernels : all_kernels()) {
    for (const Case& c : kCases) {
      for (const size_t groups : {size_t{1}, c.kv_heads}) {
        Case one = c;
        one.past += one.queries - 1;
        one.queries = 1;
        const Problem setup(one);
        const RandomSelection selection(one, groups, 300);
        std::vector<uint32_t> slots(selection.slots.size(), 1u << 30);
        std::vector<uint32_t> counts(groups, 0);
        const SelectionView chosen{slots.data(), counts.data(), groups, selection.view.budget};
        const std::function<void(size_t, int)> choose = [&](size_t set, int) {
          const size_t count = selection.view.count(0, set);
          std::copy_n(selection.view.row(0, set), count, slots.data() + set * chosen.budget);
          counts[set] = static_cast<uint32_t>(count);
        };
        EXPECT_EQ(setup.run(*kernels, &chosen, 2, &choose), setup.run(*kernels, &selection.view))
            << kernels->name() << " heads " << c.heads << " dim " << c.head_dim << " groups " << groups;
      }
    }
  }
}

// However a prompt is cut into chunks of three queries and more, each query gets the same bits.
TEST(Attention, DenseResultsDoNotDependOnTheChunk) {
  for (const auto& kernels : all_kernels()) {
    for (const Case& c : kCases) {
      if (c.queries < 7) continue;
      const Problem setup(c);
      const std::vector<float> whole = setup.run(*kernels, nullptr);
      const size_t cut = c.queries / 2;
      std::vector<float> parts = setup.run_range(*kernels, nullptr, 0, cut);
      const std::vector<float> rest = setup.run_range(*kernels, nullptr, cut, c.queries - cut);
      parts.insert(parts.end(), rest.begin(), rest.end());
      EXPECT_EQ(whole, parts) << kernels->name() << " heads " << c.heads << " queries " << c.queries;
    }
  }
}

// One score towers over the others, as attention sinks do, and one tile holds only very low ones.
TEST(Attention, LargeScoresStayFinite) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (const size_t queries : {size_t{1}, size_t{9}}) {
      Problem setup({2, 1, 64, queries, 200, KvType::f32});
      auto* keys = reinterpret_cast<float*>(setup.keys.data());
      for (size_t d = 0; d < 64; ++d) keys[150 * 64 + d] *= 200.0f;
      for (size_t i = 0; i < 64 * 64; ++i) keys[i] -= 150.0f;
      EXPECT_LT(largest_difference(setup.run(*kernels, nullptr), setup.run(*reference, nullptr)), 1e-4f)
          << kernels->name();
    }
  }
}

// Scores that rise with the position: slowly, so that a running maximum is passed by a little again and
// again, and steeply, so that each tile of keys outweighs all before it.
TEST(Attention, RisingScoresMatchTheReference) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (const float rise : {0.01f, 0.3f}) {
      Problem setup({2, 1, 64, 9, 400, KvType::f32});
      auto* keys = reinterpret_cast<float*>(setup.keys.data());
      for (size_t slot = 0; slot < setup.capacity; ++slot) {
        for (size_t d = 0; d < 64; ++d) keys[slot * 64 + d] = rise * static_cast<float>(slot);
      }
      for (float& value : setup.q) value = std::fabs(value);
      EXPECT_LT(largest_difference(setup.run(*kernels, nullptr), setup.run(*reference, nullptr)), 1e-4f)
          << kernels->name() << " rise " << rise;
    }
  }
}

}  // namespace
}  // namespace keysieve::testing
