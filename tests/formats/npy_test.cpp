#include "formats/npy.h"

#include <gtest/gtest.h>

#include <array>
#include <limits>

#include "core/half.h"
#include "support/files.h"

namespace keysieve {
namespace {

using testing::append;
using testing::expect_error;
using testing::TempFolder;

std::string npy(std::string_view dictionary, std::string_view data, char major = 1) {
  std::string bytes("\x93NUMPY", 6);
  bytes += major;
  bytes += '\0';
  if (major == 1) {
    append(bytes, static_cast<uint16_t>(dictionary.size()));
  } else {
    append(bytes, static_cast<uint32_t>(dictionary.size()));
  }
  return bytes.append(dictionary).append(data);
}

std::string dictionary(std::string_view descr, std::string_view shape, std::string_view fortran = "False") {
  return std::string("{'descr': '") + std::string(descr) + "', 'fortran_order': " + std::string(fortran) +
         ", 'shape': " + std::string(shape) + ", }      \n";
}

template <class T>
std::string packed(const std::vector<T>& values) {
  std::string bytes;
  for (const T value : values) append(bytes, value);
  return bytes;
}

TEST(NpyFile, ReadsEveryType) {
  const TempFolder folder;
  const auto read = [&](const std::string& bytes) { return NpyFile(folder.write("a.npy", bytes)); };
  EXPECT_EQ(read(npy(dictionary("<f4", "(2,)"), packed<float>({1.5f, -2}))).floats(),
            (std::vector<float>{1.5f, -2}));
  EXPECT_EQ(read(npy(dictionary("<f8", "(2,)"), packed<double>({0.1, -2}))).doubles(),
            (std::vector<double>{0.1, -2}));
  EXPECT_EQ(read(npy(dictionary("<f2", "(1,)"), packed<uint16_t>({to_half(0.25f).bits}))).floats().at(0),
            0.25f);
  EXPECT_EQ(read(npy(dictionary("<i2", "(2,)"), packed<int16_t>({-1, 300}))).integers(),
            (std::vector<int64_t>{-1, 300}));
  EXPECT_EQ(read(npy(dictionary("<i4", "(1, 2)"), packed<int32_t>({-1, 70000}))).integers().at(1), 70000);
  EXPECT_EQ(read(npy(dictionary("<i8", "(1,)"), packed<int64_t>({int64_t{1} << 40}))).integers().at(0),
            int64_t{1} << 40);
  const auto scalar = read(npy(dictionary("<f4", "()"), packed<float>({3})));
  EXPECT_TRUE(scalar.shape().empty());
  EXPECT_EQ(scalar.floats(), (std::vector<float>{3}));
  EXPECT_TRUE(read(npy(dictionary("<f4", "(0, 5)"), "")).floats().empty());
  EXPECT_EQ(read(npy(dictionary("<f4", "(1,)"), packed<float>({3}), 2)).floats().at(0), 3.0f);
  EXPECT_EQ(read(npy("{'shape':(1,),'fortran_order':True,'descr':'<f4'}", packed<float>({3}))).floats().at(0),
            3.0f);
  expect_error(ErrorKind::format, {"integers"},
               [&] { read(npy(dictionary("<f4", "(1,)"), packed<float>({3}))).integers(); });
}

TEST(NpyFile, RefusesDamagedFiles) {
  const TempFolder folder;
  const std::string data(8, '\0');
  const auto refused = [&](ErrorKind kind, const std::string& bytes, const std::vector<std::string>& parts) {
    const auto path = folder.write("bad.npy", bytes);
    expect_error(kind, parts, [&] { NpyFile{path}; });
  };
  const std::string whole = npy(dictionary("<f4", "(2,)"), data);
  for (size_t length = 0; length < whole.size(); ++length)
    refused(ErrorKind::format, whole.substr(0, length), {"bad.npy"});
  refused(ErrorKind::format, whole + "x", {"9 bytes"});
  refused(ErrorKind::format, "PK\x03\x04 zip archive", {"magic"});
  refused(ErrorKind::unsupported, npy(dictionary("<f4", "(2,)"), data, 4), {"version 4"});
  refused(ErrorKind::unsupported, npy(dictionary(">f4", "(2,)"), data), {">f4"});
  refused(ErrorKind::unsupported, npy(dictionary("|O", "(1,)"), data), {"|O"});
  refused(ErrorKind::unsupported, npy(dictionary("<f4", "(1, 2)", "True"), data), {"Fortran"});
  refused(ErrorKind::format, npy(dictionary("<f4", "(4294967296, 4294967296)"), data), {"fits"});
  refused(ErrorKind::format, npy(dictionary("<f4", "(99999999999999999999,)"), data), {"header"});
  refused(ErrorKind::format, npy(dictionary("<f4", "(-2,)"), data), {"header"});
  refused(ErrorKind::format, npy(dictionary("<f4", "(2"), data), {"header"});
  refused(ErrorKind::format, npy(dictionary("<f4", "((2,),)"), data), {"header"});
  refused(ErrorKind::format, npy("{'descr': '<f4', 'shape': (2,)}", data), {"header"});
  refused(ErrorKind::format,
          npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", data), {"header"});
  refused(ErrorKind::format, npy("", data), {"header"});
  std::string huge("\x93NUMPY\x02\x00", 8);
  append<uint32_t>(huge, 0xffffffff);
  refused(ErrorKind::format, huge, {"header of 4294967295 bytes"});
}

TEST(NpyWriter, RoundTripsPieceByPiece) {
  const TempFolder folder;
  const auto path = folder.path() / "out.npy";
  const std::array<uint64_t, 2> shape = {3, 4};
  {
    NpyWriter writer(path, shape);
    for (int row = 0; row < 3; ++row) {
      const std::array<float, 4> values = {row + 0.5f, row + 1.5f, -row * 1.0f,
                                           std::numeric_limits<float>::infinity()};
      writer.write(values);
    }
    EXPECT_FALSE(std::filesystem::exists(path)) << "the file appears only when committed";
    writer.commit();
  }
  const NpyFile file(path);
  EXPECT_EQ(file.dtype(), DType::f32);
  EXPECT_EQ(file.shape(), (std::vector<uint64_t>{3, 4}));
  EXPECT_EQ(file.floats().at(9), 3.5f);
  EXPECT_EQ((reinterpret_cast<uintptr_t>(file.data().data())) % 64, 0u);
  const std::array<uint64_t, 1> one = {1};
  NpyWriter vector(path, one);
  vector.write(std::array<float, 1>{7});
  vector.commit();
  EXPECT_EQ(NpyFile(path).shape(), (std::vector<uint64_t>{1}));
}

TEST(NpyWriter, RefusesTooMuchAndTooLittle) {
  const TempFolder folder;
  const auto path = folder.path() / "out.npy";
  const std::array<uint64_t, 1> shape = {3};
  const std::array<float, 2> two = {1, 2};
  {
    NpyWriter writer(path, shape);
    writer.write(two);
    expect_error(ErrorKind::usage, {"2 more values"}, [&] { writer.write(two); });
    expect_error(ErrorKind::usage, {"1 values are missing"}, [&] { writer.commit(); });
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace keysieve
