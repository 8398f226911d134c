#include <cstdlib>

#include "kernels/fast_exp.h"
#include "kernels/kernel_test_support.h"
#include "kernels/simd/simd_kernels.h"
#include "keysieve/error.h"

namespace keysieve::testing {
namespace {

TEST(Elementwise, EveryLengthMatchesTheReference) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (size_t count = 1; count <= 33; ++count) {
      const std::vector<float> a = Random(count).values(count * 3, -6, 6);
      const std::vector<float> b = Random(count + 50).values(count * 3, -6, 6);
      std::vector<float> expected(count * 3), got(count * 3);
      reference->swiglu(expected.data(), a.data(), b.data(), count * 3);
      kernels->swiglu(got.data(), a.data(), b.data(), count * 3);
      EXPECT_LT(largest_difference(got, expected), 2e-5f) << kernels->name() << " swiglu " << count;

      reference->rms_norm(expected.data(), a.data(), b.data(), 1e-6f, 3, count);
      kernels->rms_norm(got.data(), a.data(), b.data(), 1e-6f, 3, count);
      EXPECT_LT(largest_difference(got, expected), 1e-5f) << kernels->name() << " rms_norm " << count;

      expected = a;
      got = a;
      reference->add(expected.data(), b.data(), count * 3);
      kernels->add(got.data(), b.data(), count * 3);
      EXPECT_EQ(got, expected);

      std::vector<std::byte> half_expected(count * 6), half_got(count * 6);
      reference->store_kv(half_expected.data(), KvType::f16, a.data(), count * 3);
      kernels->store_kv(half_got.data(), KvType::f16, a.data(), count * 3);
      EXPECT_EQ(half_got, half_expected) << kernels->name() << " fp16 rounding " << count;

      std::vector<std::byte> codes_expected(kv_row_bytes(KvType::i8, count * 3)),
          codes_got(codes_expected.size(), std::byte{1});
      reference->store_kv(codes_expected.data(), KvType::i8, a.data(), count * 3);
      kernels->store_kv(codes_got.data(), KvType::i8, a.data(), count * 3);
      EXPECT_EQ(codes_got, codes_expected) << kernels->name() << " int8 rounding " << count;
    }
  }
}

TEST(Elementwise, SwigluOfLargeGatesStaysFinite) {
  for (const auto& kernels : all_kernels()) {
    std::vector<float> gate = {-1000, -90, -88, 0, 88, 90, 1000, -20, -1000, -90, -88, 0, 88, 90, 1000, -20};
    const std::vector<float> up(gate.size(), 1.0f);
    std::vector<float> out(gate.size());
    kernels->swiglu(out.data(), gate.data(), up.data(), gate.size());
    for (size_t i = 0; i < gate.size(); ++i) EXPECT_NEAR(out[i], gate[i] > 0 ? gate[i] : 0.0f, 1e-4f);
  }
}

TEST(Elementwise, SoftmaxIsTheReferencesBitForBit) {
  const auto reference = make_kernels("reference");
  for (const auto& kernels : all_kernels()) {
    for (size_t count = 1; count <= 70; ++count) {
      for (const float spread : {1.0f, 30.0f, 2000.0f}) {  // at the last most underflow
        const std::vector<float> scores = Random(count).values(count, -spread, spread);
        const std::vector<float> before = Random(count + 9).values(count, 0, 1);
        for (const bool accumulate : {false, true}) {
          std::vector<float> expected = before, got = before, work = scores, other = scores;
          reference->add_softmax(expected.data(), work.data(), count, accumulate);
          kernels->add_softmax(got.data(), other.data(), count, accumulate);
          ASSERT_EQ(got, expected) << kernels->name() << ", " << count << " scores to " << spread;
          double sum = 0, total = 0;
          const float top = *std::max_element(scores.begin(), scores.end());
          for (const float score : scores) total += std::exp(static_cast<double>(score - top));
          for (size_t s = 0; s < count; ++s) {
            const double share = std::exp(static_cast<double>(scores[s] - top)) / total;
            sum += static_cast<double>(got[s] - (accumulate ? before[s] : 0.0f));
            EXPECT_NEAR(got[s] - (accumulate ? before[s] : 0.0f), share, 1e-6);
          }
          EXPECT_NEAR(sum, 1.0, 1e-5);
        }
      }
    }
  }
}

