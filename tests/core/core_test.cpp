#include <gtest/gtest.h>
#include <sys/stat.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <thread>

#include "core/checksum.h"
#include "core/dtype.h"
#include "core/file_io.h"
#include "core/half.h"
#include "core/json.h"
#include "core/machine_peaks.h"
#include "core/memory.h"
#include "core/threads.h"
#include "keysieve/error.h"

namespace keysieve {
namespace {

// A folder of its own per test, gone afterwards.
class CoreFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "keysieve_core_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return folder_ / name;
  }
  std::filesystem::path folder_;
};

template <class Action>
std::string error_of(const Action& action, ErrorKind kind) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(Error, IsOneLineWhateverItNames) {
  const Error error(ErrorKind::format, "a\nb", std::string("\x1b[31m") + std::string(2000, 'x'), "y", "z");
  const std::string message = error.what();
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
  EXPECT_LT(message.size(), 1000u);
  EXPECT_EQ(std::string(Error(ErrorKind::file, "f", "missing").what()), "f: missing");
  EXPECT_EQ(std::string(Error(ErrorKind::file, "f", "1", "2", "try 3").what()), "f: 1, expected 2; try 3");
}

TEST(Half, RoundTripsEveryFiniteValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    const float value = to_float(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_half(value))));
    } else {
      EXPECT_EQ(to_half(value).bits, half.bits);
    }
  }
}

TEST(Half, RoundsToNearestEven) {
  EXPECT_EQ(to_half(1.0f + 0x1p-11f).bits, to_half(1.0f).bits);  // a tie goes to the even mantissa
  EXPECT_EQ(to_half(1.0f + 3 * 0x1p-11f).bits, to_half(1.0f + 0x1p-9f).bits);
  EXPECT_EQ(to_half(65519.0f).bits, to_half(65504.0f).bits);
  EXPECT_TRUE(std::isinf(to_float(to_half(65520.0f))));
  EXPECT_EQ(to_half(0x1p-25f).bits, 0);  // a tie between 0 and the smallest subnormal
  EXPECT_EQ(to_half(0x1.8p-25f).bits, 1);
  EXPECT_EQ(to_bfloat16(1.0f + 0x1p-8f).bits, to_bfloat16(1.0f).bits);
  EXPECT_EQ(to_float(to_bfloat16(-3.5f)), -3.5f);
}

TEST(DTypes, SizesAreGgufs) {
  EXPECT_EQ(checked_bytes(DType::q4_k, 512, "t"), 288u);
  EXPECT_EQ(checked_bytes(DType::bf16, 3, "t"), 6u);
  error_of([] { checked_bytes(DType::q4_0, 33, "tensor"); }, ErrorKind::format);
  error_of([] { checked_bytes(DType::f64, std::numeric_limits<uint64_t>::max() / 2, "tensor"); },
           ErrorKind::format);
}

TEST(Memory, ArraysAreAlignedAndAbsurdSizesRefused) {
  AlignedArray<float> array(3, 2.0f);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(array.data()) % kAlignment, 0u);
  EXPECT_EQ(array[2], 2.0f);
  error_of([] { AlignedArray<double> huge(std::numeric_limits<size_t>::max() / 4); }, ErrorKind::resource);
}

TEST(Memory, ReservedPagesCostNothingUntilWritten) {
  const uint64_t before = peak_resident_bytes();
  ReservedMemory memory(size_t{4} << 30);
  memory.data()[size_t{3} << 30] = std::byte{7};
  EXPECT_LT(peak_resident_bytes() - before, uint64_t{64} << 20);
  memory.discard();
  EXPECT_EQ(memory.data()[size_t{3} << 30], std::byte{0});
}

TEST_F(CoreFiles, MapsAFileAndNamesAMissingOne) {
  const MappedFile file(write("a", "hello"));
  EXPECT_EQ(file.bytes().size(), 5u);
  EXPECT_EQ(std::memcmp(file.bytes().data(), "hello", 5), 0);
  EXPECT_EQ(MappedFile(write("empty", "")).bytes().size(), 0u);
  EXPECT_NE(error_of([&] { MappedFile{folder_ / "none"}; }, ErrorKind::file).find("none"), std::string::npos);
  error_of([&] { MappedFile{folder_}; }, ErrorKind::file);
}

