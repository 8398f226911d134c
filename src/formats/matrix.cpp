#include "formats/matrix.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "core/half.h"
#include "formats/block_codecs.h"
#include "formats/byte_reader.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

void convert_f32(std::span<float> values, std::span<const std::byte> bytes) {
  // An empty vector may have a null pointer, which memcpy does not take.
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size_bytes());
}

// `values` from elements of type Stored, which may be unaligned, by `convert`.
template <class Stored, class Convert>
void convert_each(std::span<float> values, std::span<const std::byte> bytes, Convert convert) {
  const std::byte* source = bytes.data();
  for (size_t i = 0; i < values.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, source + i * sizeof(Stored), sizeof(Stored));
    values[i] = convert(stored);
  }
}

template <class Stored>
void convert_number(std::span<float> values, std::span<const std::byte> bytes) {
  convert_each<Stored>(values, bytes, [](Stored stored) { return static_cast<float>(stored); });
}

void convert_to_floats(std::span<float> values, std::span<const std::byte> bytes, DType dtype,
                       const TensorInfo& tensor) {
  switch (dtype) {
    case DType::f32:
      return convert_f32(values, bytes);
    case DType::f16:
      return convert_each<Half>(values, bytes, [](Half h) { return to_float(h); });
    case DType::bf16:
      return convert_each<BFloat16>(values, bytes, [](BFloat16 b) { return to_float(b); });
    case DType::f64:
      return convert_number<double>(values, bytes);
    case DType::i8:
      return convert_number<int8_t>(values, bytes);
    case DType::i16:
      return convert_number<int16_t>(values, bytes);
    case DType::i32:
      return convert_number<int32_t>(values, bytes);
    case DType::i64:
      return convert_number<int64_t>(values, bytes);
    case DType::u8:
      return convert_number<uint8_t>(values, bytes);
    case DType::u16:
      return convert_number<uint16_t>(values, bytes);
    case DType::u32:
      return convert_number<uint32_t>(values, bytes);
    case DType::u64:
      return convert_number<uint64_t>(values, bytes);
    default:
      throw Error(ErrorKind::mismatch, tensor.subject(), fmt::format("type {}", to_string(dtype)),
                  "plain numbers");
  }
}

bool is_plain_float(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

// The shape and the row arithmetic that all sources share.
class FileMatrix : public MatrixSource {
 public:
  explicit FileMatrix(const TensorInfo& tensor, size_t columns)
      : tensor_(tensor), rows_(tensor.shape[0]), columns_(columns) {}

  size_t rows() const override { return rows_; }
  size_t columns() const override { return columns_; }
  uint64_t file_bytes() const override { return tensor_.data.size(); }

 protected:
  const TensorInfo& tensor() const { return tensor_; }

  void check_row(size_t row, size_t length) const {
    if (row >= rows_ || length != columns_) {
      throw Error(ErrorKind::usage, tensor_.subject(),
                  fmt::format("row {} of {} values asked for", row, length),
                  fmt::format("a row below {} of {} values", rows_, columns_));
    }
  }

  void check_groups(const AffineFormat& format, size_t scales, size_t biases) const {
    const size_t groups = columns_ / static_cast<size_t>(format.group);
    if (scales != groups || biases != groups) {
      throw Error(ErrorKind::usage, tensor_.subject(),
                  fmt::format("{} scales and {} biases asked for", scales, biases),
                  fmt::format("{} of each", groups));
    }
  }

  // The bytes of rows [first, first + count) in a tensor with this matrix's rows.
  std::span<const std::byte> row_bytes(const TensorInfo& part, size_t first, size_t count) const {
    const size_t stride = part.data.size() / std::max<size_t>(rows_, 1);
    const size_t begin = std::min(first, rows_);
    return part.data.subspan(begin * stride, std::min(count, rows_ - begin) * stride);
  }

  void release_rows(const TensorInfo& part, size_t first, size_t count) const {
    if (part.file != nullptr) part.file->release(row_bytes(part, first, count));
  }

 private:
  TensorInfo tensor_;  // [rows, ...]
  size_t rows_;
  size_t columns_;
};

class PlainMatrix final : public FileMatrix {
 public:
  explicit PlainMatrix(const TensorInfo& tensor) : FileMatrix(tensor, tensor.shape[1]) {}

  std::optional<AffineFormat> affine() const override { return std::nullopt; }
  DType plain_dtype() const override { return tensor().dtype; }
  void read_codes(size_t, std::span<uint8_t>, std::span<float>, std::span<float>) const override {
    throw Error(ErrorKind::usage, tensor().subject(),
                fmt::format("type {} has no codes", tensor().type_name()));
  }
  void read_values(size_t row, std::span<float> values) const override {
    check_row(row, values.size());
    convert_to_floats(values, row_bytes(tensor(), row, 1), tensor().dtype, tensor());
  }
  void release(size_t first, size_t count) const override { release_rows(tensor(), first, count); }
};

class BlockMatrix final : public FileMatrix {
 public:
  BlockMatrix(const TensorInfo& tensor, const BlockCodec& codec)
      : FileMatrix(tensor, tensor.shape[1]), codec_(codec), traits_(traits(tensor.dtype)) {}

  std::optional<AffineFormat> affine() const override { return codec_.format; }
  DType plain_dtype() const override { return DType::f32; }

  void read_codes(size_t row, std::span<uint8_t> codes, std::span<float> scales,
                  std::span<float> biases) const override {
    check_row(row, codes.size());
    check_groups(codec_.format, scales.size(), biases.size());
    codec_.decode(codes.data(), scales.data(), biases.data(), row_bytes(tensor(), row, 1).data(),
                  columns() / traits_.block);
  }

  void read_values(size_t row, std::span<float> values) const override {
    check_row(row, values.size());
    const std::byte* block = row_bytes(tensor(), row, 1).data();
    for (size_t first = 0; first < columns(); first += traits_.block, block += traits_.block_bytes) {
      read_block(values.subspan(first, traits_.block), block);
    }
  }

  void release(size_t first, size_t count) const override { release_rows(tensor(), first, count); }

 private:
  void read_block(std::span<float> values, const std::byte* block) const {
    std::array<uint8_t, 256> codes;
    std::array<float, 16> scales;
    std::array<float, 16> biases;
    codec_.decode(codes.data(), scales.data(), biases.data(), block, 1);
    const auto group = static_cast<size_t>(codec_.format.group);
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t g = i / group;
      // Scales have up to 19 significant bits and codes 6 to 8. Around the zero point the product is exact in
      // f32; scale * code + bias would round twice.
      values[i] = codec_.format.zero_point
                      ? scales[g] * static_cast<float>(static_cast<int>(codes[i]) - *codec_.format.zero_point)
                      : scales[g] * static_cast<float>(codes[i]) + biases[g];
    }
  }

  const BlockCodec& codec_;
  const DTypeTraits& traits_;
};

