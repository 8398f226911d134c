#if defined(KEYSIEVE_SIMD_KERNELS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_KERNELS_INL_H
#undef KEYSIEVE_SIMD_KERNELS_INL_H
#else
#define KEYSIEVE_SIMD_KERNELS_INL_H
#endif

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/simd/attention-inl.h"
#include "kernels/simd/decode_attention-inl.h"
#include "kernels/simd/elementwise-inl.h"
#include "kernels/simd/head_maps-inl.h"
#include "kernels/simd/index-inl.h"
#include "kernels/simd/key_scores-inl.h"
#include "kernels/simd/matmul-inl.h"
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
    matmul_simd(jobs, x, tokens, scratch, threads, exact_values);
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

  void key_scores(const KeyScoreArgs& args, KernelScratch& scratch, int worker) const override {
    with_kv_type(args.kv.type, [&]<KvType kType>() { key_scores_simd<kType>(args, scratch, worker); });
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
  std::string_view name_;
};

inline std::unique_ptr<Kernels> make(std::string_view name) { return std::make_unique<SimdKernels>(name); }

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_KERNELS_INL_H
