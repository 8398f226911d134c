#include "core/machine_peaks.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <numeric>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace keysieve {
namespace {

constexpr size_t kPart = size_t{1} << 21;  // what a thread touches or reads before it takes the next part

// Work done in a register must not be left out: the compiler is told that somebody looks at `value`.
template <class T>
void keep(const T& value) {
  asm volatile("" : : "g"(&value) : "memory");
}

constexpr int kRounds = 1000;

#if defined(__x86_64__)
// Chains that do not wait for one another: more than latency x throughput (4 to 5 cycles, 2 a cycle) needs.
constexpr int kWideChains = 16;
constexpr int kNarrowChains = 8;  // of 16 registers; the additions that chain take a cycle

__attribute__((target("avx512f,avx512vnni"))) uint64_t vpdpbusd_dots() {
  __m512i sums[kWideChains];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(-5);
  for (int r = 0; r < kRounds; ++r) {
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  }
  keep(sums);
  return uint64_t{64} * kWideChains * kRounds;
}

__attribute__((target("avx2"))) uint64_t vpmaddubsw_dots() {
  __m256i sums[kNarrowChains];
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  __m256i a = _mm256_set1_epi8(3);
  const __m256i b = _mm256_set1_epi8(-5);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int r = 0; r < kRounds; ++r) {
    for (auto& sum : sums) {
      asm volatile("" : "+x"(a));  // else the product, always the same, is taken out of the loop
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  }
  keep(sums);
  return uint64_t{32} * kNarrowChains * kRounds;
}
#elif defined(__aarch64__)
constexpr int kChains = 16;

__attribute__((target("dotprod"))) uint64_t sdot_dots() {
  int32x4_t sums[kChains];
  for (auto& sum : sums) sum = vdupq_n_s32(0);
  const int8x16_t a = vdupq_n_s8(3);
  const int8x16_t b = vdupq_n_s8(-5);
  for (int r = 0; r < kRounds; ++r) {
    for (auto& sum : sums) sum = vdotq_s32(sum, a, b);
  }
  keep(sums);
  return uint64_t{16} * kChains * kRounds;
}
#endif

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

uint64_t run_int8_dots(std::string_view family) {
#if defined(__x86_64__)
  if (family == "avx512" || family == "avx512bf16") return vpdpbusd_dots();
  if (family == "avx2") return vpmaddubsw_dots();
#elif defined(__aarch64__)
  if (family == "neon") return sdot_dots();
#endif
  return 0;
}

ReadStretch::ReadStretch(size_t bytes, const Threads& threads)
    : bytes_(std::max(bytes + kPart - 1, kPart) / kPart * kPart),
      words_(reinterpret_cast<uint64_t*>(memory_.allocate(bytes_))) {
  // Pages nobody wrote to are all one page of zeros, which a cache holds.
  constexpr size_t kPageWords = 4096 / sizeof(uint64_t);
  threads.run(bytes_ / kPart, [&](size_t part, int) {
    uint64_t* from = words_ + part * kPart / sizeof(uint64_t);
    for (size_t i = 0; i < kPart / sizeof(uint64_t); i += kPageWords) from[i] = i;
  });
}

void ReadStretch::read(const Threads& threads) const {
  threads.run(bytes_ / kPart, [&](size_t part, int) {
    const uint64_t* from = words_ + part * kPart / sizeof(uint64_t);
    std::array<uint64_t, 32> lanes{};
    for (size_t i = 0; i < kPart / sizeof(uint64_t); i += lanes.size()) {
      for (size_t lane = 0; lane < lanes.size(); ++lane) lanes[lane] += from[i + lane];
    }
    keep(lanes);
  });
}

double measure_int8_dots(std::string_view family, const Threads& threads) {
  constexpr int kRepeats = 8;
  constexpr int kStretches = 256;  // about half a millisecond, so that waking a thread counts for little
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    std::vector<uint64_t> done(static_cast<size_t>(threads.count()));
    const Clock::time_point start = Clock::now();
    threads.run(done.size(), [&](size_t task, int) {
      for (int i = 0; i < kStretches; ++i) done[task] += run_int8_dots(family);
    });
    const auto all = static_cast<double>(std::accumulate(done.begin(), done.end(), uint64_t{0}));
    best = std::max(best, all / seconds_since(start));
  }
  return best;
}

double measure_read(const ReadStretch& stretch, const Threads& threads) {
  constexpr int kRepeats = 3;
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const Clock::time_point start = Clock::now();
    stretch.read(threads);
    best = std::max(best, static_cast<double>(stretch.bytes()) / seconds_since(start));
  }
  return best;
}

}  // namespace keysieve
