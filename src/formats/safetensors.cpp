#include "formats/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "core/file_io.h"
#include "core/json.h"
#include "formats/byte_reader.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr size_t kMaxDimensions = 64;         // real tensors have at most 5

struct SafetensorsType {
  std::string_view name;  // as the header spells it
  std::string_view lower_case;
  uint32_t bits;
  std::optional<DType> dtype;
};

constexpr std::array<SafetensorsType, 21> kTypes = {{
    {"F32", "f32", 32, DType::f32},
    {"F16", "f16", 16, DType::f16},
    {"BF16", "bf16", 16, DType::bf16},
    {"F64", "f64", 64, DType::f64},
    {"I8", "i8", 8, DType::i8},
    {"I16", "i16", 16, DType::i16},
    {"I32", "i32", 32, DType::i32},
    {"I64", "i64", 64, DType::i64},
    {"U8", "u8", 8, DType::u8},
    {"U16", "u16", 16, DType::u16},
    {"U32", "u32", 32, DType::u32},
    {"U64", "u64", 64, DType::u64},
    {"BOOL", "bool", 8, DType::boolean},
    {"F8_E4M3", "f8_e4m3", 8, {}},
    {"F8_E5M2", "f8_e5m2", 8, {}},
    {"F8_E8M0", "f8_e8m0", 8, {}},
    {"F6_E2M3", "f6_e2m3", 6, {}},
    {"F6_E3M2", "f6_e3m2", 6, {}},
    {"F4", "f4", 4, {}},
    {"C64", "c64", 64, {}},
    {"F8_E4M3FNUZ", "f8_e4m3fnuz", 8, {}},
}};

struct HeaderEntry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> offsets;  // [begin, end) in the data
  bool has_dtype = false;
  bool has_shape = false;
  bool has_offsets = false;
};

