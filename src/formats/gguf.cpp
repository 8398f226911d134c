#include "formats/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <utility>

#include "formats/byte_reader.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

constexpr uint32_t kGgufMagic = 0x46554747;              // "GGUF"
constexpr uint32_t kDefaultAlignment = 32;               // where general.alignment is absent
constexpr uint32_t kMaxGgufDimensions = 4;               // ggml's limit
constexpr uint64_t kSmallestEntry = 8 + 4 + 1;           // key length, type, a one-byte value
constexpr uint64_t kSmallestTensor = 8 + 4 + 8 + 4 + 8;  // name length, rank, one dimension, type, offset

// A ggml tensor type. Types without a DType are listed by `inspect` and refused when used.
struct GgmlType {
  uint32_t id;
  std::string_view name;
  uint32_t block;
  uint32_t block_bytes;
  std::optional<DType> dtype;
};

constexpr std::array<GgmlType, 33> kGgmlTypes = {{
    {0, "f32", 1, 4, DType::f32},
    {1, "f16", 1, 2, DType::f16},
    {2, "q4_0", 32, 18, DType::q4_0},
    {3, "q4_1", 32, 20, DType::q4_1},
    {6, "q5_0", 32, 22, DType::q5_0},
    {7, "q5_1", 32, 24, DType::q5_1},
    {8, "q8_0", 32, 34, DType::q8_0},
    {9, "q8_1", 32, 36, {}},
    {10, "q2_k", 256, 84, {}},
    {11, "q3_k", 256, 110, DType::q3_k},
    {12, "q4_k", 256, 144, DType::q4_k},
    {13, "q5_k", 256, 176, DType::q5_k},
    {14, "q6_k", 256, 210, DType::q6_k},
    {15, "q8_k", 256, 292, {}},
    {16, "iq2_xxs", 256, 66, {}},
    {17, "iq2_xs", 256, 74, {}},
    {18, "iq3_xxs", 256, 98, {}},
    {19, "iq1_s", 256, 50, {}},
    {20, "iq4_nl", 32, 18, DType::iq4_nl},
    {21, "iq3_s", 256, 110, {}},
    {22, "iq2_s", 256, 82, {}},
    {23, "iq4_xs", 256, 136, DType::iq4_xs},
    {24, "i8", 1, 1, DType::i8},
    {25, "i16", 1, 2, DType::i16},
    {26, "i32", 1, 4, DType::i32},
    {27, "i64", 1, 8, DType::i64},
    {28, "f64", 1, 8, DType::f64},
    {29, "iq1_m", 256, 56, {}},
    {30, "bf16", 1, 2, DType::bf16},
    {34, "tq1_0", 256, 54, {}},
    {35, "tq2_0", 256, 66, {}},
    {39, "mxfp4", 32, 17, {}},
    {40, "nvfp4", 64, 36, {}},
}};

const GgmlType* find_ggml_type(uint32_t id) {
  const auto* found = std::ranges::find(kGgmlTypes, id, &GgmlType::id);
  return found == kGgmlTypes.end() ? nullptr : found;
}

// Bytes of a scalar of this type; 0 for strings and arrays.
uint64_t scalar_bytes(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    case GgufType::string:
    case GgufType::array:
      return 0;
  }
  return 0;
}

}  // namespace

class GgufParser {
 public:
  explicit GgufParser(GgufFile& file) : file_(file), reader_(file.bytes_, file.subject_) {}

  void parse() {
    const auto [tensor_count, entry_count] = read_header();
    read_metadata(entry_count);
    read_tensor_list(tensor_count);
    place_data();
  }

 private:
  // A tensor's bytes relative to the start of the data, before that start is known.
  struct Extent {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    bool size_known = false;
  };

  [[noreturn]] void fail(std::string_view found, std::string_view expected = {},
                         std::string_view way_out = {}) const {
    throw Error(ErrorKind::format, file_.subject_, found, expected, way_out);
  }

