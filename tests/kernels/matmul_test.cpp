#include "kernels/kernel_test_support.h"

namespace keysieve::testing {
namespace {

const AffineFormat kFormats[] = {
    {4, 32, 8},
    {4, 32, std::nullopt},
    {4, 64, std::nullopt},
    {4, 128, std::nullopt},
    {5, 32, 16},
    {5, 32, std::nullopt},
    {5, 64, std::nullopt},
    {6, 16, 32},
    {6, 32, std::nullopt},
    {6, 128, std::nullopt},
    {4, 16, 4},
    {8, 32, 128},
    {8, 32, 128, true},
    {8, 32, std::nullopt},
    {8, 64, std::nullopt},
    {8, 128, std::nullopt},
};

std::string describe(const AffineFormat& f) {
  return std::to_string(f.bits) + " bits, group " + std::to_string(f.group) +
         (f.zero_point ? ", zero point" : "") + (f.nonlinear ? ", nonlinear" : "");
}

// One token's activations as an int8 product sees them: rounded by groups of `shared` columns, but for
// `exact` values, each the largest of the group whose steps are coarsest at its turn.
std::vector<double> rounded_activations(std::vector<float> x, size_t shared, size_t exact) {
  std::vector<double> kept(x.size(), 0.0);
  const auto top_of = [&](size_t group) {
    float top = 0;
    for (size_t c = group * shared; c < (group + 1) * shared; ++c) top = std::max(top, std::fabs(x[c]));
    return top;
  };
  const auto step_of = [&](size_t group) { return top_of(group) / 127.0f; };
  for (; exact > 0; --exact) {
    size_t coarsest = 0;
    for (size_t g = 1; g < x.size() / shared; ++g) coarsest = step_of(g) > step_of(coarsest) ? g : coarsest;
    size_t largest = coarsest * shared;
    for (size_t c = largest; c < (coarsest + 1) * shared; ++c) {
      largest = std::fabs(x[c]) > std::fabs(x[largest]) ? c : largest;
    }
    kept[largest] = static_cast<double>(std::exchange(x[largest], 0.0f));
  }
  for (size_t c = 0; c < x.size(); ++c) {
    const float top = top_of(c / shared);
    const float code = top > 0 ? std::nearbyint(x[c] * (127.0f / top)) : 0.0f;
    kept[c] += static_cast<double>(code) * static_cast<double>(top / 127.0f);
  }
  return kept;
}

// How many columns of activations share a scale for this weight: on AVX-512 64 where the weight's do,
// else 32.
size_t rounded_columns(std::string_view family, const MemoryMatrix& w) {
  const AffineFormat format = w.affine().value();
  const bool has_wide_kind = format.bits == 4 || format.bits == 8;
  return family.starts_with("avx512") && has_wide_kind && format.group % 64 == 0 ? 64 : 32;
}

// What an int8-activation product gives: activations rounded by groups of `shared` columns, everything else
// exact (in double).
std::vector<float> quantized_product(const MemoryMatrix& w, const std::vector<float>& x, size_t tokens,
                                     size_t shared, size_t exact) {
  std::vector<float> out(tokens * w.rows());
  for (size_t t = 0; t < tokens; ++t) {
    const auto first = x.begin() + static_cast<ptrdiff_t>(t * w.columns());
    const std::vector<double> rounded = rounded_activations(
        {first, first + static_cast<ptrdiff_t>(w.columns())}, shared, exact * shared / 32);
    for (size_t r = 0; r < w.rows(); ++r) {
      double sum = 0;
      for (size_t c = 0; c < w.columns(); ++c) sum += static_cast<double>(w.value(r, c)) * rounded[c];
      out[t * w.rows() + r] = static_cast<float>(sum);
    }
  }
  return out;
}

std::vector<float> exact_product(const MemoryMatrix& w, const std::vector<float>& x, size_t tokens) {
  std::vector<float> out(tokens * w.rows());
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t r = 0; r < w.rows(); ++r) {
      double sum = 0;
      for (size_t c = 0; c < w.columns(); ++c) {
        sum += static_cast<double>(w.value(r, c)) * static_cast<double>(x[t * w.columns() + c]);
      }
      out[t * w.rows() + r] = static_cast<float>(sum);
    }
  }
  return out;
}