TEST_F(CoreFiles, AnUncommittedWriteLeavesTheTargetAlone) {
  const auto target = write("target", "old");
  {
    AtomicFileWriter writer(target);
    writer.write("new and half writ");
  }
  EXPECT_EQ(read_text_file(target), "old");
  AtomicFileWriter writer(target);
  writer.write("new");
  EXPECT_EQ(read_text_file(target), "old");
  writer.commit();
  EXPECT_EQ(read_text_file(target), "new");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1)
      << "a temporary file was left";
  error_of([&] { AtomicFileWriter{folder_}; }, ErrorKind::file);
  error_of([&] { AtomicFileWriter{folder_ / "no" / "such"}; }, ErrorKind::file);
}

TEST_F(CoreFiles, AFullDiskIsAnErrorAndTheTargetStays) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const auto target = write("target", "old");
  // The temporary file's name is known: a link there to /dev/full makes every write fail as a full disk does.
  std::filesystem::create_symlink("/dev/full",
                                  target.string() + "." + std::to_string(::getpid()) + ".partial");
  error_of(
      [&] {
        AtomicFileWriter writer(target);
        writer.write(std::string(1 << 20, 'x'));
        writer.commit();
      },
      ErrorKind::file);
  EXPECT_EQ(read_text_file(target), "old");
}

TEST(Json, TypedAccessChecksRanges) {
  const Json json =
      parse_json(R"({"n": 3, "neg": -1, "f": 1.5, "s": "x", "whole": 4.0, "none": null})", "file.json");
  EXPECT_EQ(json_require<size_t>(json, "n", "file.json"), 3u);
  EXPECT_EQ(json_require<size_t>(json, "whole", "file.json"), 4u);
  EXPECT_EQ(json_value<size_t>(json, "none", 9, "file.json"), 9u);
  error_of([&] { json_require<size_t>(json, "neg", "file.json"); }, ErrorKind::format);
  error_of([&] { json_require<size_t>(json, "f", "file.json"); }, ErrorKind::format);
  error_of([&] { json_require<std::string>(json, "n", "file.json"); }, ErrorKind::format);
  EXPECT_NE(
      error_of([&] { json_require<size_t>(json, "gone", "file.json"); }, ErrorKind::format).find("file.json"),
      std::string::npos);
}

TEST(Json, HostileTextIsRefused) {
  error_of([] { parse_json("{\"a\": ", "f"); }, ErrorKind::format);
  error_of([] { parse_json(std::string(100000, '['), "f"); }, ErrorKind::format);
  EXPECT_NO_THROW(parse_json(std::string(150, '[') + std::string(150, ']'), "f"));
}

