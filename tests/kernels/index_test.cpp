#include <limits>
#include <numeric>

#include "kernels/index_query.h"
#include "kernels/kernel_test_support.h"
#include "kernels/score_order.h"

namespace keysieve::testing {
namespace {

struct Keys {
  Keys(IndexKeyType key_type, size_t key_dim, size_t count, uint64_t seed)
      : type(key_type),
        dim(key_dim),
        data(index_key_bytes(key_type, key_dim, count)),
        scales((count + 15) / 16 * 16 * index_scale_bytes(key_type)),
        plain(Random(seed).values(count * key_dim, -2, 2)) {
    for (size_t s = 0; s < count; ++s)
      store_index_key(data.data(), scales.data(), type, dim, s, &plain[s * dim]);
  }
  IndexKeyView view() const { return {data.data(), scales.data(), type, dim}; }
  IndexKeyType type;
  size_t dim;
  std::vector<std::byte> data;
  std::vector<std::byte> scales;
  std::vector<float> plain;  // [count, dim]
};

IndexScoreArgs score_args(const Keys& keys, const std::vector<float>& q, size_t heads, size_t count,
                          IndexCombine combine) {
  IndexScoreArgs args{};
  args.q = q.data();
  args.heads = heads;
  args.count = count;
  args.keys = keys.view();
  args.combine = combine;
  return args;
}

void score(const Kernels& kernels, const IndexScoreArgs& args) {
  const Threads threads(1);
  KernelScratch scratch(threads);
  kernels.index_scores(args, scratch, 0);
}

std::vector<float> scores_of(const Kernels& kernels, const Keys& keys, const std::vector<float>& q,
                             size_t heads, size_t count, IndexCombine combine,
                             const std::vector<float>& weights, bool accumulate) {
  std::vector<float> scores((count + 15) / 16 * 16, 0.25f);
  IndexScoreArgs args = score_args(keys, q, heads, count, combine);
  args.scores = scores.data();
  args.head_weight = combine == IndexCombine::relu_sum ? weights.data() : nullptr;
  args.accumulate = accumulate;
  score(kernels, args);
  scores.resize(count);
  return scores;
}

TEST(IndexScores, BitwiseEqualToTheScalarTwin) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (const IndexKeyType type : {IndexKeyType::f32, IndexKeyType::i8, IndexKeyType::i4}) {
      for (const IndexCombine combine :
           {IndexCombine::relu_sum, IndexCombine::softmax_sum, IndexCombine::linear_sum}) {
        for (const size_t dim : {1, 4, 16, 24, 32, 69}) {
          for (const size_t heads : {1, 3, 6, 9}) {
            for (const size_t count : {1, 2, 15, 16, 17, 33, 500}) {
              for (const bool accumulate : {false, true}) {
                const Keys keys(type, dim, count, count + dim);
                const std::vector<float> q = Random(dim).values(heads * dim, -3, 3);
                const std::vector<float> w = Random(9).values(heads);
                ASSERT_EQ(scores_of(*kernels, keys, q, heads, count, combine, w, accumulate),
                          scores_of(*reference, keys, q, heads, count, combine, w, accumulate))
                    << kernels->name() << " dim " << dim << " heads " << heads << " count " << count;
              }
            }
          }
        }
      }
    }
  }
}

// Every code as large as it gets, on both sides and with both signs: what narrow sums must hold.
TEST(IndexScores, TheLargestCodesDoNotRunOver) {
  for (const auto& kernels : all_kernels()) {
    for (const IndexKeyType type : {IndexKeyType::i8, IndexKeyType::i4}) {
      for (const size_t dim : {24, 32, 40, 64, 72, 128}) {
        for (const float sign : {1.0f, -1.0f}) {
          constexpr size_t kCount = 35;
          Keys keys(type, dim, kCount, 1);
          const std::vector<float> key(dim, 2.0f);
          for (size_t s = 0; s < kCount; ++s) {
            store_index_key(keys.data.data(), keys.scales.data(), type, dim, s, key.data());
          }
          const std::vector<float> q(dim, sign * 3.0f);
          const float expected = sign * 6.0f * static_cast<float>(dim);
          for (const float score :
               scores_of(*kernels, keys, q, 1, kCount, IndexCombine::linear_sum, {}, false)) {
            ASSERT_NEAR(score, expected, std::fabs(expected) * 4e-3f) << kernels->name() << " dim " << dim;
          }
        }
      }
    }
  }
}

