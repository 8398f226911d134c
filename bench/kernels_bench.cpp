// Kernels in the shapes of SmolLM2-135M (576 wide, 9 heads of 64, 3 KV heads, MLP 1536), on one thread, for
// every family this machine can run. Rates: MAC/s are multiply-adds, bytes/s what had to be read.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "core/memory.h"
#include "kernels/kernels.h"

namespace keysieve {
namespace {

// Weights that cost nothing to make: the codes do not matter for speed.
class CountedMatrix : public MatrixSource {
 public:
  CountedMatrix(size_t rows, size_t columns, AffineFormat format)
      : rows_(rows), columns_(columns), format_(format) {}
  size_t rows() const override { return rows_; }
  size_t columns() const override { return columns_; }
  uint64_t file_bytes() const override { return 0; }
  std::optional<AffineFormat> affine() const override { return format_; }
  DType plain_dtype() const override { return DType::f32; }
  void read_codes(size_t row, std::span<uint8_t> codes, std::span<float> scales,
                  std::span<float> biases) const override {
    for (size_t c = 0; c < codes.size(); ++c)
      codes[c] = static_cast<uint8_t>((row * 7 + c * 5) % (1u << format_.bits));
    std::fill(scales.begin(), scales.end(), 0.01f);
    std::fill(biases.begin(), biases.end(), -0.08f);
  }
  void read_values(size_t, std::span<float> values) const override {
    std::fill(values.begin(), values.end(), 0.1f);
  }
  void release(size_t, size_t) const override {}