class MlxMatrix final : public FileMatrix {
 public:
  MlxMatrix(const TensorInfo& weight, const TensorInfo& scales, const TensorInfo& biases,
            MlxQuantization quantization)
      : FileMatrix(weight, weight.shape[1] * 32 / static_cast<size_t>(quantization.bits)),
        scales_(scales),
        biases_(biases),
        file_bits_(static_cast<size_t>(quantization.bits)),
        format_{.bits = std::max(quantization.bits, 4), .group = quantization.group_size, .zero_point = {}} {}

  uint64_t file_bytes() const override {
    return tensor().data.size() + scales_.data.size() + biases_.data.size();
  }
  std::optional<AffineFormat> affine() const override { return format_; }
  DType plain_dtype() const override { return DType::f32; }

  void read_codes(size_t row, std::span<uint8_t> codes, std::span<float> scales,
                  std::span<float> biases) const override {
    check_row(row, codes.size());
    check_groups(format_, scales.size(), biases.size());
    unpack(codes.data(), row_bytes(tensor(), row, 1));
    convert_to_floats(scales, row_bytes(scales_, row, 1), scales_.dtype, scales_);
    convert_to_floats(biases, row_bytes(biases_, row, 1), biases_.dtype, biases_);
  }

  void read_values(size_t row, std::span<float> values) const override {
    check_row(row, values.size());
    const auto group = static_cast<size_t>(format_.group);
    const size_t group_bytes = group * file_bits_ / 8;
    const auto packed = row_bytes(tensor(), row, 1);
    std::array<uint8_t, 128> codes;
    for (size_t g = 0; g < columns() / group; ++g) {
      unpack(codes.data(), packed.subspan(g * group_bytes, group_bytes));
      const float scale = element(scales_, row, g);
      const float bias = element(biases_, row, g);
      for (size_t i = 0; i < group; ++i) values[g * group + i] = scale * static_cast<float>(codes[i]) + bias;
    }
  }

  void release(size_t first, size_t count) const override {
    release_rows(tensor(), first, count);
    release_rows(scales_, first, count);
    release_rows(biases_, first, count);
  }

 private:
  void unpack(uint8_t* codes, std::span<const std::byte> packed) const {
    switch (file_bits_) {
      case 2:
        return unpack_run<2>(codes, packed);
      case 3:
        return unpack_run<3>(codes, packed);
      case 4:
        return unpack_nibbles(codes, packed);
      case 5:
        return unpack_run<5>(codes, packed);
      case 6:
        return unpack_run<6>(codes, packed);
      default:
        std::memcpy(codes, packed.data(), packed.size());
    }
  }

