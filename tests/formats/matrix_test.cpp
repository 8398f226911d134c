#include "formats/matrix.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "formats/gguf.h"
#include "support/files.h"

namespace keysieve {
namespace {

using testing::append;
using testing::as_bytes;
using testing::expect_error;
using testing::TempFolder;

// Value i of one block straight from the format's definition, one value at a time in double precision:
// written apart from the codecs, from the layouts that ggml documents.
struct BlockReader {
  const uint8_t* block;

  double half(size_t at) const {
    uint16_t bits;
    std::memcpy(&bits, block + at, 2);
    return to_float(Half{bits});
  }
  uint32_t word(size_t at) const {
    uint32_t value;
    std::memcpy(&value, block + at, 4);
    return value;
  }
  // Nibble i of 16 bytes at `at`: the low halves come first.
  int nibble32(size_t at, size_t i) const { return i < 16 ? block[at + i] % 16 : block[at + i - 16] / 16; }
  int fifth32(size_t at, size_t i) const { return static_cast<int>((word(at) >> i) & 1u) * 16; }
  // Scale (or minimum) j of the 12 packed bytes at `at`, by its bits: each is 6 bits wide.
  int k_scale(size_t at, size_t j) const {
    if (j < 4) return block[at + j] % 64;
    return block[at + j + 4] % 16 + block[at + j - 4] / 64 * 16;
  }
  int k_minimum(size_t at, size_t j) const {
    if (j < 4) return block[at + j + 4] % 64;
    return block[at + j + 4] / 16 + block[at + j] / 64 * 16;
  }
  // Nibble i of the 128 bytes at `at`: 64 values share 32 bytes.
  int nibble256(size_t at, size_t i) const {
    const int byte = block[at + i / 64 * 32 + i % 32];
    return i % 64 < 32 ? byte % 16 : byte / 16;
  }