 private:
  size_t rows_;
  size_t columns_;
  AffineFormat format_;
};

std::vector<float> noise(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(random()) * 0x1p-31f - 1.0f;
  return values;
}

using Family = std::shared_ptr<const Kernels>;

// range(0) tokens, range(1) of each token's values not rounded.
void matmul(benchmark::State& state, const Family& kernels, AffineFormat format, size_t rows,
            size_t columns) {
  const auto tokens = static_cast<size_t>(state.range(0));
  const auto exact = static_cast<size_t>(state.range(1));
  const Threads threads(1);
  KernelScratch scratch(threads);
  const auto weight = kernels->pack(CountedMatrix(rows, columns, format), {}, threads);
  std::vector<float> x = noise(tokens * columns, 1);
  // Two channels stand out, the same in every token, as in a model's normed states.
  for (size_t t = 0; t < tokens; ++t) x[t * columns + 7] = x[t * columns + columns / 2] = 20.0f;
  std::vector<float> out(tokens * rows);
  const MatmulJob job{out.data(), rows, weight.get()};
  for (auto _ : state) {
    kernels->matmul({&job, 1}, x.data(), tokens, scratch, threads, exact);
    benchmark::ClobberMemory();
  }
  state.counters["MAC/s"] = benchmark::Counter(static_cast<double>(tokens * rows * columns),
                                               benchmark::Counter::kIsIterationInvariantRate);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(weight->bytes()));
}

// range(0) queries after range(1) earlier positions; range(2) positions read per query, 0: dense, the same
// for range(3) neighbouring queries.
void attention(benchmark::State& state, const Family& kernels, size_t heads, size_t kv_heads) {
  const auto queries = static_cast<size_t>(state.range(0));
  const auto past = static_cast<size_t>(state.range(1));
  const auto budget = static_cast<size_t>(state.range(2));
  const auto alike = static_cast<size_t>(state.range(3));
  constexpr size_t kDim = 64;
  const size_t capacity = past + queries;
  const Threads threads(1);
  KernelScratch scratch(threads);
  const std::vector<float> source = noise(kv_heads * capacity * kDim, 2);
  // Rows begin on cache lines, as in the caches of a model, which are mapped pages.
  std::vector<std::byte> store(source.size() * 4 + 2 * kAlignment);
  const size_t past_line = reinterpret_cast<uintptr_t>(store.data()) % kAlignment;
  std::byte* keys = store.data() + kAlignment - past_line;
  std::byte* values = keys + source.size() * 2;
  kernels->store_kv(keys, KvType::f16, source.data(), source.size());
  kernels->store_kv(values, KvType::f16, source.data(), source.size());
  const std::vector<float> q = noise(queries * heads * kDim, 3);
  std::vector<float> out(q.size());
  // Neighbouring queries that choose for themselves share about 70% of what they read, as real ones do.
  std::vector<uint32_t> slots(queries * kv_heads * budget),
      counts(queries * kv_heads, static_cast<uint32_t>(budget));
  std::mt19937 random(4);
  for (size_t row = 0; budget > 0 && row < counts.size(); ++row) {
    if (row / kv_heads % alike != 0) {
      std::copy_n(slots.data() + (row - kv_heads) * budget, budget, slots.data() + row * budget);
      continue;
    }
    const size_t stride = capacity / budget;
    for (size_t j = 0; j < budget; ++j) {
      const size_t jitter = j % 10 < 7 ? j % stride : random() % stride;
      // The first four are read by all, as sinks are.
      slots[row * budget + j] = static_cast<uint32_t>(j < 4 ? j : std::min(j * stride + jitter, past));
    }
  }
  const SelectionView selection{slots.data(), counts.data(), kv_heads, budget};
  AttentionArgs args{};
  args.out = out.data();
  args.q = q.data();
  args.queries = queries;
  args.heads = heads;
  args.scale = 0.125f;
  args.kv = {keys, values, KvType::f16, kv_heads, capacity, kDim};
  args.first_visible = past;
  args.selection = budget > 0 ? &selection : nullptr;
  for (auto _ : state) {
    kernels->attention(args, scratch, threads);
    benchmark::ClobberMemory();
  }
  const double read =
      budget > 0 ? static_cast<double>(budget) : static_cast<double>(past) + static_cast<double>(queries) / 2;
  state.counters["MAC/s"] = benchmark::Counter(static_cast<double>(queries * heads * kDim) * 2 * read,
                                               benchmark::Counter::kIsIterationInvariantRate);
  state.counters["queries/s"] =
      benchmark::Counter(static_cast<double>(queries), benchmark::Counter::kIsIterationInvariantRate);
}

// Scores for one KV group: heads of rank 24, softmax each (the native shape). range(0) keys, range(1)
// neighbouring queries together.
void index_scores(benchmark::State& state, const Family& kernels, IndexKeyType type, size_t heads) {
  const auto count = static_cast<size_t>(state.range(0));
  const auto queries = static_cast<size_t>(state.range(1));
  constexpr size_t kDim = 24;
  const Threads threads(1);
  KernelScratch scratch(threads);
  const size_t slots = (count + queries + 15) / 16 * 16;
  std::vector<std::byte> keys(index_key_bytes(type, kDim, slots)), scales(slots * index_scale_bytes(type));
  std::vector<float> scores(slots);
  const std::vector<float> source = noise(slots * kDim, 5), q = noise(queries * heads * kDim, 6);
  for (size_t s = 0; s < slots; ++s)
    store_index_key(keys.data(), scales.data(), type, kDim, s, &source[s * kDim]);
  IndexScoreArgs args{};
  args.scores = scores.data();
  args.q = q.data();
  args.heads = heads;
  args.count = count;
  args.keys = {keys.data(), scales.data(), type, kDim};
  args.combine = IndexCombine::softmax_sum;
  args.queries = queries;
  args.query_stride = heads * kDim;
  for (auto _ : state) {
    kernels->index_scores(args, scratch, 0);
    benchmark::ClobberMemory();
  }
  state.counters["keys/s"] =
      benchmark::Counter(static_cast<double>(count * queries), benchmark::Counter::kIsIterationInvariantRate);
}

// Attention scores of 7 heads of one KV head, for refining among some of 30,000 keys. range(0) keys, range(1)
// neighbouring queries together.
void key_scores(benchmark::State& state, const Family& kernels) {
  const auto count = static_cast<size_t>(state.range(0));
  const auto queries = static_cast<size_t>(state.range(1));
  constexpr size_t kDim = 64, kHeads = 7, kCapacity = 30000;
  const Threads threads(1);
  KernelScratch scratch(threads);
  const std::vector<float> source = noise(kCapacity * kDim, 8), q = noise(queries * kHeads * kDim, 9);
  std::vector<std::byte> store(source.size() * 2 + kAlignment);
  std::byte* keys = store.data() + kAlignment - reinterpret_cast<uintptr_t>(store.data()) % kAlignment;
  kernels->store_kv(keys, KvType::f16, source.data(), source.size());
  std::vector<uint32_t> slots(count);
  std::mt19937 random(10);
  for (uint32_t& slot : slots) slot = static_cast<uint32_t>(random() % kCapacity);
  std::sort(slots.begin(), slots.end());
  std::vector<float> scores(queries * kHeads * count);
  const KeyScoreArgs args{.scores = scores.data(),
                          .stride = count,
                          .q = q.data(),
                          .heads = kHeads,
                          .scale = 0.125f,
                          .kv = {keys, keys, KvType::f16, 1, kCapacity, kDim},
                          .kv_head = 0,
                          .slots = slots,
                          .queries = queries,
                          .query_stride = kHeads * kDim};
  for (auto _ : state) {
    kernels->key_scores(args, scratch, 0);
    benchmark::ClobberMemory();
  }
  state.counters["MAC/s"] = benchmark::Counter(static_cast<double>(scores.size() * kDim),
                                               benchmark::Counter::kIsIterationInvariantRate);
}

void top_k(benchmark::State& state, const Family& kernels) {
  const auto count = static_cast<size_t>(state.range(0));
  const Threads threads(1);
  KernelScratch scratch(threads);
  // Fresh scores each time: a repeated row would teach the branch predictor what real rows do not.
  constexpr size_t kRows = 64;
  std::vector<float> scores = noise(kRows * count, 7);
  for (float& s : scores) s = std::exp(8.0f * s);
  std::vector<uint32_t> out(512);
  size_t row = 0;
  for (auto _ : state) {
    const float* fresh = scores.data() + row * count;
    benchmark::DoNotOptimize(kernels->top_k(out.data(), fresh, count, out.size(), scratch, 0));
    row = (row + 1) % kRows;
  }
  state.counters["scores/s"] =
      benchmark::Counter(static_cast<double>(count), benchmark::Counter::kIsIterationInvariantRate);
}

void register_family(const Family& kernels) {
  const std::string prefix = std::string(kernels->name()) + "/";
  const struct {
    const char* name;
    AffineFormat format;
  } formats[] = {{"q4_1", {4, 32, std::nullopt}}, {"q4_0", {4, 32, 8}},           {"q5_0", {5, 32, 16}},
                 {"q6_k", {6, 16, 32}},           {"q8_0", {8, 32, 128}},         {"q3_k", {4, 16, 4}},
                 {"iq4_nl", {8, 32, 128, true}},  {"mlx4", {4, 64, std::nullopt}}};
  for (const auto& f : formats) {
    benchmark::RegisterBenchmark((prefix + "matmul/" + f.name + "/1536x576").c_str(),
                                 [=](benchmark::State& s) { matmul(s, kernels, f.format, 1536, 576); })
        ->Args({1, 0})
        ->Args({1, 2})
        ->Args({512, 0})
        ->Args({512, 2});
  }
  // A matrix past every cache: what decode can read a second.
  benchmark::RegisterBenchmark(
      (prefix + "matmul/q4_1/65536x2048").c_str(),
      [=](benchmark::State& s) { matmul(s, kernels, {4, 32, std::nullopt}, 65536, 2048); })
      ->Args({1, 0})
      ->Args({1, 2});
  benchmark::RegisterBenchmark((prefix + "attention").c_str(),
                               [=](benchmark::State& s) { attention(s, kernels, 9, 3); })
      ->Args({256, 0, 0, 1})
      ->Args({256, 4096, 0, 1})
      ->Args({256, 8000, 512, 1})
      ->Args({256, 8000, 512, 4})
      ->Args({1, 4096, 0, 1})
      ->Args({1, 8000, 512, 1});
  // The shape of Qwen2.5-0.5B: 7 query heads share a KV head.
  benchmark::RegisterBenchmark((prefix + "attention/14_heads_2_kv").c_str(),
                               [=](benchmark::State& s) { attention(s, kernels, 14, 2); })
      ->Args({256, 4096, 0, 1})
      ->Args({256, 16000, 1024, 1})
      ->Args({256, 16000, 1024, 4})
      ->Args({1, 16000, 1024, 1});
  for (const auto& [name, type] : {std::pair{"i8", IndexKeyType::i8}, std::pair{"i4", IndexKeyType::i4}}) {
    for (const size_t heads : {3, 7}) {
      benchmark::RegisterBenchmark(
          (prefix + "index_scores/" + name + "/" + std::to_string(heads) + "_heads").c_str(),
          [=](benchmark::State& s) { index_scores(s, kernels, type, heads); })
          ->Args({1024, 1})
          ->Args({8000, 1})
          ->Args({8000, 4})
          ->Args({30000, 1})
          ->Args({30000, 4});
    }
  }
  benchmark::RegisterBenchmark((prefix + "key_scores").c_str(),
                               [=](benchmark::State& s) { key_scores(s, kernels); })
      ->Args({2048, 1})
      ->Args({2048, 4});
  benchmark::RegisterBenchmark((prefix + "top_k").c_str(), [=](benchmark::State& s) { top_k(s, kernels); })
      ->Arg(1024)
      ->Arg(8000)
      ->Arg(30000);
}

}  // namespace
}  // namespace keysieve

int main(int argc, char** argv) {
  for (const std::string_view name : keysieve::available_kernels()) {
    if (name != "reference") keysieve::register_family(keysieve::make_kernels(name));
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
