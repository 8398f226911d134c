#include "kernels/attention_problem.h"

namespace keysieve::testing {
namespace {

// Prefill attention of the family "avx512bf16", which multiplies bfloat16 values: against the reference on
// values rounded alike, so that only the rounding of softmax weights is left between the two.
class Bfloat16Attention : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::vector<std::string_view> names = available_kernels();
    if (std::ranges::find(names, "avx512bf16") == names.end()) GTEST_SKIP() << "no AVX-512 BF16 here";
    kernels = make_kernels("avx512bf16");
  }
  std::shared_ptr<const Kernels> kernels;
  const std::shared_ptr<const Kernels> reference = make_kernels("reference");
};

// A weight is off by at most half a step of 8 bits, 2^-9, and 1.2e-4 of its power of two; values are at
// most 1.
constexpr float kWeightRounding = 0x1p-9f + 2e-4f;

float rounded(float x) { return to_float(to_bfloat16(x)); }

// The same problem over fp32 rows that hold what the kernel makes of the stored ones. Queries are rounded as
// it rounds them, times scale and log2(e).
AttentionProblem rounded_twin(const AttentionProblem& from) {
  AttentionProblem twin = from;
  twin.config.type = KvType::f32;
  const size_t dim = from.config.head_dim;
  const size_t row = kv_row_bytes(from.config.type, dim);
  // Keys are rounded less the head's key in slot 3, which a softmax does not see.
  const auto widen = [&](const std::vector<std::byte>& rows, bool less_origin) {
    std::vector<std::byte> out(rows.size() / row * dim * sizeof(float));
    const auto value = [&](size_t i, size_t d) {
      const std::byte* at = rows.data() + i * row;
      if (from.config.type == KvType::f16) return to_float(reinterpret_cast<const Half*>(at)[d]);
      return static_cast<float>(reinterpret_cast<const int8_t*>(at)[d]) *
             *reinterpret_cast<const float*>(at + kv_scale_at(dim));
    };
    for (size_t i = 0; i < rows.size() / row; ++i) {
      const size_t origin = i / from.capacity * from.capacity + 3;
      for (size_t d = 0; d < dim; ++d) {
        reinterpret_cast<float*>(out.data())[i * dim + d] =
            rounded(less_origin ? value(i, d) - value(origin, d) : value(i, d));
      }
    }
    return out;
  };
  twin.keys = widen(from.keys, true);
  twin.values = widen(from.values, false);
  constexpr float kLog2E = 1.44269504f;
  for (float& q : twin.q) q = rounded(q * (from.scale * kLog2E)) / kLog2E;
  twin.scale = 1.0f;
  return twin;
}

const AttentionCase kRounded[] = {
    {9, 3, 64, 40, 100, KvType::f16},  {4, 1, 128, 8, 64, KvType::f16},  {4, 4, 80, 12, 90, KvType::f16},
    {5, 1, 64, 132, 7, KvType::f16},   {12, 2, 96, 64, 63, KvType::f16}, {14, 2, 64, 40, 700, KvType::f16},
    {16, 1, 128, 8, 513, KvType::f16}, {14, 2, 64, 40, 100, KvType::i8}, {6, 2, 32, 4, 300, KvType::i8},
    {4, 2, 20, 8, 90, KvType::i8},     {6, 2, 18, 16, 127, KvType::f16},
};

TEST_F(Bfloat16Attention, DenseMatchesTheRoundedTwin) {
  for (const AttentionCase& c : kRounded) {
    const AttentionProblem setup(c);
    EXPECT_LT(largest_difference(setup.run(*kernels, nullptr), rounded_twin(setup).run(*reference, nullptr)),
              kWeightRounding)
        << "heads " << c.heads << " dim " << c.head_dim << " queries " << c.queries << " past " << c.past;
  }
}

TEST_F(Bfloat16Attention, SharedSetsMatchTheRoundedTwin) {
  for (const AttentionCase& c : kRounded) {
    if (4 * c.heads / c.kv_heads < 8) continue;  // too few rows for a tile: fp32
    for (const size_t groups : {size_t{1}, c.kv_heads}) {
      const AttentionProblem setup(c);
      const BlockSelection selection(c, groups, 300, 4);
      EXPECT_LT(largest_difference(setup.run(*kernels, &selection.view),
                                   rounded_twin(setup).run(*reference, &selection.view)),
                kWeightRounding)
          << "heads " << c.heads << " dim " << c.head_dim << " queries " << c.queries << " past " << c.past
          << " groups " << groups;
    }
  }
}