  double q4_0(size_t i) const { return half(0) * (nibble32(2, i) - 8); }
  double q4_1(size_t i) const { return half(0) * nibble32(4, i) + half(2); }
  double q5_0(size_t i) const { return half(0) * (nibble32(6, i) + fifth32(2, i) - 16); }
  double q5_1(size_t i) const { return half(0) * (nibble32(8, i) + fifth32(4, i)) + half(2); }
  double q8_0(size_t i) const { return half(0) * static_cast<int8_t>(block[2 + i]); }
  double q4_k(size_t i) const {
    return half(0) * k_scale(4, i / 32) * nibble256(16, i) - half(2) * k_minimum(4, i / 32);
  }
  double q5_k(size_t i) const {
    const int fifth = (block[16 + i % 32] >> (i / 32)) % 2 * 16;
    return half(0) * k_scale(4, i / 32) * (nibble256(48, i) + fifth) - half(2) * k_minimum(4, i / 32);
  }
  double q6_k(size_t i) const {
    const size_t n = i / 128;       // half block
    const size_t p = i % 128 / 32;  // quarter of it
    const int low = block[64 * n + 32 * (p % 2) + i % 32];
    const int nibble = p < 2 ? low % 16 : low / 16;
    const int pair = (block[128 + 32 * n + i % 32] >> (2 * p)) % 4;
    return half(208) * static_cast<int8_t>(block[192 + i / 16]) * (nibble + 16 * pair - 32);
  }
  double q3_k(size_t i) const {
    const int pair = (block[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) % 4;
    const int third = (block[i % 32] >> (i / 32)) % 2;
    const size_t j = i / 16;  // scale
    const int low = j < 8 ? block[96 + j] % 16 : block[96 + j - 8] / 16;
    const int high = (block[104 + j % 4] >> (j / 4 * 2)) % 4;
    return half(108) * (low + 16 * high - 32) * (pair + 4 * third - 4);
  }
  static double nonlinear(int index) {
    constexpr std::array<int, 16> kValues = {-127, -104, -83, -65, -49, -35, -22, -10,
                                             1,    13,   25,  38,  53,  69,  89,  113};
    return kValues[static_cast<size_t>(index)];
  }
  double iq4_nl(size_t i) const { return half(0) * nonlinear(nibble32(2, i)); }
  double iq4_xs(size_t i) const {
    const size_t j = i / 32;  // scale
    const int low = j % 2 == 0 ? block[4 + j / 2] % 16 : block[4 + j / 2] / 16;
    const int high = static_cast<int>((block[2] + 256u * block[3]) >> (2 * j)) % 4;
    return half(0) * (low + 16 * high - 32) * nonlinear(nibble32(8 + 16 * j, i % 32));
  }
};

struct BlockCase {
  DType dtype;
  double (BlockReader::*value)(size_t) const;
  std::vector<size_t> halves;  // byte offsets of the f16 fields
  AffineFormat format;
};

std::ostream& operator<<(std::ostream& out, const BlockCase& c) { return out << to_string(c.dtype); }

// Random blocks whose f16 fields are finite, with every code pattern.
std::string random_blocks(const BlockCase& c, size_t blocks, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> scale(-0.5f, 0.5f);
  const DTypeTraits& t = traits(c.dtype);
  std::string bytes(blocks * t.block_bytes, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  for (size_t b = 0; b < blocks; ++b) {
    for (const size_t at : c.halves) {
      const Half value = to_half(scale(random));
      std::memcpy(bytes.data() + b * t.block_bytes + at, &value.bits, 2);
    }
  }
  return bytes;
}

TensorInfo tensor_of(std::string name, DType dtype, std::vector<uint64_t> shape, std::string_view bytes) {
  TensorInfo tensor;
  tensor.name = std::move(name);
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.data = as_bytes(bytes);
  return tensor;
}

class BlockMatrices : public ::testing::TestWithParam<BlockCase> {};

TEST_P(BlockMatrices, MatchTheDefinition) {
  const BlockCase& c = GetParam();
  const DTypeTraits& t = traits(c.dtype);
  constexpr size_t kRows = 5;
  const size_t columns = 3 * t.block;
  // One byte of padding in front: tensors may start anywhere.
  const std::string bytes = random_blocks(c, kRows * 3, 17);
  const std::string padded = "x" + bytes;
  const auto matrix =
      make_matrix(tensor_of("w", c.dtype, {kRows, columns}, std::string_view(padded).substr(1)));
  ASSERT_EQ(matrix->affine(), c.format);
  EXPECT_EQ(affine_format(c.dtype), c.format);
  EXPECT_EQ(matrix->rows(), kRows);
  EXPECT_EQ(matrix->columns(), columns);
  EXPECT_EQ(matrix->file_bytes(), bytes.size());

  const auto group = static_cast<size_t>(c.format.group);
  std::vector<uint8_t> codes(columns);
  std::vector<float> scales(columns / group);
  std::vector<float> biases(columns / group);
  std::vector<float> values(columns);
  for (size_t row = 0; row < kRows; ++row) {
    matrix->read_codes(row, codes, scales, biases);
    matrix->read_values(row, values);
    for (size_t i = 0; i < columns; ++i) {
      const auto* block =
          reinterpret_cast<const uint8_t*>(bytes.data()) + (row * 3 + i / t.block) * t.block_bytes;
      const double expected = (BlockReader{block}.*c.value)(i % t.block);
      const double from_codes =
          static_cast<double>(scales[i / group]) * codes[i] + static_cast<double>(biases[i / group]);
      // Exact in double: scale and bias are products of an f16 and at most 8 bits.
      ASSERT_EQ(from_codes, expected) << to_string(c.dtype) << " row " << row << " column " << i;
      ASSERT_LT(codes[i], 1 << c.format.bits);
      if (c.format.zero_point) {
        ASSERT_EQ(values[i], static_cast<float>(expected)) << "column " << i;
        ASSERT_EQ(biases[i / group], static_cast<float>(-*c.format.zero_point) * scales[i / group]);
      } else {
        // One rounding of the sum, and one of the product where it has more than 24 bits.
        const double terms =
            std::abs(static_cast<double>(scales[i / group]) * codes[i]) + std::abs(biases[i / group]);
        ASSERT_NEAR(values[i], expected, terms * 0x1p-23) << "column " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, BlockMatrices,
    ::testing::Values(BlockCase{DType::q4_0, &BlockReader::q4_0, {0}, {4, 32, 8}},
                      BlockCase{DType::q4_1, &BlockReader::q4_1, {0, 2}, {4, 32, {}}},
                      BlockCase{DType::q5_0, &BlockReader::q5_0, {0}, {5, 32, 16}},
                      BlockCase{DType::q5_1, &BlockReader::q5_1, {0, 2}, {5, 32, {}}},
                      BlockCase{DType::q8_0, &BlockReader::q8_0, {0}, {8, 32, 128}},
                      BlockCase{DType::q4_k, &BlockReader::q4_k, {0, 2}, {4, 32, {}}},
                      BlockCase{DType::q5_k, &BlockReader::q5_k, {0, 2}, {5, 32, {}}},
                      BlockCase{DType::q6_k, &BlockReader::q6_k, {208}, {6, 16, 32}},
                      BlockCase{DType::q3_k, &BlockReader::q3_k, {108}, {4, 16, 4}},
                      BlockCase{DType::iq4_nl, &BlockReader::iq4_nl, {0}, {8, 32, 128, true}},
                      BlockCase{DType::iq4_xs, &BlockReader::iq4_xs, {0}, {8, 32, 128, true}}),
    [](const auto& param_info) { return std::string(to_string(param_info.param.dtype)); });

TEST(PlainMatrix, ReadsRowsOfEveryFloatType) {
  const std::vector<float> expected = {1.5f, -2.0f, 0.0f, 0.25f, 96.0f, -0x1p-14f};  // exact in f16 and bf16
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    std::string bytes = "x";
    for (const float value : expected) {
      if (dtype == DType::f32) append(bytes, value);
      if (dtype == DType::f16) append(bytes, to_half(value).bits);
      if (dtype == DType::bf16) append(bytes, to_bfloat16(value).bits);
    }
    const auto matrix = make_matrix(tensor_of("w", dtype, {2, 3}, std::string_view(bytes).substr(1)));
    EXPECT_EQ(matrix->affine(), std::nullopt);
    EXPECT_EQ(matrix->plain_dtype(), dtype);
    std::vector<float> row(3);
    for (size_t r = 0; r < 2; ++r) {
      matrix->read_values(r, row);
      for (size_t i = 0; i < 3; ++i) EXPECT_EQ(row[i], expected[3 * r + i]) << to_string(dtype);
    }
    std::vector<uint8_t> codes(3);
    std::vector<float> none;
    expect_error(ErrorKind::usage, {"no codes"}, [&] { matrix->read_codes(0, codes, none, none); });
    expect_error(ErrorKind::usage, {"row 2"}, [&] { matrix->read_values(2, row); });
    row.resize(4);
    expect_error(ErrorKind::usage, {"4 values"}, [&] { matrix->read_values(0, row); });
  }
}

TEST(MakeMatrix, RefusesWhatIsNoMatrix) {
  const std::string bytes(96, '\0');
  expect_error(ErrorKind::mismatch, {"tensor v", "[24]"},
               [&] { make_matrix(tensor_of("v", DType::f32, {24}, bytes)); });
  expect_error(ErrorKind::mismatch, {"[2, 3, 4]"},
               [&] { make_matrix(tensor_of("e", DType::f32, {2, 3, 4}, bytes)); });
  expect_error(ErrorKind::mismatch, {"[0, 4]"}, [&] { make_matrix(tensor_of("z", DType::f32, {0, 4}, {})); });
  expect_error(ErrorKind::unsupported, {"i32"},
               [&] { make_matrix(tensor_of("i", DType::i32, {6, 4}, bytes)); });
}

TEST(BlockMatrix, ChecksTheCallersSpans) {
  const std::string bytes(2 * 34, '\0');
  const auto matrix = make_matrix(tensor_of("w", DType::q8_0, {2, 32}, bytes));
  std::vector<uint8_t> codes(32);
  std::vector<float> one(1);
  std::vector<float> two(2);
  EXPECT_NO_THROW(matrix->read_codes(1, codes, one, one));
  expect_error(ErrorKind::usage, {"row 2"}, [&] { matrix->read_codes(2, codes, one, one); });
  expect_error(ErrorKind::usage, {"2 scales"}, [&] { matrix->read_codes(0, codes, two, one); });
  expect_error(ErrorKind::usage, {"2 biases"}, [&] { matrix->read_codes(0, codes, one, two); });
  codes.resize(31);
  expect_error(ErrorKind::usage, {"31 values"}, [&] { matrix->read_codes(0, codes, one, one); });
  matrix->release(0, 100);  // not from a file: nothing to give back
}

struct MlxCase {
  int bits;
  int group;
  DType dtype;  // of scales and biases
};

class MlxMatrices : public ::testing::TestWithParam<MlxCase> {};

TEST_P(MlxMatrices, MatchTheDefinition) {
  const auto [bits, group, dtype] = GetParam();
  constexpr size_t kRows = 3;
  const size_t columns = 2 * static_cast<size_t>(group);
  const size_t row_words = columns * static_cast<size_t>(bits) / 32;
  std::mt19937 random(5);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<uint32_t> words(kRows * row_words);
  for (uint32_t& word : words) word = static_cast<uint32_t>(random());
  std::array<std::vector<float>, 2> parts;
  std::array<std::string, 2> encoded;
  for (size_t p = 0; p < 2; ++p) {
    for (size_t i = 0; i < kRows * 2; ++i) {
      const float value = uniform(random);
      if (dtype == DType::f32) append(encoded[p], value), parts[p].push_back(value);
      if (dtype == DType::f16)
        append(encoded[p], to_half(value).bits), parts[p].push_back(to_float(to_half(value)));
      if (dtype == DType::bf16) {
        append(encoded[p], to_bfloat16(value).bits);
        parts[p].push_back(to_float(to_bfloat16(value)));
      }
    }
  }
  const std::string packed(reinterpret_cast<const char*>(words.data()), words.size() * 4);
  const auto matrix = make_mlx_matrix(tensor_of("m.weight", DType::u32, {kRows, row_words}, packed),
                                      tensor_of("m.scales", dtype, {kRows, 2}, encoded[0]),
                                      tensor_of("m.biases", dtype, {kRows, 2}, encoded[1]),
                                      {.group_size = group, .bits = bits});
  EXPECT_EQ(matrix->columns(), columns);
  EXPECT_EQ(matrix->affine(), (AffineFormat{std::max(bits, 4), group, std::nullopt}));
  EXPECT_EQ(matrix->file_bytes(), packed.size() + encoded[0].size() + encoded[1].size());
  std::vector<uint8_t> codes(columns);
  std::vector<float> scales(2);
  std::vector<float> biases(2);
  std::vector<float> values(columns);
  for (size_t row = 0; row < kRows; ++row) {
    matrix->read_codes(row, codes, scales, biases);
    matrix->read_values(row, values);
    for (size_t i = 0; i < columns; ++i) {
      uint32_t code = 0;
      for (size_t b = 0; b < static_cast<size_t>(bits); ++b) {
        const size_t bit = i * static_cast<size_t>(bits) + b;
        code |= (words[row * row_words + bit / 32] >> (bit % 32) & 1u) << b;
      }
      const size_t g = i / static_cast<size_t>(group);
      ASSERT_EQ(codes[i], code);
      ASSERT_EQ(scales[g], parts[0][row * 2 + g]);
      ASSERT_EQ(biases[g], parts[1][row * 2 + g]);
      ASSERT_EQ(values[i], scales[g] * static_cast<float>(code) + biases[g]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, MlxMatrices,
                         ::testing::Values(MlxCase{4, 32, DType::f16}, MlxCase{4, 64, DType::bf16},
                                           MlxCase{4, 128, DType::f32}, MlxCase{8, 32, DType::bf16},
                                           MlxCase{8, 64, DType::f32}, MlxCase{8, 128, DType::f16},
                                           MlxCase{2, 64, DType::f16}, MlxCase{3, 32, DType::bf16},
                                           MlxCase{3, 128, DType::f16}, MlxCase{5, 64, DType::bf16},
                                           MlxCase{6, 32, DType::f16}, MlxCase{6, 128, DType::bf16}));

// What mlx 0.32.4 makes of one group: mx.quantize of the codes themselves, which lie on its grid.
TEST(MlxMatrix, ReadsWhatMlxWrote) {
  struct Recorded {
    uint32_t bits;
    std::vector<uint32_t> words;
    float scale, bias;
  };
  const Recorded recorded[] = {
      {2, {0x4e4e4e43u, 0x4e4e4e4eu}, -1.0f, 3.0f},
      {3, {0x3aa1e307u, 0xe33aa1e3u, 0xa1e33aa1u}, -1.0f, 7.0f},
      {4, {0xd83e940fu, 0x50b61c72u, 0xd83e94fau, 0x50b61c72u}, -1.0f, 15.0f},
      {5, {0x06ec901fu, 0x60b2e26eu, 0xd3eaa817u, 0xf2ea27e4u, 0x2c3668f0u}, -1.0f, 31.0f},
      {6, {0xce66403fu, 0xc5e2b780u, 0x560af604u, 0xdea74fcau, 0xc9f2f484u, 0x970ec645u}, -1.0f, 63.0f},
      {8,
       {0xd9e400ffu, 0xadb8c3ceu, 0x818c97a2u, 0x55606b76u, 0x29343f4au, 0xfd08131eu, 0xd1dce7f2u,
        0xa5b0bbc6u},
       -1.0f,
       255.0f},
  };
  for (const auto& [bits, words, scale, bias] : recorded) {
    SCOPED_TRACE(bits);
    const std::string packed(reinterpret_cast<const char*>(words.data()), words.size() * 4);
    std::string scales, biases;
    append(scales, scale);
    append(biases, bias);
    const auto matrix = make_mlx_matrix(tensor_of("m.weight", DType::u32, {1, words.size()}, packed),
                                        tensor_of("m.scales", DType::f32, {1, 1}, scales),
                                        tensor_of("m.biases", DType::f32, {1, 1}, biases),
                                        {.group_size = 32, .bits = static_cast<int>(bits)});
    std::vector<float> values(32);
    matrix->read_values(0, values);
    const uint32_t levels = 1u << bits;
    for (uint32_t i = 0; i < 32; ++i) {
      const uint32_t code = i == 0 ? 0 : i == 1 ? levels - 1 : (i * 11 + 5) % levels;
      EXPECT_EQ(values[i], static_cast<float>(code)) << i;
    }
  }
}

TEST(MlxMatrix, RefusesTriplesThatDisagree) {
  const std::string bytes(4096, '\0');
  const std::string_view all = bytes;
  const auto weight = tensor_of("w", DType::u32, {2, 8}, all.substr(0, 64));
  const auto groups = tensor_of("s", DType::f16, {2, 1}, all.substr(0, 4));
  const MlxQuantization four{.group_size = 64, .bits = 4};
  EXPECT_EQ(make_mlx_matrix(weight, groups, groups, four)->columns(), 64u);
  const auto refused = [&](ErrorKind kind, const std::vector<std::string>& parts, const TensorInfo& w,
                           const TensorInfo& s, const TensorInfo& b, MlxQuantization q) {
    expect_error(kind, parts, [&] { make_mlx_matrix(w, s, b, q); });
  };
  const auto wide = tensor_of("s", DType::f16, {2, 2}, all.substr(0, 8));
  const auto tall = tensor_of("b", DType::f16, {3, 1}, all.substr(0, 6));
  const auto whole = tensor_of("s", DType::i16, {2, 1}, all.substr(0, 4));
  const auto floats = tensor_of("w", DType::f32, {2, 8}, all.substr(0, 64));
  refused(ErrorKind::mismatch, {"tensor s", "[2, 2]", "[2, 1]"}, weight, wide, groups, four);
  refused(ErrorKind::mismatch, {"tensor b", "[3, 1]"}, weight, groups, tall, four);
  refused(ErrorKind::mismatch, {"tensor s", "i16"}, weight, whole, groups, four);
  refused(ErrorKind::mismatch, {"tensor w", "f32"}, floats, groups, groups, four);
  refused(ErrorKind::mismatch, {"32 columns"}, weight, groups, groups, {.group_size = 64, .bits = 8});
  refused(ErrorKind::mismatch, {"5 bits in 8 words"}, weight, groups, groups, {.group_size = 32, .bits = 5});
  refused(ErrorKind::unsupported, {"7 bits", "2 to 6 or 8"}, weight, groups, groups,
          {.group_size = 32, .bits = 7});
  refused(ErrorKind::unsupported, {"groups of 16"}, weight, groups, groups, {.group_size = 16, .bits = 4});
  refused(ErrorKind::unsupported, {"0 bits"}, weight, groups, groups, {.group_size = 0, .bits = 0});
}

TEST(ReadVector, ConvertsEveryPlainType) {
  std::string bytes;
  append<int8_t>(bytes, -7);
  EXPECT_EQ(read_vector(tensor_of("i8", DType::i8, {1}, bytes)).at(0), -7.0f);
  bytes.clear();
  append<double>(bytes, 0.1);
  append<double>(bytes, -3.0);
  EXPECT_EQ(read_vector(tensor_of("f64", DType::f64, {2}, bytes)), (std::vector<float>{0.1f, -3.0f}));
  bytes.clear();
  append<int64_t>(bytes, -(int64_t{1} << 40));
  EXPECT_EQ(read_vector(tensor_of("i64", DType::i64, {1}, bytes)).at(0), -0x1p40f);
  const std::string block(34, '\0');
  expect_error(ErrorKind::mismatch, {"q8_0"}, [&] { read_vector(tensor_of("q", DType::q8_0, {32}, block)); });
}

// release() must leave the content readable: the pages come back from the file.
TEST(Release, LeavesTheContentReadable) {
  const TempFolder folder;
  testing::GgufBuilder builder;
  std::string bytes;
  for (size_t i = 0; i < 64 * 1024; ++i) append(bytes, static_cast<float>(i));
  const auto path = folder.write("m.gguf", builder.tensor("w", {1024, 64}, 0, bytes).build());
  const GgufFile file(path);
  const auto matrix = make_matrix(file.require_tensor("w"));
  std::vector<float> row(1024);
  matrix->read_values(40, row);
  matrix->release(0, 64);
  matrix->release(63, 5);
  matrix->release(64, 1);
  matrix->read_values(40, row);
  EXPECT_EQ(row[3], 40.0f * 1024 + 3);
}

}  // namespace
}  // namespace keysieve