  std::pair<uint64_t, uint64_t> read_header() {
    const auto magic = reader_.read<uint32_t>("the GGUF magic");
    if (magic != kGgufMagic)
      fail(fmt::format("starts with 0x{:08x}", magic), "the magic of a GGUF file, 0x46554747");
    file_.version_ = reader_.read<uint32_t>("the GGUF version");
    if (file_.version_ != 2 && file_.version_ != 3) {
      const bool swapped = file_.version_ != 0 && (file_.version_ & 0xffffu) == 0;
      throw Error(ErrorKind::unsupported, file_.subject_,
                  swapped ? "a big-endian GGUF file" : fmt::format("GGUF version {}", file_.version_),
                  "version 2 or 3, little endian", "convert it with gguf-py or take a newer file");
    }
    const auto tensor_count = reader_.read<uint64_t>("the tensor count");
    const auto entry_count = reader_.read<uint64_t>("the metadata count");
    reader_.check_count(tensor_count, kSmallestTensor, "tensors");
    reader_.check_count(entry_count, kSmallestEntry, "metadata entries");
    return {tensor_count, entry_count};
  }

  GgufType read_type(std::string_view key) {
    const auto type = reader_.read<uint32_t>("a metadata type");
    if (type > static_cast<uint32_t>(GgufType::f64)) {
      fail(fmt::format("metadata {} has type {}", key, type), "a type of 0 to 12");
    }
    return static_cast<GgufType>(type);
  }

