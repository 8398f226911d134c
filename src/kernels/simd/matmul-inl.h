#if defined(KEYSIEVE_SIMD_MATMUL_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_MATMUL_INL_H
#undef KEYSIEVE_SIMD_MATMUL_INL_H
#else
#define KEYSIEVE_SIMD_MATMUL_INL_H
#endif

#include <algorithm>
#include <vector>

#include "kernels/simd/affine_matmul-inl.h"
#include "kernels/simd/elementwise-inl.h"
#include "kernels/simd/plain_matmul-inl.h"
#include "kernels/simd/quantize-inl.h"

// Kernels::matmul: rounds the input once, and shares the jobs' panels out to the threads.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// Panels first .. last - 1 of a job.
struct MatmulPart {
  const MatmulJob* job;
  size_t first;
  size_t last;
};

struct MatmulInput {
  const float* x;  // [tokens, columns]
  size_t tokens;
  ActivationView rounded;  // of x; empty where no weight is quantised
};

// Parts for the workers to take in turn. Decode: one run of panels a worker, because a run is read from
// memory as one stream, and each new stream begins with the whole latency of memory (SmolLM2 at 500 tokens:
// 344 tokens/s against 297 with 8 parts a worker, 330 with 2); of matrices past a megabyte a worker more,
// to even out. Prefill: whole tiles of panels, and half tiles for the last few so that the workers end
// together: 36 panels of a 576-wide projection are 9 tiles, which two workers cannot share.
inline std::vector<MatmulPart> split(std::span<const MatmulJob> jobs, size_t tokens, const Threads& threads) {
  constexpr size_t kLongRun = size_t{1} << 20;  // bytes
  const auto workers = static_cast<size_t>(threads.count());
  const bool prefill = tokens > kDecodeTokens;
  size_t panels = 0, bytes = 0;
  for (const MatmulJob& job : jobs) {
    panels += (job.weight->rows() + kPanelRows - 1) / kPanelRows;
    bytes += job.weight->bytes();
  }
  size_t chunk = (panels + workers - 1) / workers;
  if (prefill) {
    chunk = std::max<size_t>(4, panels / (workers * 16) / 4 * 4);
  } else {
    const size_t runs = std::max<size_t>(1, bytes / workers / kLongRun);
    chunk = (chunk + runs - 1) / runs;
  }
  std::vector<MatmulPart> parts;
  for (const MatmulJob& job : jobs) {
    const size_t count = (job.weight->rows() + kPanelRows - 1) / kPanelRows;
    for (size_t first = 0; first < count;) {
      const bool last = prefill && workers > 1 && panels <= 4 * workers;
      const size_t size = std::min(last ? 2 : chunk, count - first);
      parts.push_back({&job, first, first + size});
      first += size;
      panels -= size;
    }
  }
  return parts;
}

// Rounds x to int8 in the shared scratch, kShared groups by one scale and kShared * per_group values not at
// all: a scale of two groups has twice the values to coarsen it (docs/decisions/0023).
template <size_t kShared>
inline ActivationView quantize(const float* x, size_t tokens, size_t columns, KernelScratch& scratch,
                               const Threads& threads, size_t per_group) {
  const size_t taken_out = kShared * per_group;
  const size_t exact = (taken_out + 1) / 2 * 2;  // add_exact takes two at a time
  const size_t groups = columns / kGroup;
  const size_t values = tokens * groups;
  std::byte* memory = shared_scratch(
      scratch, values * (4 * sizeof(float) + kGroup) + tokens * exact * (sizeof(float) + sizeof(uint32_t)));
  auto* scales = reinterpret_cast<float*>(memory);
  float* scaled_sums = scales + values;
  auto* sums = reinterpret_cast<int32_t*>(scaled_sums + values);
  int32_t* first_sums = sums + values;
  auto* exact_values = reinterpret_cast<float*>(first_sums + values);
  auto* exact_columns = reinterpret_cast<uint32_t*>(exact_values + tokens * exact);
  auto* codes = reinterpret_cast<int8_t*>(exact_columns + tokens * exact);
  const auto one = [&](size_t t) {
    const size_t at = t * groups;
    const QuantizedToken token{codes + t * columns, scales + at, scaled_sums + at, sums + at,
                               first_sums + at};
    quantize_token<kShared>(token, x + t * columns, columns);
    std::fill_n(exact_values + t * exact, exact, 0.0f);
    std::fill_n(exact_columns + t * exact, exact, 0u);
    take_out_largest<kShared>(token, x + t * columns, columns, taken_out, exact_values + t * exact,
                              exact_columns + t * exact);
  };
  if (tokens <= kDecodeTokens) {
    for (size_t t = 0; t < tokens; ++t) one(t);
  } else {
    constexpr size_t kTokensPerTask = 16;
    threads.run((tokens + kTokensPerTask - 1) / kTokensPerTask, [&](size_t task, int) {
      for (size_t t = task * kTokensPerTask; t < std::min(tokens, (task + 1) * kTokensPerTask); ++t) one(t);
    });
  }
  return {codes, scales, scaled_sums, sums, first_sums, tokens, columns, exact, exact_values, exact_columns};
}

