#if defined(KEYSIEVE_SIMD_KEY_SCORES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_KEY_SCORES_INL_H
#undef KEYSIEVE_SIMD_KEY_SCORES_INL_H
#else
#define KEYSIEVE_SIMD_KEY_SCORES_INL_H
#endif

#include <algorithm>

#include "kernels/simd/row_attention-inl.h"

// The first half of attention alone: scores of keys that may lie anywhere, for a choice among them.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// kHeads heads of one part. out [kHeads, stride], q [kHeads, dim]; part: room for [kHeads, kPartKeys].
template <KvType kType, size_t kDim, size_t kHeads>
HWY_NOINLINE void score_part(float* out, size_t stride, float* part, const float* q, float scale,
                             const PartRows& rows) {
  VF top[kHeads];
  std::fill(top, top + kHeads, hn::Set(F32(), -3e38f));
  for (size_t base = 0; base < rows.count; base += kLanes) {
    block_scores<kType, kDim, kHeads, false>(part, top, q, scale, rows, base);
  }
  for (size_t h = 0; h < kHeads; ++h) std::copy_n(part + h * kPartKeys, rows.count, out + h * stride);
}

template <KvType kType, size_t kDim>
inline void key_scores_of(const KeyScoreArgs& args, KernelScratch& scratch, int worker) {
  auto* offsets = reinterpret_cast<size_t*>(worker_scratch(
      scratch, worker, kOffsetsPerPart * sizeof(size_t) + kMostHeads * kPartKeys * sizeof(float)));
  auto* part = reinterpret_cast<float*>(offsets + kOffsetsPerPart);
  const size_t dim = kDim != 0 ? kDim : args.kv.head_dim;
  const size_t row_bytes = kv_row_bytes(kType, dim);
  for (size_t first = 0; first < args.slots.size(); first += kPartKeys) {
    const PartRows rows{.keys = args.kv.key_row(args.kv_head, 0),
                        .values = nullptr,
                        .offsets = offsets,
                        .count = std::min(kPartKeys, args.slots.size() - first),
                        .dim = dim};
    for (size_t j = 0; j < rows.count; ++j) offsets[j] = args.slots[first + j] * row_bytes;
    std::fill(offsets + rows.count, offsets + kOffsetsPerPart, offsets[rows.count - 1]);
    for (size_t j = 0; j < kRowsAhead; ++j) prefetch_row<kType, kDim>(rows.keys + rows.offsets[j], rows);
    in_turns(args.heads, [&]<size_t kHeads>(size_t h) {
      score_part<kType, kDim, kHeads>(args.scores + h * args.stride + first, args.stride, part,
                                      args.q + h * dim, args.scale, rows);
    });
  }
}

template <KvType kType>
inline void key_scores_simd(const KeyScoreArgs& args, KernelScratch& scratch, int worker) {
  with_head_dim(args.kv.head_dim, [&]<size_t kDim>() { key_scores_of<kType, kDim>(args, scratch, worker); });
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_KEY_SCORES_INL_H
