#include "formats/npy.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "core/half.h"
#include "formats/byte_reader.h"
#include "formats/tensor_info.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr std::string_view kNpyMagic("\x93NUMPY", 6);
constexpr size_t kMaxNpyHeader = 65536;  // NumPy writes 118 bytes for ordinary arrays
constexpr size_t kMaxNpyDimensions = 64;

constexpr std::array<std::pair<std::string_view, DType>, 6> kNpyTypes = {{{"<f4", DType::f32},
                                                                          {"<f8", DType::f64},
                                                                          {"<f2", DType::f16},
                                                                          {"<i2", DType::i16},
                                                                          {"<i4", DType::i32},
                                                                          {"<i8", DType::i64}}};

// The header is a Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (48, 288), }
class NpyHeaderReader {
 public:
  NpyHeaderReader(std::string_view text, std::string_view subject) : text_(text), subject_(subject) {}

  std::optional<std::string_view> descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<uint64_t>> shape;

  void read() {
    expect('{');
    while (!accept('}')) {
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr" && !descr) {
        descr = quoted();
      } else if (key == "fortran_order" && !fortran_order) {
        fortran_order = boolean();
      } else if (key == "shape" && !shape) {
        shape = tuple();
      } else {
        fail();
      }
      if (accept('}')) break;
      expect(',');
    }
    skip_space();
    if (at_ != text_.size() || !descr || !fortran_order || !shape) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw Error(ErrorKind::format, subject_, fmt::format("the header is damaged at its byte {}", at_),
                "{'descr': ..., 'fortran_order': ..., 'shape': ...}");
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }

  bool accept(char wanted) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!accept(wanted)) fail();
  }

  std::string_view quoted() {
    expect('\'');
    const size_t end = text_.find('\'', at_);
    if (end == std::string_view::npos) fail();
    const std::string_view text = text_.substr(at_, end - at_);
    at_ = end + 1;
    return text;
  }

  bool boolean() {
    skip_space();
    for (const auto& [word, value] : {std::pair<std::string_view, bool>{"True", true}, {"False", false}}) {
      if (text_.substr(at_).starts_with(word)) {
        at_ += word.size();
        return value;
      }
    }
    fail();
  }

  std::vector<uint64_t> tuple() {
    std::vector<uint64_t> sizes;
    expect('(');
    while (!accept(')')) {
      skip_space();
      uint64_t size = 0;
      const char* first = text_.data() + at_;
      const auto [end, problem] = std::from_chars(first, text_.data() + text_.size(), size);
      if (problem != std::errc{} || sizes.size() == kMaxNpyDimensions) fail();
      at_ += static_cast<size_t>(end - first);
      sizes.push_back(size);
      if (accept(')')) break;
      expect(',');
    }
    return sizes;
  }

  std::string_view text_;
  std::string_view subject_;
  size_t at_ = 0;
};

// Elements of the shape; throws where the product passes 2^60.
uint64_t checked_elements(std::span<const uint64_t> shape, std::string_view subject) {
  constexpr uint64_t kMost = uint64_t{1} << 60;
  uint64_t count = 1;
  for (const uint64_t dimension : shape) {
    if (dimension == 0) return 0;
    if (dimension > kMost / count) {
      throw Error(ErrorKind::format, subject, "shape " + shape_text(shape), "a shape whose size fits memory");
    }
    count *= dimension;
  }
  return count;
}

// (), (48,) or (48, 288), as Python prints a tuple.
std::string tuple_text(std::span<const uint64_t> shape) {
  std::string text = shape_text(shape);
  if (shape.size() == 1) text.insert(text.size() - 1, ",");
  text.front() = '(';
  text.back() = ')';
  return text;
}

}  // namespace

NpyFile::NpyFile(const std::filesystem::path& path) : file_(path) { parse_header(file_.bytes()); }

