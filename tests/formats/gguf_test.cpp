#include "formats/gguf.h"

#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <utility>

#include "formats/matrix.h"
#include "support/files.h"

namespace keysieve {
namespace {

using testing::append;
using testing::as_bytes;
using testing::expect_error;
using testing::GgufBuilder;
using testing::TempFolder;

// Type numbers of metadata values, as in the file.
enum : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };
constexpr uint32_t kTensorF32 = 0;
constexpr uint32_t kTensorQ4_0 = 2;
constexpr uint32_t kTensorIq3S = 21;

void expect_gguf_refused(const std::string& bytes, const std::vector<std::string>& parts,
                         ErrorKind kind = ErrorKind::format) {
  expect_error(kind, parts, [&] { GgufFile::from_bytes(as_bytes(bytes), "bad.gguf"); });
}

std::string floats(size_t count) {
  std::string bytes;
  for (size_t i = 0; i < count; ++i) append(bytes, static_cast<float>(i));
  return bytes;
}

GgufBuilder small_gguf() {
  GgufBuilder builder;
  builder.text("general.architecture", "llama")
      .scalar<uint32_t>("llama.block_count", kU32, 30)
      .scalar<uint8_t>("byte", kU8, 200)
      .scalar<int16_t>("minus", kI16, -5)
      .scalar<uint64_t>("huge", kU64, uint64_t{1} << 40)
      .scalar<float>("theta", kF32, 1e5f)
      .scalar<double>("eps", kF64, 1e-6)
      .scalar<uint8_t>("flag", kBool, 1)
      .strings("tokens", {"a", "", "caf\xc3\xa9"})
      .numbers<int32_t>("types", kI32, {1, 3, -6})
      .numbers<float>("scores", kF32, {0.5f, -2.0f})
      .tensor("w", {4, 3}, kTensorF32, floats(12))
      .tensor("norm", {5}, kTensorF32, floats(5));
  return builder;
}

TEST(GgufFile, ReadsTypedMetadata) {
  const std::string bytes = small_gguf().build();
  const auto file = GgufFile::from_bytes(as_bytes(bytes), "small.gguf");
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.require<std::string_view>("general.architecture"), "llama");
  EXPECT_EQ(file.require<uint32_t>("llama.block_count"), 30u);
  EXPECT_EQ(file.require<int64_t>("byte"), 200);
  EXPECT_EQ(file.require<int32_t>("minus"), -5);
  EXPECT_EQ(file.require<uint64_t>("huge"), uint64_t{1} << 40);
  EXPECT_EQ(file.require<float>("theta"), 1e5f);
  EXPECT_EQ(file.require<double>("eps"), 1e-6);
  EXPECT_EQ(file.require<float>("llama.block_count"), 30.0f);
  EXPECT_TRUE(file.require<bool>("flag"));
  EXPECT_EQ(file.require<std::vector<std::string_view>>("tokens"),
            (std::vector<std::string_view>{"a", "", "caf\xc3\xa9"}));
  EXPECT_EQ(file.require<std::vector<int32_t>>("types"), (std::vector<int32_t>{1, 3, -6}));
  EXPECT_EQ(file.require<std::vector<float>>("scores"), (std::vector<float>{0.5f, -2.0f}));
  EXPECT_EQ(file.get<uint32_t>("absent"), std::nullopt);
  EXPECT_TRUE(file.has("theta"));
  EXPECT_FALSE(file.has("absent"));
}

TEST(GgufFile, RefusesWrongTypesByFileAndKey) {
  const std::string bytes = small_gguf().build();
  const auto file = GgufFile::from_bytes(as_bytes(bytes), "small.gguf");
  expect_error(ErrorKind::format, {"small.gguf", "absent"}, [&] { file.require<uint32_t>("absent"); });
  expect_error(ErrorKind::format, {"minus", "out of range"}, [&] { file.get<uint32_t>("minus"); });
  expect_error(ErrorKind::format, {"huge", "out of range"}, [&] { file.get<uint32_t>("huge"); });
  expect_error(ErrorKind::format, {"types", "out of range"},
               [&] { file.get<std::vector<uint32_t>>("types"); });
  expect_error(ErrorKind::format, {"theta"}, [&] { file.get<uint32_t>("theta"); });
  expect_error(ErrorKind::format, {"flag"}, [&] { file.get<uint32_t>("flag"); });
  expect_error(ErrorKind::format, {"byte"}, [&] { file.get<bool>("byte"); });
  expect_error(ErrorKind::format, {"tokens"}, [&] { file.get<std::string_view>("tokens"); });
  expect_error(ErrorKind::format, {"theta"}, [&] { file.get<std::vector<float>>("theta"); });
  expect_error(ErrorKind::format, {"tokens"}, [&] { file.get<std::vector<float>>("tokens"); });
}

