#if defined(KEYSIEVE_SIMD_KERNELS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_KERNELS_INL_H
#undef KEYSIEVE_SIMD_KERNELS_INL_H
#else
#define KEYSIEVE_SIMD_KERNELS_INL_H
#endif

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/simd/affine_matmul-inl.h"
#include "kernels/simd/attention-inl.h"
#include "kernels/simd/decode_attention-inl.h"
#include "kernels/simd/elementwise-inl.h"
#include "kernels/simd/head_maps-inl.h"
#include "kernels/simd/index-inl.h"
#include "kernels/simd/plain_matmul-inl.h"
#include "kernels/simd/quantize-inl.h"
#include "kernels/simd/top_k-inl.h"

HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// Calls run.operator()<type>().
template <class Run>
inline void with_kv_type(KvType type, const Run& run) {
  if (type == KvType::f32) return run.template operator()<KvType::f32>();
  if (type == KvType::f16) return run.template operator()<KvType::f16>();
  run.template operator()<KvType::i8>();
}

// One i8 row: codes, padding, scale.
inline void store_codes(std::byte* out, const float* x, size_t count) {
  auto* codes = reinterpret_cast<int8_t*>(out);
  int32_t sum = 0;
  const float scale =
      count % kLanes == 0 ? round_vectors(codes, sum, x, count) : round_to_int8(codes, x, count);
  std::memset(out + count, 0, kv_scale_at(count) - count);
  std::memcpy(out + kv_scale_at(count), &scale, sizeof(scale));
}

class SimdKernels : public Kernels {
 public:
  explicit SimdKernels(std::string_view name) : name_(name) {}
  std::string_view name() const override { return name_; }

  std::unique_ptr<PackedMatrix> pack(const MatrixSource& source, std::span<const uint32_t> row_order,
                                     const Threads& threads, Arena* arena) const override {
    return pack_matrix(source, row_order, threads, arena);
  }

  void matmul(std::span<const MatmulJob> jobs, const float* x, size_t tokens, KernelScratch& scratch,
              const Threads& threads, size_t exact_values) const override {
    if (jobs.empty() || tokens == 0) return;
    bool any_affine = false, any_wide = false;
    size_t panels = 0;
    for (const MatmulJob& job : jobs) {
      const auto* affine = dynamic_cast<const PackedAffine*>(job.weight);
      any_affine = any_affine || affine != nullptr;
      any_wide = any_wide || (affine != nullptr && has_wide_units(*affine));
      panels += (job.weight->rows() + kPanelRows - 1) / kPanelRows;
    }
    const auto round = any_wide ? &quantize<2> : &quantize<1>;
    const ActivationView quantized =
        any_affine ? round(x, tokens, jobs[0].weight->columns(), scratch, threads, exact_values)
                   : ActivationView{};
    const std::vector<Part> parts = split(jobs, panels, tokens, threads);
    threads.run(parts.size(), [&](size_t i, int worker) {
      const Part& part = parts[i];
      if (const auto* affine = dynamic_cast<const PackedAffine*>(part.job->weight)) {
        affine_matmul(*part.job, *affine, part.first, part.last, quantized, scratch, worker);
      } else {
        plain_matmul(*part.job, static_cast<const PackedPlain&>(*part.job->weight), part.first, part.last, x,
                     tokens);
      }
    });
  }

  void rms_norm(float* out, const float* x, const float* weight, float eps, size_t rows,
                size_t dim) const override {
    rms_norm_rows(out, x, weight, eps, rows, dim);
  }

  void rotate(float* x, size_t token_stride, const RopeAngles& angles, size_t tokens, size_t heads,
              size_t head_dim) const override {
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t h = 0; h < heads; ++h) {
        rotate_head(x + t * token_stride + h * head_dim, angles.cosine_row(t), angles.sine_row(t),
                    angles.pairs);
      }
    }
  }

  void swiglu(float* out, const float* gate, const float* up, size_t count) const override {
    swiglu_values(out, gate, up, count);
  }

  void add(float* out, const float* x, size_t count) const override { add_values(out, x, count); }

  void store_kv(std::byte* out, KvType type, const float* x, size_t count) const override {
    if (type == KvType::f32) {
      std::copy_n(x, count, reinterpret_cast<float*>(out));
    } else if (type == KvType::i8) {
      store_codes(out, x, count);
    } else {
      store_halves(reinterpret_cast<Half*>(out), x, count);
    }
  }

  void attention(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) const override {
    if (args.queries <= kFewQueries) {
      with_kv_type(args.kv.type, [&]<KvType kType>() { decode_attention<kType>(args, scratch, threads); });
    } else if (args.selection != nullptr) {
      with_kv_type(args.kv.type,
                   [&]<KvType kType>() { sparse_prefill_attention<kType>(args, scratch, threads); });
    } else {
      with_kv_type(args.kv.type,
                   [&]<KvType kType>() { dense_prefill_attention<kType>(args, scratch, threads); });
    }
  }

  void map_heads(const HeadMapArgs& args) const override { map_heads_simd(args); }

  void index_scores(const IndexScoreArgs& args, KernelScratch& scratch, int worker) const override {
    index_scores_simd(args, scratch, worker);
  }

  void add_softmax(float* out, float* scores, size_t count, bool accumulate) const override {
    add_softmax_simd(out, scores, count, accumulate);
  }

  size_t top_k(uint32_t* out, const float* scores, size_t count, size_t k, KernelScratch& scratch,
               int worker) const override {
    return top_k_simd(out, scores, count, k, scratch, worker);
  }

 private:
  struct Part {
    const MatmulJob* job;
    size_t first;  // panels
    size_t last;
  };

  // Parts for the workers to take in turn. Decode: one run of panels a worker, because a run is read from
  // memory as one stream, and each new stream begins with the whole latency of memory (SmolLM2 at 500 tokens:
  // 344 tokens/s against 297 with 8 parts a worker, 330 with 2); of matrices past a megabyte a worker more,
  // to even out. Prefill: whole tiles of panels, and half tiles for the last few so that the workers end
  // together: 36 panels of a 576-wide projection are 9 tiles, which two workers cannot share.
  static std::vector<Part> split(std::span<const MatmulJob> jobs, size_t panels, size_t tokens,
                                 const Threads& threads) {
    constexpr size_t kLongRun = size_t{1} << 20;  // bytes
    const auto workers = static_cast<size_t>(threads.count());
    const bool prefill = tokens > kDecodeTokens;
    size_t chunk = (panels + workers - 1) / workers;
    if (prefill) {
      chunk = std::max<size_t>(4, panels / (workers * 16) / 4 * 4);
    } else {
      size_t bytes = 0;
      for (const MatmulJob& job : jobs) bytes += job.weight->bytes();
      const size_t runs = std::max<size_t>(1, bytes / workers / kLongRun);
      chunk = (chunk + runs - 1) / runs;
    }
    std::vector<Part> parts;
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
  static ActivationView quantize(const float* x, size_t tokens, size_t columns, KernelScratch& scratch,
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
    return {codes,  scales,  scaled_sums, sums,         first_sums,
            tokens, columns, exact,       exact_values, exact_columns};
  }

  std::string_view name_;
};

inline std::unique_ptr<Kernels> make(std::string_view name) { return std::make_unique<SimdKernels>(name); }

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_KERNELS_INL_H