std::vector<float> run(const Kernels& kernels, const MemoryMatrix& w, const std::vector<float>& x,
                       size_t tokens, int thread_count = 2, size_t exact = 0) {
  const Threads threads(thread_count);
  KernelScratch scratch(threads);
  const auto packed = kernels.pack(w, {}, threads);
  EXPECT_EQ(packed->rows(), w.rows());
  EXPECT_EQ(packed->columns(), w.columns());
  std::vector<float> out(tokens * w.rows(), NAN);
  const MatmulJob job{out.data(), w.rows(), packed.get()};
  kernels.matmul({&job, 1}, x.data(), tokens, scratch, threads, exact);
  return out;
}

std::vector<float> first_rows(const std::vector<float>& values, size_t rows, size_t width) {
  return {values.begin(), values.begin() + static_cast<std::ptrdiff_t>(rows * width)};
}

TEST(Matmul, EveryQuantizedFormatMatchesItsTwinOnEveryFamily) {
  const std::vector<size_t> token_counts = {1, 2, 3, 4, 5, 6, 7, 8, 13, 19};
  const size_t most = token_counts.back();  // the twin is slow, so it goes over these once
  for (const auto& kernels : all_kernels()) {
    for (const AffineFormat& format : kFormats) {
      SCOPED_TRACE(std::string(kernels->name()) + ", " + describe(format));
      for (const size_t rows : {1, 16, 31, 48}) {
        for (const size_t columns : {128, 256, 384}) {
          const MemoryMatrix w = MemoryMatrix::quantized(format, rows, columns, rows * 1000 + columns);
          const std::vector<float> x = Random(rows + columns).values(most * columns, -3.0f, 3.0f);
          for (const size_t exact : {0, 3}) {
            const auto expected =
                kernels->name() == "reference"
                    ? exact_product(w, x, most)
                    : quantized_product(w, x, most, rounded_columns(kernels->name(), w), exact);
            for (const size_t tokens : token_counts) {
              // Sums of about 256 products of size 0.3: fp32 rounding of partial sums stays under 1e-4.
              EXPECT_LT(largest_difference(run(*kernels, w, first_rows(x, tokens, columns), tokens, 2, exact),
                                           first_rows(expected, tokens, rows)),
                        1e-4f)
                  << rows << " x " << columns << ", " << tokens << " tokens, " << exact << " exact";
            }
          }
        }
      }
    }
  }
}

// Two channels far larger than the rest: rounded with their groups they drown their neighbours.
TEST(Matmul, ExactValuesSpareTheirNeighboursTheRounding) {
  for (const auto& kernels : all_kernels()) {
    if (kernels->name() == "reference") continue;
    for (const AffineFormat& format : kFormats) {
      SCOPED_TRACE(std::string(kernels->name()) + ", " + describe(format));
      for (const size_t tokens : {1, 5, 20, 53}) {  // more panels and tokens than are gone over at once
        const MemoryMatrix w = MemoryMatrix::quantized(format, 150, 128, 9);
        std::vector<float> x = Random(tokens).values(tokens * 128);
        for (size_t t = 0; t < tokens; ++t) x[t * 128 + 3] = x[t * 128 + 70 + t] = 1000.0f;
        const std::vector<float> wanted = exact_product(w, x, tokens);
        const float rounded = largest_difference(run(*kernels, w, x, tokens), wanted);
        const float spared = largest_difference(run(*kernels, w, x, tokens, 2, 2), wanted);
        EXPECT_LT(spared, rounded / 50) << tokens << " tokens";
      }
    }
  }
}

TEST(Matmul, ExactValuesOfJobsThatAddAndOfInputsWithFewerThanThat) {
  for (const auto& kernels : all_kernels()) {
    SCOPED_TRACE(kernels->name());
    const Threads threads(2);
    KernelScratch scratch(threads);
    const MemoryMatrix w = MemoryMatrix::quantized({4, 32, std::nullopt}, 37, 64, 3);
    const auto packed = kernels->pack(w, {}, threads);
    for (const size_t tokens : {1, 19}) {
      std::vector<float> x(tokens * 64, 0.0f);
      for (size_t t = 0; t < tokens; ++t) x[t * 64 + t] = 5.0f;
      std::vector<float> out(tokens * 37, 2.0f);
      const MatmulJob job{out.data(), 37, packed.get(), true};
      kernels->matmul({&job, 1}, x.data(), tokens, scratch, threads, kMostExactValues);
      std::vector<float> wanted = exact_product(w, x, tokens);
      for (float& v : wanted) v += 2.0f;
      EXPECT_LT(largest_difference(out, wanted), 1e-5f);
    }
  }
}