TEST(GgufFile, PlacesTensorsOutermostFirst) {
  const std::string bytes = small_gguf().build();
  const auto file = GgufFile::from_bytes(as_bytes(bytes), "small.gguf");
  ASSERT_EQ(file.tensors().size(), 2u);
  const TensorInfo& weight = file.require_tensor("w");
  EXPECT_EQ(weight.shape, (std::vector<uint64_t>{3, 4}));
  EXPECT_EQ(weight.dtype, DType::f32);
  const auto values = read_vector(weight);
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(values[i], static_cast<float>(i));
  EXPECT_EQ(read_vector(file.require_tensor("norm")).at(4), 4.0f);
  EXPECT_EQ(file.find("absent"), nullptr);
  expect_error(ErrorKind::format, {"small.gguf", "no tensor absent"}, [&] { file.require_tensor("absent"); });
}

TEST(GgufFile, MapsFilesAndKeepsTensorsWhenMoved) {
  const TempFolder folder;
  const auto path = folder.write("m.gguf", small_gguf().build());
  GgufFile first(path);
  GgufFile moved = std::move(first);
  const TensorInfo& weight = moved.require_tensor("w");
  ASSERT_NE(weight.file, nullptr);
  EXPECT_EQ(weight.file->path(), path);
  EXPECT_NE(weight.subject().find("m.gguf, tensor w"), std::string::npos);
  EXPECT_EQ(read_vector(weight).at(11), 11.0f);
  expect_error(ErrorKind::file, {"absent.gguf"}, [&] { GgufFile(folder.path() / "absent.gguf"); });
  expect_error(ErrorKind::file, {}, [&] { GgufFile(folder.path()); });
}

TEST(GgufFile, SaysWhichPartOfASplitModelThisIs) {
  auto builder = small_gguf();
  const std::string bytes = builder.scalar<uint16_t>("split.count", kU16, 3).build();
  const auto file = GgufFile::from_bytes(as_bytes(bytes), "part.gguf");
  expect_error(ErrorKind::format, {"3 parts", "--merge"}, [&] { file.require_tensor("absent"); });
}

TEST(GgufFile, ShowsMetadataAsJson) {
  const std::string bytes = small_gguf().build();
  const auto file = GgufFile::from_bytes(as_bytes(bytes), "small.gguf");
  const auto json_of = [&](std::string_view key, size_t most) {
    for (const auto& entry : file.metadata()) {
      if (entry.key == key) return to_json(entry, most);
    }
    return Json();
  };
  EXPECT_EQ(json_of("general.architecture", 2), Json("llama"));
  EXPECT_EQ(json_of("minus", 2), Json(-5));
  EXPECT_EQ(json_of("flag", 2), Json(true));
  EXPECT_EQ(json_of("tokens", 2), Json({"a", ""}));
  EXPECT_EQ(json_of("types", 2), Json({1, 3}));
  EXPECT_EQ(json_of("types", 100), Json({1, 3, -6}));
}

TEST(GgufFile, ListsUnsupportedTypesAndRefusesToReadThem) {
  GgufBuilder builder;
  builder.tensor("known", {256}, kTensorIq3S, std::string(110, '\x01'))
      .tensor("unknown", {2, 3}, 99, "")
      .tensor("plain", {2}, kTensorF32, floats(2));
  const std::string bytes = builder.build();
  const auto file = GgufFile::from_bytes(as_bytes(bytes), "iq.gguf");
  EXPECT_EQ(file.require_tensor("known").type_name(), "iq3_s");
  EXPECT_EQ(file.require_tensor("known").data.size(), 110u);
  EXPECT_EQ(file.require_tensor("unknown").type_name(), "ggml type 99");
  EXPECT_TRUE(file.require_tensor("unknown").data.empty());
  EXPECT_EQ(read_vector(file.require_tensor("plain")).at(1), 1.0f);
  expect_error(ErrorKind::unsupported, {"known", "iq3_s", "Q4_K_M"},
               [&] { read_vector(file.require_tensor("known")); });
  expect_error(ErrorKind::unsupported, {"unknown", "99"},
               [&] { make_matrix(file.require_tensor("unknown")); });
}