  // The usual width, byte by byte: unpack_run would load a model of 4.6 GB in 7.7 to 9.1 s in place of 5.4 to
  // 8.2 (two runs in turns, 2-core AMD EPYC, Zen 1, 2026-12-01).
  static void unpack_nibbles(uint8_t* codes, std::span<const std::byte> packed) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(packed.data());
    for (size_t i = 0; i < packed.size(); ++i) {
      codes[2 * i] = bytes[i] & 0x0fu;
      codes[2 * i + 1] = static_cast<uint8_t>(bytes[i] >> 4);
    }
  }

  // A row is one run of bits: a little-endian word holds its first code in its lowest bits, and codes of 3, 5
  // and 6 bits go on in the next word. Eight codes fill kBits bytes. Billions of codes are read while a model
  // loads, so the width is fixed at compile time (13.6 s otherwise, in the same runs).
  template <size_t kBits>
  static void unpack_run(uint8_t* codes, std::span<const std::byte> packed) {
    constexpr uint8_t kMask = (1u << kBits) - 1;
    for (size_t at = 0; at < packed.size(); at += kBits) {
      uint64_t eight = 0;
      std::memcpy(&eight, packed.data() + at, kBits);
      for (size_t i = 0; i < 8; ++i) *codes++ = static_cast<uint8_t>(eight >> (i * kBits)) & kMask;
    }
  }

  float element(const TensorInfo& part, size_t row, size_t group) const {
    const size_t width = traits(part.dtype).block_bytes;
    float value = 0;
    convert_to_floats({&value, 1}, row_bytes(part, row, 1).subspan(group * width, width), part.dtype, part);
    return value;
  }

  TensorInfo scales_;  // [rows, columns / group]
  TensorInfo biases_;  // [rows, columns / group]
  size_t file_bits_;
  AffineFormat format_;  // kernels keep codes of 2 and 3 bits in 4
};

void require_matrix(const TensorInfo& tensor) {
  require_readable(tensor);
  // With no zero in the shape, rows and columns are bounded by the file's size.
  if (tensor.shape.size() != 2 || tensor.elements() == 0) {
    throw Error(ErrorKind::mismatch, tensor.subject(), "shape " + shape_text(tensor.shape),
                "[rows, columns]");
  }
}

}  // namespace

std::optional<AffineFormat> affine_format(DType dtype) {
  const BlockCodec* codec = find_block_codec(dtype);
  if (codec == nullptr) return std::nullopt;
  return codec->format;
}

std::unique_ptr<MatrixSource> make_matrix(const TensorInfo& tensor) {
  require_matrix(tensor);
  if (const BlockCodec* codec = find_block_codec(tensor.dtype))
    return std::make_unique<BlockMatrix>(tensor, *codec);
  if (is_plain_float(tensor.dtype)) return std::make_unique<PlainMatrix>(tensor);
  throw Error(ErrorKind::unsupported, tensor.subject(),
              fmt::format("a matrix of type {}", tensor.type_name()), "f32, f16, bf16 or a GGUF block type");
}

std::unique_ptr<MatrixSource> make_mlx_matrix(const TensorInfo& weight, const TensorInfo& scales,
                                              const TensorInfo& biases, MlxQuantization quantization) {
  require_matrix(weight);
  const auto [group_size, bits] = quantization;
  if (!quantization.known()) {
    throw Error(ErrorKind::unsupported, weight.subject(),
                fmt::format("{} bits in groups of {}", bits, group_size),
                std::string(MlxQuantization::kKnown));
  }
  if (weight.dtype != DType::u32) {
    throw Error(ErrorKind::mismatch, weight.subject(), fmt::format("type {}", weight.type_name()),
                "u32 words of MLX codes");
  }
  // The product fits: the file holds these words.
  const uint64_t row_bits = weight.shape[1] * 32, columns = row_bits / static_cast<uint64_t>(bits);
  if (row_bits % static_cast<uint64_t>(bits) != 0 || columns % static_cast<uint64_t>(group_size) != 0) {
    throw Error(ErrorKind::mismatch, weight.subject(),
                fmt::format("{} columns of {} bits in {} words", columns, bits, weight.shape[1]),
                fmt::format("a multiple of the group of {}", group_size));
  }
  const std::array<uint64_t, 2> groups = {weight.shape[0], columns / static_cast<uint64_t>(group_size)};
  for (const TensorInfo* part : {&scales, &biases}) {
    require_shape(*part, groups);
    if (!is_plain_float(part->dtype)) {
      throw Error(ErrorKind::mismatch, part->subject(), fmt::format("type {}", part->type_name()),
                  "f16, bf16 or f32");
    }
  }
  return std::make_unique<MlxMatrix>(weight, scales, biases, quantization);
}

std::unique_ptr<MatrixSource> make_matrix(const HubFolder& folder, std::string_view module) {
  const TensorInfo& weight = folder.require_tensor(fmt::format("{}.weight", module));
  const auto quantization = folder.quantization(module);
  if (!quantization) return make_matrix(weight);
  return make_mlx_matrix(weight, folder.require_tensor(fmt::format("{}.scales", module)),
                         folder.require_tensor(fmt::format("{}.biases", module)), *quantization);
}

std::vector<float> read_vector(const TensorInfo& tensor) {
  require_readable(tensor);
  if (tensor.dtype == DType::boolean || is_block_quantized(tensor.dtype)) {
    throw Error(ErrorKind::mismatch, tensor.subject(), fmt::format("type {}", tensor.type_name()),
                "plain numbers");
  }
  std::vector<float> values(tensor.elements());
  convert_to_floats(values, tensor.data, tensor.dtype, tensor);
  return values;
}

}  // namespace keysieve