// What the jobs' quantised weights read, if there are any.
inline ActivationView round_input(std::span<const MatmulJob> jobs, const float* x, size_t tokens,
                                  KernelScratch& scratch, const Threads& threads, size_t exact_values) {
  bool any_affine = false, any_wide = false;
  for (const MatmulJob& job : jobs) {
    for (const PackedMatrix* weight : {job.weight, job.up}) {
      const auto* affine = dynamic_cast<const PackedAffine*>(weight);
      any_affine = any_affine || affine != nullptr;
      any_wide = any_wide || (affine != nullptr && has_wide_units(*affine));
    }
  }
  if (!any_affine) return {};
  const auto round = any_wide ? &quantize<2> : &quantize<1>;
  return round(x, tokens, jobs[0].weight->columns(), scratch, threads, exact_values);
}

// Memory that multiply() works in.
inline size_t work_bytes(const PackedMatrix& weight, size_t tokens) {
  const auto* affine = dynamic_cast<const PackedAffine*>(&weight);
  return affine == nullptr || tokens <= kDecodeTokens ? 0 : most_unpacked_bytes(*affine);
}

// Rows 16 * first .. 16 * last - 1 of the weight times the input.
inline void multiply(const RowOutput& to, const PackedMatrix& weight, size_t first, size_t last,
                     const MatmulInput& input, std::byte* work) {
  if (const auto* affine = dynamic_cast<const PackedAffine*>(&weight)) {
    return affine_matmul(to, *affine, first, last, input.rounded, work);
  }
  plain_matmul(to, static_cast<const PackedPlain&>(weight), first, last, input.x, input.tokens);
}

// work [work_bytes of the job's weight]
inline void run_part(const MatmulPart& part, const MatmulInput& input, std::byte* work) {
  const MatmulJob& job = *part.job;
  multiply({job.out, job.out_stride, 0, job.add}, *job.weight, part.first, part.last, input, work);
}

// A part of a SwiGLU, a tile of panels of both projections at a time: they meet in the nearer caches, and
// only what they come to goes to memory, a third of the bytes.
inline void run_gated_part(const MatmulPart& part, const MatmulInput& input, KernelScratch& scratch,
                           int worker) {
  const MatmulJob& job = *part.job;
  constexpr size_t kRows = kTilePanels * kPanelRows;
  const size_t both = input.tokens * 2 * kRows;  // values
  const size_t work_size = std::max(work_bytes(*job.weight, input.tokens), work_bytes(*job.up, input.tokens));
  std::byte* memory = worker_scratch(scratch, worker, both * sizeof(float) + work_size);
  auto* gate = reinterpret_cast<float*>(memory);  // [tokens, gate and up, kRows]
  std::byte* work = memory + both * sizeof(float);
  for (size_t first = part.first; first < part.last; first += kTilePanels) {
    const size_t last = std::min(first + kTilePanels, part.last);
    const size_t row = first * kPanelRows;
    multiply({gate, 2 * kRows, row, false}, *job.weight, first, last, input, work);
    multiply({gate + kRows, 2 * kRows, row, false}, *job.up, first, last, input, work);
    const size_t rows = std::min(last * kPanelRows, job.weight->rows()) - row;
    for (size_t t = 0; t < input.tokens; ++t) {
      const float* values = gate + t * 2 * kRows;
      swiglu_values(job.out + t * job.out_stride + row, values, values + kRows, rows);
    }
  }
}

// Few tokens: each projection is read as one stream, and the little they come to is joined at the end.
inline void decode_matmul(std::span<const MatmulJob> jobs, const MatmulInput& input, KernelScratch& scratch,
                          const Threads& threads) {
  size_t up_values = 0;
  for (const MatmulJob& job : jobs) up_values += job.up != nullptr ? input.tokens * job.up->rows() : 0;
  // No part of a decode needs a worker's scratch, so this stays.
  auto* up = reinterpret_cast<float*>(worker_scratch(scratch, 0, up_values * sizeof(float)));
  std::vector<MatmulJob> single;
  for (const MatmulJob& job : up_values == 0 ? std::span<const MatmulJob>() : jobs) {
    single.push_back({job.out, job.out_stride, job.weight, job.add});
    if (job.up == nullptr) continue;
    single.push_back({up, job.up->rows(), job.up});
    up += input.tokens * job.up->rows();
  }
  const std::vector<MatmulPart> parts =
      split(up_values == 0 ? jobs : std::span<const MatmulJob>(single), input.tokens, threads);
  threads.run(parts.size(), [&](size_t i, int) { run_part(parts[i], input, nullptr); });
  up -= up_values;
  for (const MatmulJob& job : jobs) {
    if (job.up == nullptr) continue;
    for (size_t t = 0; t < input.tokens; ++t, up += job.up->rows()) {
      float* out = job.out + t * job.out_stride;
      swiglu_values(out, out, up, job.up->rows());
    }
  }
}

inline void matmul_simd(std::span<const MatmulJob> jobs, const float* x, size_t tokens,
                        KernelScratch& scratch, const Threads& threads, size_t exact_values) {
  if (jobs.empty() || tokens == 0) return;
  const MatmulInput input{x, tokens, round_input(jobs, x, tokens, scratch, threads, exact_values)};
  if (tokens <= kDecodeTokens) return decode_matmul(jobs, input, scratch, threads);
  const std::vector<MatmulPart> parts = split(jobs, tokens, threads);
  threads.run(parts.size(), [&](size_t i, int worker) {
    const MatmulJob& job = *parts[i].job;
    if (job.up != nullptr) return run_gated_part(parts[i], input, scratch, worker);
    run_part(parts[i], input, worker_scratch(scratch, worker, work_bytes(*job.weight, tokens)));
  });
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_MATMUL_INL_H