TEST(Elementwise, RopeRotatesHalfSplitPairs) {
  for (const auto& kernels : all_kernels()) {
    for (const size_t pairs : {1, 8, 16, 20, 32}) {
      const size_t head_dim = 2 * pairs + 3;  // three values stay as they are
      RopeTable table;
      for (size_t i = 0; i < pairs; ++i) table.frequency.push_back(std::pow(1e4f, -float(i) / float(pairs)));
      table.scale = 1.25f;
      const int32_t positions[] = {0, 7, 30000};
      const std::vector<float> before = Random(pairs).values(3 * 2 * head_dim);
      std::vector<float> x = before;
      kernels->rope(x.data(), 2 * head_dim, positions, 3, 2, head_dim, table);
      for (size_t t = 0; t < 3; ++t) {
        for (size_t h = 0; h < 2; ++h) {
          const float* in = &before[(t * 2 + h) * head_dim];
          const float* out = &x[(t * 2 + h) * head_dim];
          for (size_t i = 0; i < pairs; ++i) {
            const double angle = double(positions[t]) * double(table.frequency[i]);
            EXPECT_NEAR(out[i], 1.25 * (in[i] * std::cos(angle) - in[i + pairs] * std::sin(angle)), 1e-5);
            EXPECT_NEAR(out[i + pairs], 1.25 * (in[i + pairs] * std::cos(angle) + in[i] * std::sin(angle)),
                        1e-5);
          }
          for (size_t i = 2 * pairs; i < head_dim; ++i) EXPECT_EQ(out[i], in[i]);
        }
      }
    }
  }
}

TEST(FastExp, IsCloseToTheLibrarys) {
  for (float x = -80.0f; x <= 0.0f; x += 0.0137f) {
    EXPECT_NEAR(static_cast<double>(fast_exp(x)) / std::exp(static_cast<double>(x)), 1.0, 4e-7);
  }
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_LT(fast_exp(-1e30f), 1e-37f);
}

TEST(IndexExp, IsWithinItsBound) {
  for (const float unit : {1.0f, 0.004f}) {
    const float factor = unit * IndexExp::kScale;
    for (const float top : {0.0f, 3.0f, -20.0f, 500.0f}) {
      const float shift = index_exp_shift(top / unit, factor);
      float before = 0.0f;
      for (float x = -80.0f; x <= 0.0f; x += 0.0137f) {
        const float value = index_exp((x + top) / unit, factor, shift);
        const double ratio = static_cast<double>(value) / std::exp(static_cast<double>(x));
        // Beside the straight line's own 6.2%, scores of 500 and their products round by up to 1e-4.
        EXPECT_GE(ratio, 1.0 - 2e-4) << x;
        EXPECT_LE(ratio, 1.0616 + 2e-4) << x;
        EXPECT_GT(value, before);  // order within a head is kept
        before = value;
      }
    }
  }
  EXPECT_EQ(index_exp(-1e30f, IndexExp::kScale, index_exp_shift(0.0f, IndexExp::kScale)), 0.0f);
  EXPECT_EQ(index_exp(NAN, IndexExp::kScale, 0.0f), 0.0f);
}

TEST(Registry, TheForcedFamilyIsTheOneThatRuns) {
  for (const std::string_view name : available_kernels()) {
    EXPECT_EQ(make_kernels(name)->name(), name);
    ::setenv("KEYSIEVE_KERNELS", std::string(name).c_str(), 1);
    EXPECT_EQ(make_kernels("auto")->name(), name);
    ::unsetenv("KEYSIEVE_KERNELS");
  }
  EXPECT_EQ(make_kernels("auto")->name(), available_kernels().back());
}

TEST(Registry, AnUnknownFamilyIsRefusedWithTheList) {
  try {
    make_kernels("avx9000");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(std::string(error.what()).find("reference"), std::string::npos);
  }
}

// Tests over all families hold even when only the reference is there: whoever knows the machine says what it
// has.
TEST(Registry, TheMachineHasTheFamiliesExpectedOfIt) {
  const char* expected = std::getenv("KEYSIEVE_EXPECT_KERNELS");
  if (expected == nullptr) GTEST_SKIP() << "KEYSIEVE_EXPECT_KERNELS is not set";
  std::string names;
  for (const std::string_view name : available_kernels()) names.append(names.empty() ? "" : ",").append(name);
  EXPECT_EQ(names, expected);
}

TEST(Registry, AFamilyBeyondThisMachineIsRefusedWithWhatItNeeds) {
  const std::vector<std::string_view> available = available_kernels();
  bool refused = false;
  for (const std::string_view name : {"avx2", "avx512", "avx512bf16", "neon"}) {
    const std::string needs(simd_kernel_needs(name));  // empty: not for this architecture
    if (needs.empty() || std::ranges::find(available, name) != available.end()) continue;
    refused = true;
    try {
      make_kernels(name);
      FAIL() << name << " accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("which needs " + needs), std::string::npos) << error.what();
    }
  }
  if (!refused) GTEST_SKIP() << "this machine runs every family compiled in";
}

}  // namespace
}  // namespace keysieve::testing