TEST(GgufFile, RefusesWrongMagicAndVersions) {
  expect_gguf_refused("", {"bad.gguf"});
  expect_gguf_refused("GGUF", {"version"});
  auto builder = small_gguf();
  builder.magic = 0x46554746;
  expect_gguf_refused(builder.build(), {"magic"});
  for (const uint32_t version : {0u, 1u, 4u}) {
    builder = small_gguf();
    builder.version = version;
    expect_gguf_refused(builder.build(), {"version " + std::to_string(version)}, ErrorKind::unsupported);
  }
  builder.version = 0x03000000;
  expect_gguf_refused(builder.build(), {"big-endian"}, ErrorKind::unsupported);
  builder = small_gguf();
  builder.version = 2;
  const std::string bytes = builder.build();
  EXPECT_EQ(GgufFile::from_bytes(as_bytes(bytes), "v2.gguf").version(), 2u);
}

TEST(GgufFile, RefusesEveryPrefix) {
  const std::string bytes = small_gguf().build();
  for (size_t length = 0; length < bytes.size(); ++length) {
    // A heap copy of exactly this length lets the address sanitizer see one byte too far.
    const std::vector<char> prefix(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
    EXPECT_THROW(GgufFile::from_bytes(std::as_bytes(std::span(prefix)), "cut.gguf"), Error)
        << length << " bytes";
  }
  EXPECT_NO_THROW(GgufFile::from_bytes(as_bytes(bytes), "whole.gguf"));
}

// Any one changed byte of the header may open or throw Error, nothing else; sanitizer builds check the rest.
TEST(GgufFile, SurvivesEveryChangedByte) {
  const std::string bytes = small_gguf().build();
  size_t refused = 0;
  for (size_t at = 0; at < bytes.size() - 100; ++at) {
    for (const int value : {0, 1, 0x7f, 0x80, 0xff}) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(value);
      try {
        const auto file = GgufFile::from_bytes(as_bytes(changed), "changed.gguf");
        for (const auto& tensor : file.tensors()) read_vector(tensor);
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, bytes.size());
}

TEST(GgufFile, RefusesAbsurdCountsAndLengths) {
  for (const uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 60, ~uint64_t{0} - 100}) {
    auto builder = small_gguf();
    builder.extra_tensors = count;
    expect_gguf_refused(builder.build(), {"tensors"});
    builder = small_gguf();
    builder.extra_entries = count;
    expect_gguf_refused(builder.build(), {"metadata entries"});

    std::string value;
    append<uint64_t>(value, count);
    expect_gguf_refused(small_gguf().entry("k", kString, value + "abc").build(), {"k", "bytes"});
    for (const uint32_t type : {kU8, kU32, kString, kF64}) {
      std::string array;
      append<uint32_t>(array, type);
      append<uint64_t>(array, count);
      expect_gguf_refused(small_gguf().entry("k", kArray, array).build(), {"array elements"});
    }
    std::string long_key = small_gguf().entries;
    append<uint64_t>(long_key, count);
    auto key_builder = small_gguf();
    key_builder.entries = long_key;
    ++key_builder.entry_count;
    expect_gguf_refused(key_builder.build(), {"metadata key"});
  }
}

TEST(GgufFile, RefusesBadMetadata) {
  expect_gguf_refused(small_gguf().entry("k", 13, "").build(), {"k", "type 13"});
  expect_gguf_refused(small_gguf().text("general.architecture", "qwen2").build(),
                      {"general.architecture", "twice"});
  std::string nested;
  append<uint32_t>(nested, kArray);
  append<uint64_t>(nested, 1);
  append<uint32_t>(nested, kArray);
  append<uint64_t>(nested, 1);
  expect_gguf_refused(small_gguf().entry("deep", kArray, nested).build(), {"deep", "array of arrays"},
                      ErrorKind::unsupported);
}

TEST(GgufFile, RefusesBadAlignment) {
  for (const uint32_t alignment : {0u, 3u, 24u, 0x80000001u}) {
    expect_gguf_refused(small_gguf().scalar<uint32_t>("general.alignment", kU32, alignment).build(),
                        {"general.alignment"});
  }
  expect_gguf_refused(small_gguf().text("general.alignment", "32").build(), {"general.alignment"});
  // A power of two past the end of the file leaves no room for data.
  expect_gguf_refused(small_gguf().scalar<uint32_t>("general.alignment", kU32, 0x80000000u).build(),
                      {"past the end"});
  GgufBuilder builder;
  builder.alignment = 8;
  builder.scalar<uint32_t>("general.alignment", kU32, 8)
      .tensor("a", {1}, kTensorF32, floats(1))
      .tensor("b", {1}, kTensorF32, floats(1));
  const std::string bytes = builder.build();
  EXPECT_EQ(GgufFile::from_bytes(as_bytes(bytes), "a8.gguf").tensors().size(), 2u);
}

TEST(GgufFile, RefusesBadTensors) {
  const auto with = [](const std::vector<uint64_t>& dimensions, uint32_t type, uint64_t offset) {
    GgufBuilder builder;
    builder.tensor_entry("t", dimensions, type, offset);
    builder.data = std::string(256, '\0');
    return builder.build();
  };
  EXPECT_NO_THROW(GgufFile::from_bytes(as_bytes(with({4, 4}, kTensorF32, 32)), "ok.gguf"));
  expect_gguf_refused(with({}, kTensorF32, 0), {"0 dimensions"});
  expect_gguf_refused(with({1, 1, 1, 1, 1}, kTensorF32, 0), {"5 dimensions"});
  expect_gguf_refused(with({0, 4}, kTensorF32, 0), {"dimension of 0"});
  expect_gguf_refused(with({uint64_t{1} << 32, uint64_t{1} << 32}, kTensorF32, 0), {"t", "63 bits"});
  expect_gguf_refused(with({~uint64_t{0}}, kTensorF32, 0), {"t", "63 bits"});
  expect_gguf_refused(with({uint64_t{1} << 61}, kTensorF32, 0), {"larger than the file"});
  expect_gguf_refused(with({33, 2}, kTensorQ4_0, 0), {"rows of 33", "multiple of 32"});
  expect_gguf_refused(with({4}, kTensorF32, 16), {"offset 16", "multiple of 32"});
  expect_gguf_refused(with({4}, kTensorF32, 256), {"past the end"});
  expect_gguf_refused(with({33}, kTensorF32, 128), {"past the end"});
  expect_gguf_refused(with({4}, kTensorF32, ~uint64_t{0} - 31), {"past the end"});
  expect_gguf_refused(with({4}, 99, 512), {"past the end"});
}

TEST(GgufFile, RefusesDuplicateAndOverlappingTensors) {
  GgufBuilder twice;
  twice.tensor("t", {4}, kTensorF32, floats(4)).tensor("t", {4}, kTensorF32, floats(4));
  expect_gguf_refused(twice.build(), {"tensor t", "twice"});
  GgufBuilder overlap;
  overlap.data = std::string(128, '\0');
  overlap.tensor_entry("a", {16}, kTensorF32, 0).tensor_entry("b", {4}, kTensorF32, 32);
  expect_gguf_refused(overlap.build(), {"a and b", "share"});
  GgufBuilder same;
  same.data = std::string(128, '\0');
  same.tensor_entry("a", {4}, kTensorF32, 32).tensor_entry("b", {4}, kTensorF32, 32);
  expect_gguf_refused(same.build(), {"share"});
}

TEST(GgufFile, MessagesStayOneLine) {
  GgufBuilder builder;
  builder.data = std::string(64, '\0');
  builder.tensor_entry("bad\nname\x1b[2J", {3}, kTensorQ4_0, 0);
  try {
    GgufFile::from_bytes(as_bytes(builder.build()), "bad.gguf");
    FAIL() << "no Error";
  } catch (const Error& error) {
    EXPECT_EQ(std::string_view(error.what()).find_first_of("\n\x1b"), std::string_view::npos);
  }
}

// A vocabulary of Qwen's size, with merges: opening and reading it must not be felt. It takes about 10 ms;
// the limit leaves room for sanitizers and a busy machine.
TEST(GgufFile, ReadsLargeVocabulariesFast) {
  std::vector<std::string> tokens(151'936);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = "token" + std::to_string(i);
  GgufBuilder builder;
  const std::string bytes =
      builder.strings("tokenizer.ggml.tokens", tokens).strings("tokenizer.ggml.merges", tokens).build();
  const auto start = std::chrono::steady_clock::now();
  const auto file = GgufFile::from_bytes(as_bytes(bytes), "vocab.gguf");
  const auto read = file.require<std::vector<std::string_view>>("tokenizer.ggml.tokens");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  ASSERT_EQ(read.size(), tokens.size());
  EXPECT_EQ(read.back(), tokens.back());
  RecordProperty("milliseconds", std::to_string(seconds.count() * 1000));
  EXPECT_LT(seconds.count(), 1.0);
}

}  // namespace
}  // namespace keysieve