// Reads the header as a stream of JSON events. A tree would cost many times the header's size and would hide
// duplicate keys; this refuses whatever is not {name: {dtype, shape, data_offsets}} at the first wrong byte.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(std::string_view subject, std::map<std::string, std::string>& metadata)
      : subject_(subject), metadata_(metadata) {}

  std::vector<HeaderEntry> take_entries() { return std::move(entries_); }

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override { return unexpected(fmt::format("{}", value)); }
  bool number_float(number_float_t, const string_t& text) override { return unexpected(text); }
  bool binary(binary_t&) override { return unexpected("binary"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ != State::shape && state_ != State::offsets) return unexpected(fmt::format("{}", value));
    auto& list = state_ == State::shape ? entries_.back().shape : entries_.back().offsets;
    const size_t limit = state_ == State::shape ? kMaxDimensions : 2;
    if (list.size() == limit) {
      fail(fmt::format("tensor {} has more than {} {}", entries_.back().name, limit,
                       state_ == State::shape ? "dimensions" : "data_offsets"));
    }
    list.push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (state_ == State::metadata) {
      if (!metadata_.emplace(key_, value).second) fail(fmt::format("__metadata__ names {} twice", key_));
      return true;
    }
    if (state_ != State::entry || key_ != "dtype") return unexpected("a string");
    entries_.back().dtype = std::move(value);
    return true;
  }

  bool start_object(size_t) override {
    switch (state_) {
      case State::start:
        state_ = State::header;
        return true;
      case State::header:
        if (key_ == "__metadata__") {
          if (std::exchange(metadata_seen_, true)) fail("__metadata__ appears twice");
          state_ = State::metadata;
        } else {
          if (!names_.insert(key_).second)
            fail(fmt::format("tensor {} appears twice", key_), "every name once");
          entries_.push_back({.name = key_, .dtype = {}, .shape = {}, .offsets = {}});
          state_ = State::entry;
        }
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool key(string_t& value) override {
    key_ = value;
    if (state_ == State::entry) {
      HeaderEntry& entry = entries_.back();
      bool* seen = value == "dtype"          ? &entry.has_dtype
                   : value == "shape"        ? &entry.has_shape
                   : value == "data_offsets" ? &entry.has_offsets
                                             : nullptr;
      if (seen == nullptr)
        fail(fmt::format("tensor {} has \"{}\"", entry.name, value), "dtype, shape and data_offsets");
      if (std::exchange(*seen, true)) fail(fmt::format("tensor {} has two \"{}\"", entry.name, value), "one");
    }
    return true;
  }

  bool end_object() override {
    if (state_ == State::entry) {
      const HeaderEntry& entry = entries_.back();
      if (!entry.has_dtype || !entry.has_shape || entry.offsets.size() != 2) {
        fail(fmt::format("tensor {} is incomplete", entry.name), "dtype, shape and two data_offsets");
      }
    }
    state_ = state_ == State::header ? State::done : State::header;
    return true;
  }

  bool start_array(size_t) override {
    if (state_ != State::entry || key_ == "dtype") return unexpected("an array");
    state_ = key_ == "shape" ? State::shape : State::offsets;
    return true;
  }

  bool end_array() override {
    state_ = State::entry;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    fail(fmt::format("the header is no valid JSON at its byte {}", position));
  }

 private:
  enum class State { start, header, metadata, entry, shape, offsets, done };

  [[noreturn]] void fail(std::string_view found, std::string_view expected = {}) const {
    throw Error(ErrorKind::format, subject_, found, expected);
  }

  bool unexpected(std::string_view what) const {
    fail(fmt::format("the header has {} at \"{}\"", what, key_),
         "{name: {dtype: string, shape: [sizes], data_offsets: [begin, end]}}");
  }

  std::string_view subject_;
  std::map<std::string, std::string>& metadata_;
  std::vector<HeaderEntry> entries_;
  std::unordered_set<std::string> names_;
  std::string key_;
  State state_ = State::start;
  bool metadata_seen_ = false;
};

// nullopt where the product does not fit 60 bits; there is room for times 8 then.
std::optional<uint64_t> element_count(std::span<const uint64_t> shape) {
  if (std::ranges::find(shape, 0u) != shape.end()) return 0;
  constexpr uint64_t kMost = uint64_t{1} << 57;
  uint64_t count = 1;
  for (const uint64_t dimension : shape) {
    if (dimension > kMost / count) return std::nullopt;
    count *= dimension;
  }
  return count;
}

TensorInfo to_tensor(HeaderEntry&& entry, std::span<const std::byte> data, const MappedFile* file,
                     std::string_view subject) {
  const auto fail = [&](std::string_view found, std::string_view expected) {
    throw Error(ErrorKind::format, subject, fmt::format("tensor {}: {}", entry.name, found), expected);
  };
  const auto* type = std::ranges::find(kTypes, std::string_view(entry.dtype), &SafetensorsType::name);
  if (type == kTypes.end())
    fail(fmt::format("dtype \"{}\"", entry.dtype), "a safetensors dtype such as F32 or BF16");
  const auto [begin, end] = std::pair(entry.offsets[0], entry.offsets[1]);
  if (begin > end || end > data.size()) {
    fail(fmt::format("data_offsets [{}, {}] in {} bytes of data", begin, end, data.size()),
         "a part of the data");
  }
  const auto count = element_count(entry.shape);
  if (!count || *count * type->bits % 8 != 0 || *count * type->bits / 8 != end - begin) {
    fail(fmt::format("shape {} of {} in {} bytes", shape_text(entry.shape), type->name, end - begin),
         count ? fmt::format("{} bytes", *count * type->bits / 8) : "a shape whose size fits memory");
  }
  TensorInfo tensor;
  tensor.name = std::move(entry.name);
  if (type->dtype) {
    tensor.dtype = *type->dtype;
  } else {
    tensor.unsupported_type = type->lower_case;
  }
  tensor.shape = std::move(entry.shape);
  tensor.data = data.subspan(begin, end - begin);
  tensor.file = file;
  return tensor;
}

// The format allows neither overlap nor hole: sorted, the tensors tile the data.
void check_tiling(std::span<const HeaderEntry> entries, uint64_t data_size, std::string_view subject) {
  uint64_t covered = 0;
  for (const HeaderEntry& entry : entries) {
    if (entry.offsets[0] != covered) {
      throw Error(ErrorKind::format, subject,
                  fmt::format("tensor {} begins at byte {} of the data", entry.name, entry.offsets[0]),
                  fmt::format("{}, without overlap or hole", covered));
    }
    covered = entry.offsets[1];
  }
  if (covered != data_size) {
    throw Error(ErrorKind::format, subject, fmt::format("the tensors end at byte {} of the data", covered),
                fmt::format("{}, the end of the file", data_size),
                "fetch it again: it is truncated or damaged");
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(std::make_unique<MappedFile>(path)), bytes_(file_->bytes()), subject_(path.string()) {
  parse();
}

SafetensorsFile SafetensorsFile::from_bytes(std::span<const std::byte> bytes, std::string subject) {
  SafetensorsFile file;
  file.bytes_ = bytes;
  file.subject_ = std::move(subject);
  file.parse();
  return file;
}

void SafetensorsFile::parse() {
  ByteReader reader(bytes_, subject_);
  const auto length = reader.read<uint64_t>("the header's length");
  if (length < 2 || length > kMaxHeader) {
    throw Error(ErrorKind::format, subject_, fmt::format("a header of {} bytes", length),
                fmt::format("2 to {}, as safetensors files have", kMaxHeader));
  }
  const auto header = reader.take(length, "the header");
  const auto data = bytes_.subspan(reader.position());
  const std::string_view text(reinterpret_cast<const char*>(header.data()), header.size());
  if (text.front() != '{') {
    throw Error(ErrorKind::format, subject_, "the header does not begin with {", "a safetensors file");
  }

  HeaderReader handler(subject_, metadata_);
  Json::sax_parse(text, &handler);
  std::vector<HeaderEntry> entries = handler.take_entries();
  std::ranges::sort(entries, {}, [](const HeaderEntry& entry) {
    return std::tuple(entry.offsets[0], entry.offsets[1], std::string_view(entry.name));
  });
  tensors_.reserve(entries.size());
  check_tiling(entries, data.size(), subject_);
  for (HeaderEntry& entry : entries) {
    tensors_.push_back(to_tensor(std::move(entry), data, file_.get(), subject_));
    index_.emplace(tensors_.back().name, tensors_.size() - 1);
  }
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const TensorInfo& SafetensorsFile::require_tensor(std::string_view name) const {
  if (const TensorInfo* tensor = find(name)) return *tensor;
  throw Error(ErrorKind::format, subject_, fmt::format("no tensor {}", name));
}

namespace {

// Order of the data: wider types first, so that each tensor begins at a multiple of its element size.
std::vector<size_t> data_order(std::span<const TensorToWrite> tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, {}, [&](size_t i) {
    return std::pair(-static_cast<int64_t>(traits(tensors[i].dtype).block_bytes), i);
  });
  return order;
}

void check_writable(const TensorToWrite& tensor, std::string_view subject) {
  const auto fail = [&](std::string_view found, std::string_view expected) {
    throw Error(ErrorKind::usage, subject, fmt::format("tensor {}: {}", tensor.name, found), expected);
  };
  if (is_block_quantized(tensor.dtype)) fail(fmt::format("type {}", to_string(tensor.dtype)), "a plain type");
  if (tensor.name == "__metadata__") fail("a reserved name", "another");
  const auto count = element_count(tensor.shape);
  if (!count || *count * traits(tensor.dtype).block_bytes != tensor.data.size()) {
    fail(fmt::format("shape {} of {} in {} bytes", shape_text(tensor.shape), to_string(tensor.dtype),
                     tensor.data.size()),
         "bytes that agree with the shape");
  }
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string subject = path.string();
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  const std::vector<size_t> order = data_order(tensors);
  uint64_t offset = 0;
  for (const size_t i : order) {
    const TensorToWrite& tensor = tensors[i];
    check_writable(tensor, subject);
    if (header.contains(tensor.name)) {
      throw Error(ErrorKind::usage, subject, fmt::format("tensor {} is given twice", tensor.name),
                  "every name once");
    }
    const auto* type = std::ranges::find(kTypes, std::optional(tensor.dtype), &SafetensorsType::dtype);
    header[tensor.name] = {{"dtype", type->name},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.data.size()}}};
    offset += tensor.data.size();
  }

  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception&) {
    throw Error(ErrorKind::usage, subject, "a tensor name or metadata is no UTF-8", "UTF-8");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begin at a multiple of 8
  const uint64_t length = text.size();
  AtomicFileWriter file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(text);
  for (const size_t i : order) file.write(tensors[i].data);
  file.commit();
}

}  // namespace keysieve
