#include "formats/safetensors.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <utility>

#include "formats/matrix.h"
#include "support/files.h"

namespace keysieve {
namespace {

using testing::append;
using testing::as_bytes;
using testing::expect_error;
using testing::safetensors_bytes;
using testing::TempFolder;

std::string read_file(const std::filesystem::path& path) {
  std::ostringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  return content.str();
}

void expect_safetensors_refused(const std::string& bytes, const std::vector<std::string>& parts) {
  expect_error(ErrorKind::format, parts,
               [&] { SafetensorsFile::from_bytes(as_bytes(bytes), "bad.safetensors"); });
}

// One tensor "t" whose description is `body`, with `data_size` bytes of data.
void expect_body_refused(const std::string& body, size_t data_size, const std::vector<std::string>& parts) {
  expect_safetensors_refused(safetensors_bytes("{\"t\":" + body + "}", std::string(data_size, '\0')), parts);
}

constexpr std::string_view kSmall =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,2],"data_offsets":[4,20]},)"
    R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"empty":{"dtype":"F32","shape":[0,3],"data_offsets":[20,20]},)"
    R"("scalar":{"dtype":"U8","shape":[],"data_offsets":[20,21]}}   )";

std::string small_safetensors() {
  return safetensors_bytes(kSmall, std::string("\x80\x3f\x00\x40", 4) + std::string(17, '\x01'));
}

TEST(SafetensorsFile, ReadsTensorsInDataOrder) {
  const std::string bytes = small_safetensors();
  const auto file = SafetensorsFile::from_bytes(as_bytes(bytes), "small.safetensors");
  ASSERT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.require_tensor("b").shape, (std::vector<uint64_t>{2, 2}));
  EXPECT_EQ(read_vector(file.require_tensor("a")), (std::vector<float>{1.0f, 2.0f}));
  EXPECT_EQ(read_vector(file.require_tensor("scalar")), (std::vector<float>{1.0f}));
  EXPECT_TRUE(read_vector(file.require_tensor("empty")).empty());
  EXPECT_EQ(file.find("absent"), nullptr);
  expect_error(ErrorKind::format, {"small.safetensors", "absent"}, [&] { file.require_tensor("absent"); });
  expect_error(ErrorKind::mismatch, {"tensor empty", "[0, 3]"},
               [&] { make_matrix(file.require_tensor("empty")); });
}

TEST(SafetensorsFile, ListsUnsupportedTypesAndRefusesToReadThem) {
  const std::string bytes =
      safetensors_bytes(R"({"f8":{"dtype":"F8_E4M3","shape":[2,3],"data_offsets":[0,6]}})", "abcdef");
  const auto file = SafetensorsFile::from_bytes(as_bytes(bytes), "f8.safetensors");
  EXPECT_EQ(file.require_tensor("f8").type_name(), "f8_e4m3");
  expect_error(ErrorKind::unsupported, {"f8", "f8_e4m3"}, [&] { make_matrix(file.require_tensor("f8")); });
}

TEST(SafetensorsFile, RefusesEveryPrefixAndAnyExtraByte) {
  const std::string bytes = small_safetensors();
  for (size_t length = 0; length < bytes.size(); ++length) {
    const std::vector<char> prefix(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(length));
    EXPECT_THROW(SafetensorsFile::from_bytes(std::as_bytes(std::span(prefix)), "cut"), Error)
        << length << " bytes";
  }
  expect_safetensors_refused(bytes + "x", {"end at byte 21", "22"});
}

TEST(SafetensorsFile, SurvivesEveryChangedByte) {
  const std::string bytes = small_safetensors();
  size_t refused = 0;
  for (size_t at = 0; at < bytes.size() - 21; ++at) {
    for (const char value : {'\0', '"', '{', '[', '9', '\xff'}) {
      std::string changed = bytes;
      changed[at] = value;
      try {
        SafetensorsFile::from_bytes(as_bytes(changed), "changed");
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, bytes.size());
}

TEST(SafetensorsFile, RefusesBadHeaderLengths) {
  for (const uint64_t length :
       {uint64_t{0}, uint64_t{1}, uint64_t{1} << 30, uint64_t{1} << 60, ~uint64_t{0}}) {
    std::string bytes;
    append(bytes, length);
    expect_safetensors_refused(bytes + "{}", {"bad.safetensors", "header"});
  }
  std::string bytes;
  append<uint64_t>(bytes, 99'999'999);
  expect_safetensors_refused(bytes + "{}", {"needs 99999999 bytes"});
}

TEST(SafetensorsFile, RefusesHeadersOfAnotherForm) {
  for (const char* header :
       {"[]", "{} x", "{\"a\":1}", "{\"a\":[1]}", "{\"a\":null}", "{\"a\":\"b\"}", "{\"a\":{}}",
        "{\"a\":{\"b\":{}}}", "{\"__metadata__\":[]}", "{\"__metadata__\":{\"a\":1}}",
        "{\"__metadata__\":{\"a\":{}}}", "{\"a\"", "  {}"}) {
    expect_safetensors_refused(safetensors_bytes(header, ""), {"bad.safetensors"});
  }
  std::string deep = "{\"t\":{\"dtype\":\"F32\",\"shape\":" + std::string(1'000'000, '[');
  expect_safetensors_refused(safetensors_bytes(deep, ""), {"an array"});
  const std::string nothing = safetensors_bytes("{}", "");
  EXPECT_TRUE(SafetensorsFile::from_bytes(as_bytes(nothing), "empty").tensors().empty());
}

TEST(SafetensorsFile, RefusesBadTensorEntries) {
  expect_body_refused(R"({"dtype":"F32","shape":[1]})", 4, {"t", "incomplete"});
  expect_body_refused(R"({"dtype":"F32","data_offsets":[0,4]})", 4, {"incomplete"});
  expect_body_refused(R"({"shape":[1],"data_offsets":[0,4]})", 4, {"incomplete"});
  expect_body_refused(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})", 4, {"incomplete"});
  expect_body_refused(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})", 4, {"data_offsets"});
  expect_body_refused(R"({"dtype":"F33","shape":[1],"data_offsets":[0,4]})", 4, {"F33"});
  expect_body_refused(R"({"dtype":1,"shape":[1],"data_offsets":[0,4]})", 4, {"dtype"});
  expect_body_refused(R"({"dtype":["F32"],"shape":[1],"data_offsets":[0,4]})", 4, {"dtype"});
  expect_body_refused(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4, {"-1"});
  expect_body_refused(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", 4, {"1.0"});
  expect_body_refused(R"({"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]})", 4, {"9999"});
  expect_body_refused(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})", 4, {"[2]", "8 bytes"});
  expect_body_refused(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0, {"fits"});
  expect_body_refused(R"({"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})", 4, {"fits"});
  expect_body_refused(R"({"dtype":"F4","shape":[3],"data_offsets":[0,1]})", 1, {"[3]"});
  expect_body_refused(R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})", 4, {"t"});
  expect_body_refused(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})", 4, {"t"});
  expect_body_refused(R"({"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]})", 4, {"t"});
  expect_body_refused(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"extra":1})", 4, {"extra"});
  expect_body_refused(R"({"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})", 4,
                      {"two \"dtype\""});
  expect_body_refused(R"({"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]})", 4,
                      {"two \"shape\""});
  std::string ones = "1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  expect_body_refused("{\"dtype\":\"F32\",\"shape\":[" + ones + "],\"data_offsets\":[0,4]}", 4,
                      {"64 dimensions"});
}