  void read_metadata(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) {
      GgufEntry entry;
      entry.key = reader_.read_string("a metadata key");
      entry.type = read_type(entry.key);
      if (entry.type == GgufType::array) read_array_header(entry);
      read_elements(entry);
      if (!file_.entry_index_.emplace(entry.key, i).second) {
        fail(fmt::format("metadata {} appears twice", entry.key), "every key once");
      }
      file_.entries_.push_back(entry);
    }
  }

  void read_array_header(GgufEntry& entry) {
    entry.is_array = true;
    entry.type = read_type(entry.key);
    entry.count = reader_.read<uint64_t>("an array's length");
    if (entry.type == GgufType::array) {
      throw Error(ErrorKind::unsupported, file_.subject_,
                  fmt::format("metadata {} is an array of arrays", entry.key),
                  "arrays of numbers, booleans or strings");
    }
    // A string takes at least its 8-byte length.
    const uint64_t smallest = entry.type == GgufType::string ? 8 : scalar_bytes(entry.type);
    reader_.check_count(entry.count, smallest, "array elements");
  }

  void read_elements(GgufEntry& entry) {
    const uint64_t start = reader_.position();
    if (entry.type == GgufType::string) {
      for (uint64_t i = 0; i < entry.count; ++i) reader_.read_string(entry.key);
    } else {
      reader_.take(entry.count * scalar_bytes(entry.type), entry.key);
    }
    entry.data = file_.bytes_.subspan(start, reader_.position() - start);
  }

  void read_tensor_list(uint64_t count) {
    // The metadata have used up some of what the first check counted on.
    reader_.check_count(count, kSmallestTensor, "tensors");
    for (uint64_t i = 0; i < count; ++i) {
      const std::string_view name = reader_.read_string("a tensor name");
      if (!file_.tensor_index_.emplace(name, i).second)
        fail(fmt::format("tensor {} appears twice", name), "every name once");
      read_tensor(name);
    }
  }

  void read_tensor(std::string_view name) {
    TensorInfo tensor;
    tensor.name = name;
    tensor.file = file_.file_.get();
    const auto rank = reader_.read<uint32_t>("a tensor's rank");
    if (rank == 0 || rank > kMaxGgufDimensions)
      fail(fmt::format("tensor {} has {} dimensions", name, rank), "1 to 4");
    tensor.shape.resize(rank);
    uint64_t elements = 1;
    for (uint32_t d = 0; d < rank; ++d) {
      const auto dimension = reader_.read<uint64_t>("a tensor's shape");
      if (dimension == 0 ||
          dimension > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / elements) {
        fail(fmt::format("tensor {} has a dimension of {}", name, dimension),
             "a shape whose product fits 63 bits");
      }
      elements *= dimension;
      tensor.shape[rank - 1 - d] = dimension;  // the file stores the innermost first
    }
    const auto type_id = reader_.read<uint32_t>("a tensor's type");
    Extent extent = resolve_type(tensor, type_id, elements);
    extent.offset = reader_.read<uint64_t>("a tensor's offset");
    file_.tensors_.push_back(std::move(tensor));
    extents_.push_back(extent);
  }

  Extent resolve_type(TensorInfo& tensor, uint32_t type_id, uint64_t elements) const {
    const GgmlType* type = find_ggml_type(type_id);
    if (type == nullptr) {
      tensor.unsupported_type = fmt::format("ggml type {}", type_id);
      return {};
    }
    if (type->dtype) {
      tensor.dtype = *type->dtype;
    } else {
      tensor.unsupported_type = type->name;
    }
    // Blocks run along rows and never span two.
    if (tensor.shape.back() % type->block != 0) {
      fail(fmt::format("tensor {} of type {} has rows of {} values", tensor.name, type->name,
                       tensor.shape.back()),
           fmt::format("a multiple of {}", type->block));
    }
    const uint64_t blocks = elements / type->block;
    if (blocks > file_.bytes_.size() / type->block_bytes) {
      fail(fmt::format("tensor {} {} of type {} is larger than the file", tensor.name,
                       shape_text(tensor.shape), type->name),
           "a whole file", "fetch it again: it is truncated or damaged");
    }
    return {.offset = 0, .bytes = blocks * type->block_bytes, .size_known = true};
  }

  uint64_t data_alignment() const {
    const auto alignment = file_.get<uint32_t>("general.alignment").value_or(kDefaultAlignment);
    if (!std::has_single_bit(alignment))
      fail(fmt::format("general.alignment is {}", alignment), "a power of two");
    return alignment;
  }

  // Gives every tensor its bytes: inside the file, aligned, and none shared with another tensor.
  void place_data() {
    const uint64_t alignment = data_alignment();
    const uint64_t start = (reader_.position() + alignment - 1) / alignment * alignment;
    const uint64_t size = file_.bytes_.size();
    for (size_t i = 0; i < extents_.size(); ++i) {
      TensorInfo& tensor = file_.tensors_[i];
      const Extent& extent = extents_[i];
      if (extent.offset % alignment != 0) {
        fail(fmt::format("tensor {} is at offset {}", tensor.name, extent.offset),
             fmt::format("a multiple of {}", alignment));
      }
      if (start > size || extent.offset > size - start || extent.bytes > size - start - extent.offset) {
        fail(fmt::format("tensor {} has {} bytes at offset {}, past the end of the file", tensor.name,
                         extent.bytes, extent.offset),
             "a whole file", "fetch it again: it is truncated or damaged");
      }
      if (extent.size_known) tensor.data = file_.bytes_.subspan(start + extent.offset, extent.bytes);
    }
    check_overlaps();
  }

  void check_overlaps() const {
    std::vector<size_t> order(extents_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::sort(order, {}, [&](size_t i) { return std::pair(extents_[i].offset, extents_[i].bytes); });
    for (size_t i = 1; i < order.size(); ++i) {
      const Extent& before = extents_[order[i - 1]];
      if (before.offset + before.bytes > extents_[order[i]].offset) {
        fail(fmt::format("tensors {} and {} share bytes", file_.tensors_[order[i - 1]].name,
                         file_.tensors_[order[i]].name),
             "data that do not overlap");
      }
    }
  }

  GgufFile& file_;
  ByteReader reader_;
  std::vector<Extent> extents_;  // beside file_.tensors_
};

GgufFile::GgufFile(const std::filesystem::path& path)
    : file_(std::make_unique<MappedFile>(path)), bytes_(file_->bytes()), subject_(path.string()) {
  GgufParser(*this).parse();
}

GgufFile GgufFile::from_bytes(std::span<const std::byte> bytes, std::string subject) {
  GgufFile file;
  file.bytes_ = bytes;
  file.subject_ = std::move(subject);
  GgufParser(file).parse();
  return file;
}

const TensorInfo* GgufFile::find(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

void GgufFile::release() const {
  if (file_) file_->release(bytes_);
}

const TensorInfo& GgufFile::require_tensor(std::string_view name) const {
  if (const TensorInfo* tensor = find(name)) return *tensor;
  const auto parts = get<uint32_t>("split.count").value_or(1);
  throw Error(ErrorKind::format, subject_, fmt::format("no tensor {}", name), {},
              parts > 1
                  ? fmt::format("this is one of {} parts: join them with `llama-gguf-split --merge`", parts)
                  : "");
}

}  // namespace keysieve