TEST(Matmul, EveryPlainTypeMatchesOnEveryFamily) {
  for (const auto& kernels : all_kernels()) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      SCOPED_TRACE(std::string(kernels->name()) + ", " + std::string(to_string(dtype)));
      for (const size_t rows : {1, 17, 64}) {
        for (const size_t columns : {1, 7, 72, 128}) {
          for (const size_t tokens : {1, 2, 7, 12}) {
            const MemoryMatrix w = MemoryMatrix::plain(dtype, rows, columns, rows + columns);
            const std::vector<float> x = Random(tokens).values(tokens * columns);
            EXPECT_LT(largest_difference(run(*kernels, w, x, tokens), exact_product(w, x, tokens)), 2e-5f)
                << rows << " x " << columns << ", " << tokens << " tokens";
          }
        }
      }
    }
  }
}

// Codes at their extremes are where narrow sums would saturate.
TEST(Matmul, ExtremeCodesAndActivationsDoNotSaturate) {
  for (const auto& kernels : all_kernels()) {
    for (const AffineFormat& format : kFormats) {
      SCOPED_TRACE(std::string(kernels->name()) + ", " + describe(format));
      class AllOnes : public MatrixSource {
       public:
        explicit AllOnes(AffineFormat f) : format(f) {}
        size_t rows() const override { return 16; }
        size_t columns() const override { return 256; }
        uint64_t file_bytes() const override { return 0; }
        std::optional<AffineFormat> affine() const override { return format; }
        DType plain_dtype() const override { return DType::f32; }
        void read_codes(size_t, std::span<uint8_t> codes, std::span<float> scales,
                        std::span<float> biases) const override {
          std::fill(codes.begin(), codes.end(), highest_code(format));
          std::fill(scales.begin(), scales.end(), 1.0f);
          std::fill(biases.begin(), biases.end(), -static_cast<float>(format.zero_point.value_or(0)));
        }
        void read_values(size_t, std::span<float> values) const override {
          const int code = highest_code(format) - format.zero_point.value_or(0);
          std::fill(values.begin(), values.end(), static_cast<float>(code));
        }
        void release(size_t, size_t) const override {}
        AffineFormat format;
      } w(format);
      const Threads threads(1);
      KernelScratch scratch(threads);
      const auto packed = kernels->pack(w, {}, threads);
      for (const float sign : {1.0f, -1.0f}) {
        for (const size_t tokens : {1, 8, 19}) {
          const std::vector<float> x(tokens * 256, sign * 127.0f);
          std::vector<float> out(tokens * 16);
          const MatmulJob job{out.data(), 16, packed.get()};
          kernels->matmul({&job, 1}, x.data(), tokens, scratch, threads);
          const auto code = static_cast<float>(highest_code(format) - format.zero_point.value_or(0));
          for (const float v : out) EXPECT_FLOAT_EQ(v, sign * 127.0f * 256.0f * code);
        }
      }
    }
  }
}

TEST(Matmul, ATokensResultDoesNotDependOnItsCompanyOrOnThreads) {
  for (const auto& kernels : all_kernels()) {
    for (const AffineFormat& format : kFormats) {
      const MemoryMatrix w = MemoryMatrix::quantized(format, 80, 256, 5);
      const std::vector<float> x = Random(1).values(20 * 256);
      for (const size_t exact : {0, 2}) {
        SCOPED_TRACE(std::string(kernels->name()) + ", " + describe(format) + ", " + std::to_string(exact));
        const std::vector<float> together = run(*kernels, w, x, 20, 1, exact);
        EXPECT_EQ(together, run(*kernels, w, x, 20, 3, exact));
        for (const size_t tokens : {3, 8, 15}) {
          EXPECT_EQ(
              run(*kernels, w, x, tokens, 2, exact),
              std::vector<float>(together.begin(), together.begin() + static_cast<ptrdiff_t>(tokens * 80)));
        }
        for (const size_t t : {0, 5, 19}) {
          const auto first = x.begin() + static_cast<ptrdiff_t>(t * 256);
          const std::vector<float> alone = run(*kernels, w, {first, first + 256}, 1, 2, exact);
          EXPECT_EQ(alone, std::vector<float>(together.begin() + static_cast<ptrdiff_t>(t * 80),
                                              together.begin() + static_cast<ptrdiff_t>(t * 80 + 80)));
        }
      }
    }
  }
}