void NpyFile::parse_header(std::span<const std::byte> bytes) {
  const std::string subject = file_.path().string();
  ByteReader reader(bytes, subject);
  const auto magic = reader.take(kNpyMagic.size(), "the npy magic");
  if (std::memcmp(magic.data(), kNpyMagic.data(), kNpyMagic.size()) != 0) {
    throw Error(ErrorKind::format, subject, "no NumPy magic at its start", "an .npy file");
  }
  const auto major = reader.read<uint8_t>("the npy version");
  reader.read<uint8_t>("the npy version");
  if (major < 1 || major > 3)
    throw Error(ErrorKind::unsupported, subject, fmt::format("npy version {}", major), "1 to 3");
  const uint32_t length = major == 1 ? reader.read<uint16_t>("the header's length")
                                     : reader.read<uint32_t>("the header's length");
  if (length > kMaxNpyHeader)
    throw Error(ErrorKind::format, subject, fmt::format("a header of {} bytes", length), "at most 65536");
  const auto text = reader.take(length, "the header");
  NpyHeaderReader header({reinterpret_cast<const char*>(text.data()), text.size()}, subject);
  header.read();

  const auto* type = std::ranges::find(kNpyTypes, *header.descr, &std::pair<std::string_view, DType>::first);
  if (type == kNpyTypes.end()) {
    throw Error(ErrorKind::unsupported, subject, fmt::format("type {}", *header.descr),
                "<f2, <f4, <f8, <i2, <i4 or <i8", "save it with .astype(numpy.float32)");
  }
  dtype_ = type->second;
  shape_ = std::move(*header.shape);
  const uint64_t elements = checked_elements(shape_, subject);
  if (*header.fortran_order && shape_.size() > 1) {
    throw Error(ErrorKind::unsupported, subject, "Fortran order", "C order",
                "save it with numpy.ascontiguousarray");
  }
  if (reader.remaining() != checked_bytes(dtype_, elements, subject)) {
    throw Error(ErrorKind::format, subject, fmt::format("{} bytes of data", reader.remaining()),
                fmt::format("{} for shape {} of {}", elements * traits(dtype_).block_bytes,
                            shape_text(shape_), to_string(dtype_)));
  }
  data_ = reader.take(reader.remaining(), "the data");
}

template <class T>
std::vector<T> NpyFile::convert() const {
  std::vector<T> values(data_.size() / traits(dtype_).block_bytes);
  const auto fill = [&]<class Stored>(Stored) {
    for (size_t i = 0; i < values.size(); ++i) {
      const auto stored = load<Stored>(data_.subspan(i * sizeof(Stored), sizeof(Stored)));
      if constexpr (std::same_as<Stored, Half>) {
        values[i] = static_cast<T>(to_float(stored));
      } else {
        values[i] = static_cast<T>(stored);
      }
    }
  };
  switch (dtype_) {
    case DType::f32:
      fill(float{});
      break;
    case DType::f64:
      fill(double{});
      break;
    case DType::f16:
      fill(Half{});
      break;
    case DType::i16:
      fill(int16_t{});
      break;
    case DType::i32:
      fill(int32_t{});
      break;
    default:
      fill(int64_t{});
      break;
  }
  return values;
}

std::vector<float> NpyFile::floats() const { return convert<float>(); }
std::vector<double> NpyFile::doubles() const { return convert<double>(); }

std::vector<int64_t> NpyFile::integers() const {
  if (dtype_ == DType::f16 || dtype_ == DType::f32 || dtype_ == DType::f64) {
    throw Error(ErrorKind::format, file_.path().string(), fmt::format("type {}", to_string(dtype_)),
                "integers");
  }
  return convert<int64_t>();
}

NpyWriter::NpyWriter(std::filesystem::path path, std::span<const uint64_t> shape)
    : path_(path), file_(std::move(path)) {
  remaining_ = checked_elements(shape, path_.string());
  std::string header =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': {}, }}", tuple_text(shape));
  // Magic, version and length take 10 bytes; NumPy wants the data at a multiple of 64 and a newline before
  // them.
  const size_t total = (10 + header.size() + 1 + 63) / 64 * 64;
  header.resize(total - 10 - 1, ' ');
  header += '\n';
  if (header.size() > std::numeric_limits<uint16_t>::max()) {
    throw Error(ErrorKind::usage, path_.string(), fmt::format("a shape of {} dimensions", shape.size()),
                "fewer");
  }
  const auto length = static_cast<uint16_t>(header.size());
  file_.write(kNpyMagic);
  file_.write(std::string_view("\x01\x00", 2));
  file_.write(std::as_bytes(std::span(&length, 1)));
  file_.write(header);
}

void NpyWriter::write(std::span<const float> values) {
  if (values.size() > remaining_) {
    throw Error(ErrorKind::usage, path_.string(), fmt::format("{} more values", values.size()),
                fmt::format("{} to fill the shape", remaining_));
  }
  file_.write(std::as_bytes(values));
  remaining_ -= values.size();
}

void NpyWriter::commit() {
  if (remaining_ != 0) {
    throw Error(ErrorKind::usage, path_.string(), fmt::format("{} values are missing", remaining_),
                "a whole array");
  }
  file_.commit();
}

}  // namespace keysieve
