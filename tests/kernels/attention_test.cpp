#include "kernels/attention_problem.h"

namespace keysieve::testing {
namespace {

const AttentionCase kCases[] = {
    {9, 3, 64, 1, 0, KvType::f16},    {9, 3, 64, 1, 700, KvType::f16},  {9, 3, 64, 2, 255, KvType::f16},
    {9, 3, 64, 40, 100, KvType::f16}, {14, 2, 64, 33, 0, KvType::f32},  {14, 2, 64, 1, 513, KvType::f32},
    {4, 1, 128, 5, 64, KvType::f16},  {6, 3, 16, 17, 31, KvType::f32},  {6, 2, 32, 70, 1, KvType::f32},
    {4, 4, 80, 7, 90, KvType::f16},   {4, 2, 20, 7, 90, KvType::f32},   {4, 2, 20, 1, 90, KvType::f16},
    {5, 1, 64, 130, 7, KvType::f16},  {8, 1, 128, 3, 300, KvType::f32}, {12, 2, 96, 65, 63, KvType::f16},
    {9, 3, 64, 1, 700, KvType::i8},   {14, 2, 64, 40, 100, KvType::i8}, {4, 1, 128, 2, 513, KvType::i8},
    {6, 2, 32, 3, 300, KvType::i8},   {4, 2, 20, 7, 90, KvType::i8},    {4, 2, 18, 1, 90, KvType::i8},
    {14, 2, 64, 1, 700, KvType::f16}, {8, 1, 20, 1, 290, KvType::f16},  {11, 1, 36, 2, 300, KvType::i8},
};

// How near the reference a family is. "avx512bf16" rounds to 8 bits what it reads of f16 and i8 in prefill;
// bfloat16_attention_test.cpp holds it to a twin that rounds alike.
float tolerance(const Kernels& kernels, const AttentionCase& c) {
  const bool rounds = kernels.name() == "avx512bf16" && c.type != KvType::f32 && c.queries > 2;
  return rounds ? 6e-3f : 3e-6f;
}

TEST(Attention, DenseMatchesTheReferenceOnEveryFamily) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (const AttentionCase& c : kCases) {
      const AttentionProblem setup(c);
      EXPECT_LT(largest_difference(setup.run(*kernels, nullptr), setup.run(*reference, nullptr)),
                tolerance(*kernels, c))
          << kernels->name() << " heads " << c.heads << " dim " << c.head_dim << " queries " << c.queries
          << " past " << c.past;
    }
  }
}

TEST(Attention, SparseMatchesTheReferenceOnEveryFamily) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (const AttentionCase& c : kCases) {
      for (const size_t groups : {size_t{1}, c.kv_heads}) {
        const AttentionProblem setup(c);
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

TEST(Attention, SharedSetsMatchTheReferenceOnEveryFamily) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (const AttentionCase& c : kCases) {
      for (const size_t groups : {size_t{1}, c.kv_heads}) {
        const AttentionProblem setup(c);
        const BlockSelection selection(c, groups, 300, 4);
        EXPECT_LT(
            largest_difference(setup.run(*kernels, &selection.view), setup.run(*reference, &selection.view)),
            tolerance(*kernels, c))
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
      const AttentionCase c{6, 2, 32, queries, 200, KvType::f32};
      AttentionProblem setup(c);
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
    for (const AttentionCase& c : kCases) {
      const AttentionProblem setup(c);
      EXPECT_EQ(setup.run(*kernels, nullptr, 1), setup.run(*kernels, nullptr, 3)) << kernels->name();
    }
  }
}

// A query with a selection gets the same bits in a chunk and alone, as decode runs it.
TEST(Attention, SparseResultsDoNotDependOnTheCompany) {
  for (const auto& kernels : all_kernels()) {
    for (const AttentionCase& c : kCases) {
      const AttentionProblem setup(c);
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
    for (const AttentionCase& c : kCases) {
      for (const size_t groups : {size_t{1}, c.kv_heads}) {
        AttentionCase one = c;
        one.past += one.queries - 1;
        one.queries = 1;
        const AttentionProblem setup(one);
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

// Scores of keys in any order and number, of one query and of neighbours, and nothing written past them.
TEST(Attention, KeyScoresAreTheReferences) {
  const auto reference = make_kernels("reference");
  const Threads threads(1);
  for (const auto& kernels : all_kernels()) {
    for (const AttentionCase& c : kCases) {
      AttentionCase one = c;
      one.past += 700;
      one.queries = 5;
      const AttentionProblem setup(one);
      const size_t heads = c.heads / c.kv_heads;
      Random random(3);
      for (const auto& [count, queries] :
           {std::pair<size_t, size_t>{1, 1}, {15, 1}, {256, 1}, {601, 1}, {1, 2}, {64, 4}, {601, 5}}) {
        std::vector<uint32_t> slots(count);
        for (uint32_t& slot : slots) slot = random.below(static_cast<uint32_t>(one.past + one.queries));
        const size_t stride = count + 3;
        for (size_t kv_head = 0; kv_head < c.kv_heads; ++kv_head) {
          std::vector<float> expected(queries * heads * stride, -7.0f), found = expected;
          KernelScratch scratch(threads);
          KeyScoreArgs args{.scores = expected.data(),
                            .stride = stride,
                            .q = setup.q.data() + kv_head * heads * c.head_dim,
                            .heads = heads,
                            .scale = setup.scale,
                            .kv = setup.view(),
                            .kv_head = kv_head,
                            .slots = slots,
                            .queries = queries,
                            .query_stride = c.heads * c.head_dim};
          reference->key_scores(args, scratch, 0);
          args.scores = found.data();
          kernels->key_scores(args, scratch, 0);
          for (size_t i = 0; i < found.size(); ++i) {
            ASSERT_NEAR(found[i], expected[i], 2e-5f)
                << kernels->name() << " heads " << c.heads << " dim " << c.head_dim << " count " << count
                << " queries " << queries;
            if (i % stride >= count) ASSERT_EQ(found[i], -7.0f);
          }
        }
      }
    }
  }
}

// However a prompt is cut into chunks of three queries and more, each query gets the same bits.
TEST(Attention, DenseResultsDoNotDependOnTheChunk) {
  for (const auto& kernels : all_kernels()) {
    for (const AttentionCase& c : kCases) {
      if (c.queries < 7) continue;
      const AttentionProblem setup(c);
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
      AttentionProblem setup({2, 1, 64, queries, 200, KvType::f32});
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
      AttentionProblem setup({2, 1, 64, 9, 400, KvType::f32});
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
