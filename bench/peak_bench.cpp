// What this machine can do at best, for the shares that other benchmarks quote: int8 dot products from
// registers, and bytes read a second, by one core and by all. `keysieve generate --stats` measures the same.
#include <benchmark/benchmark.h>

#include <string>

#include "core/machine_peaks.h"
#include "kernels/kernels.h"

namespace {

void peak_int8_dots(benchmark::State& state, const std::string& family) {
  uint64_t done = 0;
  for (auto _ : state) done = keysieve::run_int8_dots(family);
  state.counters["MAC/s"] =
      benchmark::Counter(static_cast<double>(done), benchmark::Counter::kIsIterationInvariantRate);
}

void read_memory(benchmark::State& state) {
  const keysieve::Threads threads(static_cast<int>(state.range(0)));
  const keysieve::ReadStretch stretch(size_t{512} << 20, threads);  // 16 times the largest cache level seen
  for (auto _ : state) stretch.read(threads);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(stretch.bytes()));
}
BENCHMARK(read_memory)->Arg(1)->Arg(keysieve::Threads().count())->UseRealTime();

}  // namespace

int main(int argc, char** argv) {
  for (const std::string_view name : keysieve::available_kernels()) {
    const std::string family(name);
    if (keysieve::run_int8_dots(family) == 0) continue;
    benchmark::RegisterBenchmark(("peak_int8_dots/" + family).c_str(), peak_int8_dots, family);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