TEST(SafetensorsFile, RefusesDuplicatesOverlapsAndHoles) {
  const std::string first = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)";
  expect_safetensors_refused(
      safetensors_bytes(first + R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", "12345678"),
      {"tensor a", "twice"});
  expect_safetensors_refused(
      safetensors_bytes(first + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})", "1234567"),
      {"tensor b", "overlap"});
  expect_safetensors_refused(
      safetensors_bytes(first + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})", "123456789"),
      {"tensor b", "hole"});
  expect_safetensors_refused(
      safetensors_bytes(first + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "1234"),
      {"tensor b", "overlap"});
}

TEST(WriteSafetensors, RoundTripsAndAlignsByType) {
  const TempFolder folder;
  const auto path = folder.path() / "out.safetensors";
  const std::vector<float> floats = {1.5f, -2.0f, 3.0f, 4.0f, 5.0f, 6.0f};
  const std::vector<uint8_t> bytes = {7, 8, 9};
  const std::vector<int64_t> wide = {-1};
  const std::vector<TensorToWrite> tensors = {
      {"bytes", DType::u8, {3}, std::as_bytes(std::span(bytes))},
      {"layers.0.indexer.wq.weight", DType::f32, {2, 3}, std::as_bytes(std::span(floats))},
      {"scalar", DType::i64, {}, std::as_bytes(std::span(wide))},
      {"empty", DType::f16, {0, 4}, {}}};
  write_safetensors(path, tensors, {{"format", "pt"}, {"note", "a \"quoted\" line"}});
  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata().at("note"), "a \"quoted\" line");
  ASSERT_EQ(file.tensors().size(), 4u);
  for (const auto& written : tensors) {
    const TensorInfo& read = file.require_tensor(written.name);
    EXPECT_EQ(read.dtype, written.dtype);
    EXPECT_EQ(read.shape, written.shape);
    EXPECT_TRUE(std::ranges::equal(read.data, written.data)) << written.name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(read.data.data()) % traits(read.dtype).block_bytes, 0u)
        << written.name;
  }
}

TEST(WriteSafetensors, RefusesWhatCannotBeRead) {
  const TempFolder folder;
  const auto path = folder.write("keep.safetensors", "old content");
  const std::vector<float> floats(6);
  const auto data = std::as_bytes(std::span(floats));
  const auto refused = [&](std::vector<TensorToWrite> tensors, const std::vector<std::string>& parts) {
    expect_error(ErrorKind::usage, parts, [&] { write_safetensors(path, tensors); });
  };
  refused({{"a", DType::f32, {6}, data}, {"a", DType::f32, {6}, data}}, {"tensor a", "twice"});
  refused({{"a", DType::f32, {5}, data}}, {"[5]"});
  refused({{"a", DType::f32, {uint64_t{1} << 63, 2}, data}}, {"shape"});
  refused({{"a", DType::q4_0, {32}, data.first(18)}}, {"q4_0"});
  refused({{"__metadata__", DType::f32, {6}, data}}, {"reserved"});
  refused({{"\xff", DType::f32, {6}, data}}, {"UTF-8"});
  expect_error(ErrorKind::file, {},
               [&] { write_safetensors(folder.path() / "no" / "such.safetensors", {}); });
  // What was there before stays, and nothing else is left behind.
  EXPECT_EQ(read_file(path), "old content");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
  write_safetensors(path, {});
  EXPECT_TRUE(SafetensorsFile(path).tensors().empty());
}

}  // namespace
}  // namespace keysieve