// Neighbours together: the bits of one after another, each with one slot more than the one before.
TEST(IndexScores, NeighboursAddUpAsOneAfterAnother) {
  for (const auto& kernels : all_kernels()) {
    for (const IndexKeyType type : {IndexKeyType::f32, IndexKeyType::i8, IndexKeyType::i4}) {
      for (const IndexCombine combine : {IndexCombine::softmax_sum, IndexCombine::linear_sum}) {
        for (const size_t dim : {16, 24, 32}) {
          for (const size_t heads : {1, 3, 7}) {
            for (const size_t queries : {2, 4, 5}) {
              for (const size_t count : {1, 13, 16, 47, 500}) {
                const Keys keys(type, dim, count + queries, count + dim);
                const size_t stride = heads * dim + 8;
                const std::vector<float> q = Random(dim).values(queries * stride, -3, 3);
                const size_t last = count + queries - 1;
                std::vector<float> expected(last, 0.0f);
                for (size_t i = 0; i < queries; ++i) {
                  const std::vector<float> own(q.begin() + static_cast<ptrdiff_t>(i * stride), q.end());
                  IndexScoreArgs args = score_args(keys, own, heads, count + i, combine);
                  std::vector<float> scores = expected;
                  scores.resize((last + 15) / 16 * 16);
                  args.scores = scores.data();
                  args.accumulate = true;
                  score(*kernels, args);
                  std::copy_n(scores.begin(), count + i, expected.begin());
                }
                for (const bool accumulate : {false, true}) {
                  IndexScoreArgs args = score_args(keys, q, heads, count, combine);
                  std::vector<float> got((last + 15) / 16 * 16, accumulate ? 0.0f : -7.0f);
                  args.scores = got.data();
                  args.accumulate = accumulate;
                  args.queries = queries;
                  args.query_stride = stride;
                  score(*kernels, args);
                  got.resize(last);
                  ASSERT_EQ(got, expected) << kernels->name() << " dim " << dim << " heads " << heads
                                           << " queries " << queries << " count " << count;
                }
              }
            }
          }
        }
      }
    }
  }
}

// The first 16 keys score far below, or far above, the rest: the exponentials' first guess is no use.
TEST(IndexScores, SurviveAFarMaximum) {
  const auto reference = make_kernels("reference");
  const size_t dim = 32, heads = 3, count = 100;
  for (const float far : {-1.0f, 1.0f}) {
    for (const IndexKeyType type : {IndexKeyType::f32, IndexKeyType::i8, IndexKeyType::i4}) {
      Keys keys(type, dim, count, 5);
      for (size_t s = 0; s < 16; ++s) {
        const std::vector<float> key(dim, far * 40.0f);
        store_index_key(keys.data.data(), keys.scales.data(), type, dim, s, key.data());
      }
      const std::vector<float> q(heads * dim, 1.0f);  // scores of +-1,280 beside +-64
      const auto expected =
          scores_of(*reference, keys, q, heads, count, IndexCombine::softmax_sum, {}, false);
      const float total = std::accumulate(expected.begin(), expected.end(), 0.0f);
      EXPECT_NEAR(total, 3.0f, 1e-4f);
      EXPECT_GT(*std::max_element(expected.begin(), expected.end()), 0.0f);
      for (const auto& kernels : all_kernels()) {
        EXPECT_EQ(scores_of(*kernels, keys, q, heads, count, IndexCombine::softmax_sum, {}, false), expected)
            << kernels->name();
      }
    }
  }
}

// The formulas themselves, in double, on unrounded keys.
TEST(IndexScores, FollowTheFormulas) {
  const size_t dim = 32, heads = 3, count = 200;
  const std::vector<float> q = Random(2).values(heads * dim);
  const std::vector<float> w = {0.5f, -1.0f, 2.0f};
  for (const auto& kernels : all_kernels()) {
    for (const IndexKeyType type : {IndexKeyType::f32, IndexKeyType::i8, IndexKeyType::i4}) {
      const Keys keys(type, dim, count, 3);
      std::vector<std::vector<double>> dots(heads, std::vector<double>(count));
      std::vector<double> totals(heads);
      for (size_t h = 0; h < heads; ++h) {
        for (size_t s = 0; s < count; ++s) {
          for (size_t d = 0; d < dim; ++d)
            dots[h][s] += double(q[h * dim + d]) * double(keys.plain[s * dim + d]);
          totals[h] += std::exp(dots[h][s]);
        }
      }
      // int8 rounds q and k to 1 part in 254, int4 k to 1 part in 30.
      const double tolerance = type == IndexKeyType::f32 ? 1e-5 : type == IndexKeyType::i8 ? 0.15 : 2.0;
      const auto relu = scores_of(*kernels, keys, q, heads, count, IndexCombine::relu_sum, w, false);
      const auto soft = scores_of(*kernels, keys, q, heads, count, IndexCombine::softmax_sum, w, false);
      for (size_t s = 0; s < count; ++s) {
        double expected_relu = 0, expected_soft = 0;
        for (size_t h = 0; h < heads; ++h) {
          expected_relu += double(w[h]) * std::max(0.0, dots[h][s]);
          expected_soft += std::exp(dots[h][s]) / totals[h];
        }
        EXPECT_NEAR(relu[s], expected_relu, tolerance);
        if (type == IndexKeyType::f32) {
          EXPECT_NEAR(soft[s], expected_soft, 1e-5 * expected_soft);
          continue;
        }
        // The exponential is up to 6.2% too large, here and in the sum; rounding moves scores as above.
        const double rounding = type == IndexKeyType::i8 ? 0.15 : 1.0;
        EXPECT_NEAR(soft[s], expected_soft, (std::exp(rounding) * 1.062 - 1.0) * expected_soft);
      }
    }
  }
}