// Jobs share their rounded input: one with groups of 64 makes it coarser for all of them.
TEST(Matmul, JobsWithGroupsOf64AndOf32) {
  constexpr size_t kRows = 20, kColumns = 192, kTokens = 19;
  const MemoryMatrix wide = MemoryMatrix::quantized({4, 64, std::nullopt}, kRows, kColumns, 1);
  const MemoryMatrix narrow = MemoryMatrix::quantized({4, 32, 8}, kRows, kColumns, 2);
  const std::vector<float> x = Random(3).values(kTokens * kColumns, -3.0f, 3.0f);
  for (const auto& kernels : all_kernels()) {
    SCOPED_TRACE(kernels->name());
    const bool reference = kernels->name() == "reference";
    const Threads threads(2);
    KernelScratch scratch(threads);
    const auto packed_wide = kernels->pack(wide, {}, threads);
    const auto packed_narrow = kernels->pack(narrow, {}, threads);
    std::vector<float> out_wide(kTokens * kRows), out_narrow(kTokens * kRows);
    const MatmulJob jobs[] = {{out_narrow.data(), kRows, packed_narrow.get()},
                              {out_wide.data(), kRows, packed_wide.get()}};
    kernels->matmul(jobs, x.data(), kTokens, scratch, threads, 2);
    const auto twin = [&](const MemoryMatrix& w) {
      if (reference) return exact_product(w, x, kTokens);
      return quantized_product(w, x, kTokens, rounded_columns(kernels->name(), wide), 2);
    };
    EXPECT_LT(largest_difference(out_wide, twin(wide)), 1e-4f);
    EXPECT_LT(largest_difference(out_narrow, twin(narrow)), 1e-4f);
  }
}

// The projections of a SwiGLU in one job: the bits of two products and what joins them, beside another job.
TEST(Matmul, GatedJobsAreTwoProductsJoined) {
  const AffineFormat q4_1{4, 32, std::nullopt}, q8_0{8, 32, 128}, mlx{4, 64, std::nullopt};
  const size_t columns = 128;
  for (const size_t rows : {16, 150}) {  // 150: whole tiles of panels, and a last one that is not whole
    const MemoryMatrix pairs[][2] = {
        {MemoryMatrix::quantized(q4_1, rows, columns, 1), MemoryMatrix::quantized(q4_1, rows, columns, 2)},
        {MemoryMatrix::quantized(mlx, rows, columns, 3), MemoryMatrix::quantized(q8_0, rows, columns, 4)},
        {MemoryMatrix::plain(DType::bf16, rows, columns, 5), MemoryMatrix::quantized(q8_0, rows, columns, 6)},
        {MemoryMatrix::plain(DType::f16, rows, columns, 7),
         MemoryMatrix::plain(DType::f16, rows, columns, 8)}};
    for (const auto& kernels : all_kernels()) {
      for (const auto& [gate, up] : pairs) {
        for (const size_t tokens : {1, 5, 16, 17, 61}) {
          SCOPED_TRACE(std::string(kernels->name()) + ", " + std::to_string(tokens) + " tokens");
          const std::vector<float> x = Random(tokens).values(tokens * columns, -3.0f, 3.0f);
          const Threads threads(2);
          KernelScratch scratch(threads);
          const auto packed_gate = kernels->pack(gate, {}, threads);
          const auto packed_up = kernels->pack(up, {}, threads);
          const size_t stride = rows + 5;
          std::vector<float> expected(tokens * rows), up_alone(tokens * rows), beside(tokens * rows);
          const MatmulJob apart[] = {{expected.data(), rows, packed_gate.get()},
                                     {up_alone.data(), rows, packed_up.get()}};
          kernels->matmul(apart, x.data(), tokens, scratch, threads, 2);
          std::vector<float> got(tokens * stride, -7.0f);
          const MatmulJob joined[] = {{beside.data(), rows, packed_up.get()},
                                      {got.data(), stride, packed_gate.get(), false, packed_up.get()}};
          kernels->matmul(joined, x.data(), tokens, scratch, threads, 2);
          EXPECT_EQ(beside, up_alone);
          for (size_t t = 0; t < tokens; ++t) {
            float* row = expected.data() + t * rows;
            kernels->swiglu(row, row, up_alone.data() + t * rows, rows);
            EXPECT_EQ(std::vector<float>(row, row + rows),
                      std::vector<float>(got.data() + t * stride, got.data() + t * stride + rows));
            EXPECT_EQ(got[t * stride + rows], -7.0f) << "wrote past its rows";
          }
        }
      }
    }
  }
}

