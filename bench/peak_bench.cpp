// What this machine can do at best, for the shares that other benchmarks quote: int8 dot products from
// registers on one core, and bytes read a second by one core and by all.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/memory.h"
#include "core/threads.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace {

constexpr int kChains = 16;  // more than latency x throughput (4 to 5 cycles, 2 a cycle) needs
constexpr int kRounds = 1000;

__attribute__((target("avx512f,avx512vnni"))) void vnni_round(__m512i (&sums)[kChains], __m512i a,
                                                              __m512i b) {
  for (int r = 0; r < kRounds; ++r) {
    for (auto& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  }
}

__attribute__((target("avx512f,avx512vnni"))) void peak_vnni(benchmark::State& state) {
  if (!__builtin_cpu_supports("avx512vnni")) {
    state.SkipWithError("no AVX-512 VNNI here");
    return;
  }
  __m512i sums[kChains] = {};
  const __m512i a = _mm512_set1_epi8(3);
  const __m512i b = _mm512_set1_epi8(-5);
  for (auto _ : state) {
    vnni_round(sums, a, b);
    benchmark::DoNotOptimize(sums);
  }
  state.counters["MAC/s"] =
      benchmark::Counter(64.0 * kChains * kRounds, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(peak_vnni);

}  // namespace
#endif

namespace {

void read_memory(benchmark::State& state) {
  constexpr size_t kBytes = size_t{512} << 20;  // 16 times the largest cache level seen
  static const keysieve::AlignedArray<uint64_t> data(kBytes / sizeof(uint64_t), 1);
  const keysieve::Threads threads(static_cast<int>(state.range(0)));
  constexpr size_t kParts = 64;
  const size_t part = data.size() / kParts;
  std::vector<uint64_t> sums(kParts);
  for (auto _ : state) {
    threads.run(kParts, [&](size_t i, int) {
      uint64_t lanes[32] = {};
      const uint64_t* from = data.data() + i * part;
      for (size_t j = 0; j < part; j += 32) {
        for (size_t lane = 0; lane < 32; ++lane) lanes[lane] += from[j + lane];
      }
      sums[i] = std::accumulate(lanes, lanes + 32, uint64_t{0});
    });
    benchmark::DoNotOptimize(sums.data());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kBytes));
}
BENCHMARK(read_memory)->Arg(1)->Arg(keysieve::Threads().count())->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