// However a prompt is cut at the ends of query blocks, each query gets the same bits.
TEST_F(Bfloat16Attention, SharedSetsDoNotDependOnTheChunkOrOnThreads) {
  for (const AttentionCase& c : kRounded) {
    if (c.queries < 8) continue;
    const AttentionProblem setup(c);
    const BlockSelection selection(c, c.kv_heads, 300, 4);
    const std::vector<float> whole = setup.run(*kernels, &selection.view, 1);
    const size_t width = c.heads * c.head_dim;
    for (size_t first = 0; first < c.queries; first += 4) {
      const SelectionView own{selection.view.row(first, 0), selection.counts.data() + first * c.kv_heads,
                              c.kv_heads, selection.view.budget};
      const std::vector<float> part = setup.run_range(*kernels, &own, first, 4, 3);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + static_cast<ptrdiff_t>(first * width)))
          << "heads " << c.heads << " dim " << c.head_dim << " query " << first;
    }
  }
}

// Rows outside the sets are NaN here.
TEST_F(Bfloat16Attention, KeysNotSelectedAreNotRead) {
  const AttentionCase c{6, 2, 32, 20, 200, KvType::f16};
  AttentionProblem setup(c);
  const BlockSelection selection(c, 1, 64, 4);
  std::vector<bool> used(setup.capacity, false);
  for (size_t q = 0; q < c.queries; ++q) {
    for (size_t j = 0; j < selection.view.count(q, 0); ++j) used[selection.view.row(q, 0)[j]] = true;
  }
  for (size_t i = 0; i < c.kv_heads * setup.capacity; ++i) {
    if (used[i % setup.capacity]) continue;
    for (size_t d = 0; d < c.head_dim; ++d) {
      reinterpret_cast<Half*>(setup.keys.data())[i * c.head_dim + d] = to_half(NAN);
      reinterpret_cast<Half*>(setup.values.data())[i * c.head_dim + d] = to_half(NAN);
    }
  }
  for (const float v : setup.run(*kernels, &selection.view)) ASSERT_FALSE(std::isnan(v));
}

// What all keys of a head have in common costs no precision, whatever bfloat16 would make of it.
TEST_F(Bfloat16Attention, ACommonPartOfAllKeysDoesNotShow) {
  AttentionProblem setup({14, 2, 64, 12, 40, KvType::f16});
  auto* keys = reinterpret_cast<Half*>(setup.keys.data());
  for (size_t i = 0; i < setup.config.kv_heads * setup.capacity; ++i) {
    for (size_t d = 0; d < 16; ++d) keys[i * 64 + d] = to_half(to_float(keys[i * 64 + d]) + 250.0f);
  }
  EXPECT_LT(largest_difference(setup.run(*kernels, nullptr), setup.run(*reference, nullptr)), 6e-3f);
}

// One score towers over the others, as attention sinks do, and scores rise with the position, a little again
// and again, or so that each tile outweighs all before it.
TEST_F(Bfloat16Attention, LargeAndRisingScoresMatchTheRoundedTwin) {
  for (const float rise : {0.0f, 0.01f, 0.3f}) {
    AttentionProblem setup({4, 1, 64, 9, 400, KvType::f16});
    auto* keys = reinterpret_cast<Half*>(setup.keys.data());
    for (size_t slot = 0; slot < setup.capacity; ++slot) {
      const float steep = rise * static_cast<float>(slot);
      const float towering = slot == 150 ? 200.0f : slot < 64 ? -30.0f : 1.0f;
      for (size_t d = 0; d < 64; ++d) {
        Half& key = keys[slot * 64 + d];
        key = to_half(rise > 0 ? steep : to_float(key) * towering);
      }
    }
    for (float& q : setup.q) q = std::fabs(q);
    EXPECT_LT(largest_difference(setup.run(*kernels, nullptr), rounded_twin(setup).run(*reference, nullptr)),
              kWeightRounding)
        << "rise " << rise;
  }
}

}  // namespace
}  // namespace keysieve::testing