TEST(Matmul, SeveralJobsAndRowOrder) {
  for (const auto& kernels : all_kernels()) {
    const Threads threads(2);
    KernelScratch scratch(threads);
    const MemoryMatrix a = MemoryMatrix::quantized({4, 32, 8}, 32, 64, 1);
    const MemoryMatrix b = MemoryMatrix::plain(DType::f32, 20, 64, 2);
    std::vector<uint32_t> reversed(32);
    for (uint32_t i = 0; i < 32; ++i) reversed[i] = 31 - i;
    const auto straight = kernels->pack(a, {}, threads);
    const auto backward = kernels->pack(a, reversed, threads);
    const auto plain = kernels->pack(b, {}, threads);
    const std::vector<float> x = Random(3).values(5 * 64);
    std::vector<float> out_a(5 * 40, -7.0f), out_r(5 * 32), out_b(5 * 20);
    const MatmulJob jobs[] = {{out_a.data(), 40, straight.get()},
                              {out_r.data(), 32, backward.get()},
                              {out_b.data(), 20, plain.get()}};
    kernels->matmul(jobs, x.data(), 5, scratch, threads);
    for (size_t t = 0; t < 5; ++t) {
      for (size_t r = 0; r < 32; ++r) EXPECT_EQ(out_a[t * 40 + r], out_r[t * 32 + 31 - r]);
      for (size_t r = 32; r < 40; ++r) EXPECT_EQ(out_a[t * 40 + r], -7.0f) << "wrote past its rows";
    }
    EXPECT_LT(largest_difference(out_b, exact_product(b, x, 5)), 2e-5f);
  }
}

// bf16 scales span more than fp16's range; the unit keeps them.
TEST(Matmul, TinyAndHugeScalesSurvivePacking) {
  for (const float magnitude : {1e-9f, 1e6f}) {
    class Scaled : public MatrixSource {
     public:
      explicit Scaled(float m) : magnitude_(m) {}
      size_t rows() const override { return 16; }
      size_t columns() const override { return 64; }
      uint64_t file_bytes() const override { return 0; }
      std::optional<AffineFormat> affine() const override { return AffineFormat{4, 64, std::nullopt}; }
      DType plain_dtype() const override { return DType::f32; }
      void read_codes(size_t row, std::span<uint8_t> codes, std::span<float> scales,
                      std::span<float> biases) const override {
        for (size_t c = 0; c < codes.size(); ++c) codes[c] = static_cast<uint8_t>((c + row) % 16);
        scales[0] = magnitude_;
        biases[0] = -4.0f * magnitude_;
      }
      void read_values(size_t row, std::span<float> values) const override {
        for (size_t c = 0; c < values.size(); ++c) {
          values[c] = magnitude_ * (static_cast<float>((c + row) % 16) - 4.0f);
        }
      }
      void release(size_t, size_t) const override {}

     private:
      float magnitude_;
    } w(magnitude);
    for (const auto& kernels : all_kernels()) {
      const Threads threads(1);
      KernelScratch scratch(threads);
      const auto packed = kernels->pack(w, {}, threads);
      const std::vector<float> x(64, 127.0f);
      std::vector<float> out(16);
      const MatmulJob job{out.data(), 16, packed.get()};
      kernels->matmul({&job, 1}, x.data(), 1, scratch, threads);
      const float expected = 127.0f * 64.0f * 3.5f * magnitude;
      for (const float v : out) EXPECT_NEAR(v / expected, 1.0f, 1e-3f) << kernels->name();
    }
  }
}

}  // namespace
}  // namespace keysieve::testing