// Regions in a row, with pauses long enough for workers to fall asleep, and regions within regions or beside
// each other.
TEST(Threads, RegionsFollowNestAndCollide) {
  const Threads threads(2);
  std::atomic<size_t> done = 0;
  for (int region = 0; region < 400; ++region) {
    threads.run(7, [&](size_t, int) { ++done; });
    if (region % 40 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  EXPECT_EQ(done, 2800u);
  done = 0;
  threads.run(5, [&](size_t, int) {
    threads.run(4, [&](size_t, int worker) {
      EXPECT_EQ(worker, 0);
      ++done;
    });
  });
  EXPECT_EQ(done, 20u);
  done = 0;
  std::thread other([&] {
    for (int region = 0; region < 500; ++region) threads.run(7, [&](size_t, int) { ++done; });
  });
  for (int region = 0; region < 500; ++region) threads.run(7, [&](size_t, int) { ++done; });
  other.join();
  EXPECT_EQ(done, 7000u);
}

// More workers than cores: some come when their region is long over, and must touch neither its task nor the
// vector that went with it (the sanitizers see that), nor take a task of the next region twice.
TEST(Threads, LateWorkersFindTheRegionClosed) {
  const Threads threads(8);
  for (size_t region = 0; region < 2000; ++region) {
    std::vector<int> seen(2 + region % 9);
    threads.run(seen.size(), [&seen](size_t i, int) { ++seen[i]; });
    EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
  }
}

// What needs a task finds it done, whoever did it; one that failed is not built upon.
TEST(Threads, ChainedTasksFindWhatTheyNeed) {
  for (const int count : {1, 2, 8}) {
    const Threads threads(count);
    for (size_t region = 0; region < 200; ++region) {
      std::vector<size_t> made(3, 0);
      std::vector<size_t> read(12, 0);
      const auto make = [&](size_t i, int) {
        if (i == region % 3) std::this_thread::sleep_for(std::chrono::microseconds(100));
        made[i] = region + i + 1;
      };
      threads.run_chained(
          made.size(), make, read.size(), [&](size_t i, int) { read[i] = made[i / 4]; },
          [](size_t i) { return i / 4; });
      for (size_t i = 0; i < read.size(); ++i) ASSERT_EQ(read[i], region + i / 4 + 1);
    }
    std::atomic<int> built = 0;
    const auto fail = [](size_t i, int) {
      if (i == 1) throw Error(ErrorKind::usage, "x", "y");
    };
    error_of(
        [&] {
          threads.run_chained(3, fail, 9, [&](size_t, int) { ++built; }, [](size_t) { return size_t{1}; });
        },
        ErrorKind::usage);
    EXPECT_EQ(built, 0);
  }
}

// A waiting pool uses no processor time once its spin is over.
TEST(Threads, SleepWhenIdle) {
  const Threads threads(4);
  threads.run(8, [](size_t, int) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const auto used = [] {
    timespec time{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  };
  const double before = used();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(used() - before, 0.02);
}

TEST(Checksum, IsXxh64InAnyPieces) {
  const auto of = [](const std::string& text, size_t piece) {
    Checksum sum;
    for (size_t at = 0; at < text.size(); at += piece) {
      sum.add(std::as_bytes(std::span(text).subspan(at, std::min(piece, text.size() - at))));
    }
    return sum.value();
  };
  EXPECT_EQ(of("", 1), 0xef46db3751d8e999u);
  EXPECT_EQ(of("a", 1), 0xd24ec4f1a98c6e5bu);
  EXPECT_EQ(of("abc", 2), 0x44bc2cf5ad770999u);
  std::string text(1000, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 + 3);
  for (const size_t piece : {1, 5, 31, 32, 33, 999, 1000}) EXPECT_EQ(of(text, piece), 0x5f235fa033f1a3fbu);
}

TEST(Threads, EveryIndexOnceAndErrorsComeBack) {
  for (const int count : {1, 2, 5}) {
    const Threads threads(count);
    std::vector<std::atomic<int>> seen(1000);
    threads.run(seen.size(), [&](size_t i, int worker) {
      EXPECT_GE(worker, 0);
      EXPECT_LT(worker, count);
      ++seen[i];
    });
    for (const auto& times : seen) EXPECT_EQ(times, 1);
    error_of(
        [&] {
          threads.run(100, [](size_t i, int) {
            if (i == 57) throw Error(ErrorKind::usage, "x", "y");
          });
        },
        ErrorKind::usage);
    threads.run(0, [](size_t, int) { FAIL(); });
  }
  EXPECT_GE(Threads().count(), 1);
}

TEST(MachinePeaks, AFamilyWithoutInt8DotsDoesNothing) {
  EXPECT_EQ(run_int8_dots("reference"), 0u);
  EXPECT_EQ(run_int8_dots(""), 0u);
  EXPECT_EQ(measure_int8_dots("reference", Threads(2)), 0);
}

TEST(MachinePeaks, DotsAreCountedPerFamily) {
#if defined(__x86_64__)
  // 1,000 rounds of 8 chains of 32 products, and of 16 chains of 64.
  if (__builtin_cpu_supports("avx2")) EXPECT_EQ(run_int8_dots("avx2"), 1000u * 8 * 32);
  if (__builtin_cpu_supports("avx512vnni")) EXPECT_EQ(run_int8_dots("avx512"), 1000u * 16 * 64);
  if (__builtin_cpu_supports("avx512vnni")) EXPECT_EQ(run_int8_dots("avx512bf16"), 1000u * 16 * 64);
#endif
}

TEST(MachinePeaks, RatesArePossible) {
  const Threads threads(2);
  for (const char* family : {"avx2", "avx512", "neon"}) {
#if defined(__x86_64__)
    if (family == std::string("avx2") && !__builtin_cpu_supports("avx2")) continue;
    if (family == std::string("avx512") && !__builtin_cpu_supports("avx512vnni")) continue;
#else
    if (family == std::string("neon")) continue;  // whether this CPU has dot products is the kernels' affair
#endif
    const double rate = measure_int8_dots(family, threads);
    if (rate == 0) continue;  // of another architecture
    // Work that a compiler took out of the loop would show as more products than a core has lanes for:
    // 64 lanes twice a cycle at 6 GHz on two cores.
    EXPECT_LT(rate, 2 * 128 * 6e9) << family;
    EXPECT_GT(rate, 1e8) << family;
  }
  const ReadStretch stretch((size_t{8} << 20) + 1, threads);
  EXPECT_EQ(stretch.bytes(), size_t{10} << 20);  // whole 2 MB
  const double rate = measure_read(stretch, threads);
  EXPECT_GT(rate, 1e7);
  EXPECT_LT(rate, 1e13);
}

}  // namespace
}  // namespace keysieve