// Out of order sums are not allowed here: a token's index key must not depend on the chunk it came in.
TEST(MapHeads, BitwiseEqualToTheScalarTwin) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (const size_t tokens : {1, 2, 5, 64}) {
      for (const size_t heads_per_map : {1, 3}) {
        for (const size_t dim : {4, 16, 24, 32, 41}) {
          const size_t heads = 2 * heads_per_map, head_dim = 24;
          const std::vector<float> maps = Random(dim).values(2 * head_dim * dim);
          const std::vector<float> x = Random(tokens).values(tokens * heads * head_dim);
          std::vector<float> out(tokens * heads * dim, NAN), expected(out);
          kernels->map_heads(
              {out.data(), x.data(), maps.data(), tokens, heads, heads_per_map, head_dim, dim});
          reference->map_heads(
              {expected.data(), x.data(), maps.data(), tokens, heads, heads_per_map, head_dim, dim});
          EXPECT_EQ(out, expected) << kernels->name() << " " << tokens << " " << heads_per_map << " " << dim;
        }
      }
    }
  }
}

TEST(IndexKeys, RoundTripAndMove) {
  for (const IndexKeyType type : {IndexKeyType::f32, IndexKeyType::i8, IndexKeyType::i4}) {
    Keys keys(type, 69, 40, 4);
    std::vector<float> key(69), moved(69);
    for (size_t s = 0; s < 40; ++s) {
      load_index_key(key.data(), keys.view(), s);
      for (size_t d = 0; d < 69; ++d)
        EXPECT_NEAR(key[d], keys.plain[s * 69 + d],
                    type == IndexKeyType::f32  ? 0
                    : type == IndexKeyType::i8 ? 0.009
                                               : 0.136);
    }
    load_index_key(key.data(), keys.view(), 33);
    move_index_key(keys.data.data(), keys.scales.data(), type, 69, 33, 2);
    load_index_key(moved.data(), keys.view(), 2);
    EXPECT_EQ(key, moved);
  }
}

TEST(IndexKeys, NotFiniteOrZeroKeysRoundToZero) {
  int8_t codes[3];
  for (const float bad :
       {0.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const float values[] = {bad, bad, bad};
    EXPECT_EQ(round_to_int8(codes, values, 3), 0.0f);
    for (const int8_t code : codes) EXPECT_EQ(code, 0);
  }
}

std::vector<uint32_t> brute_top_k(const std::vector<float>& scores, size_t k) {
  std::vector<uint32_t> order(scores.size());
  for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    const uint32_t x = score_order(scores[a]), y = score_order(scores[b]);
    return x != y ? x > y : a > b;
  });
  order.resize(std::min(k, order.size()));
  std::sort(order.begin(), order.end());
  return order;
}

TEST(TopK, MatchesAFullSortIncludingTies) {
  const Threads threads(1);
  Random random(11);
  for (const auto& kernels : all_kernels()) {
    KernelScratch scratch(threads);
    for (const size_t count : {1, 5, 16, 17, 100, 1000, 5000}) {
      for (const int kind : {0, 1, 2, 3}) {
        std::vector<float> scores(count);
        for (float& s : scores) {
          s = kind == 0   ? random.uniform(-1, 1)
              : kind == 1 ? static_cast<float>(random.below(5)) - 2.0f  // many ties
              : kind == 2 ? 0.0f                                        // all tied
                          : std::exp(random.uniform(-40, 0));           // like a softmax
          if (kind == 1 && s == 0.0f && random.below(2) == 0) s = -0.0f;
          if (kind == 3 && random.below(50) == 0) s = NAN;
        }
        if (kind == 0) std::sort(scores.begin(), scores.end());  // sampling must survive sorted input
        for (const size_t k : {size_t{0}, size_t{1}, count / 8, count / 2, count - 1, count, count + 7}) {
          std::vector<uint32_t> out(std::max<size_t>(1, std::min(k, count)), 77);
          const size_t written = kernels->top_k(out.data(), scores.data(), count, k, scratch, 0);
          out.resize(written);
          ASSERT_EQ(out, brute_top_k(scores, k))
              << kernels->name() << " count " << count << " k " << k << " kind " << kind;
        }
      }
    }
  }
}

}  // namespace
}  // namespace keysieve::testing
