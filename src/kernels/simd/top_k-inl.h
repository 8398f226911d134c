#if defined(KEYSIEVE_SIMD_TOP_K_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_TOP_K_INL_H
#undef KEYSIEVE_SIMD_TOP_K_INL_H
#else
#define KEYSIEVE_SIMD_TOP_K_INL_H
#endif

#include <algorithm>
#include <cmath>

#include "kernels/score_order.h"
#include "kernels/simd/vectors-inl.h"

// The k best of a row of scores, without a data-dependent branch in any inner loop: scores are as good as
// random to a branch predictor, and quickselect took 27 microseconds for 188 of 4,028 fresh scores where a
// row it had just seen took 1.2.
//   1. A sample of every 16th score gives a floor a little under the k-th best.
//   2. One pass keeps the scores above the floor: about k + 3 sqrt(16 k) of them.
//   3. The k-th best of those is found bit by bit, counting with whole vectors.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

using VU32 = hn::Vec<U32>;

// score_order for a vector.
HWY_INLINE VU32 order_of(VF scores) {
  const auto bits = hn::BitCast(U32(), hn::Add(scores, hn::Zero(F32())));
  const auto negative = hn::BitCast(U32(), hn::BroadcastSignBit(hn::BitCast(I32(), bits)));
  const auto order = hn::Xor(bits, hn::Or(negative, hn::Set(U32(), 0x80000000u)));
  return hn::IfThenElse(hn::RebindMask(U32(), hn::IsNaN(scores)), hn::Zero(U32()), order);
}

HWY_INLINE size_t whole_vectors(size_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// How many of orders [count rounded up to whole vectors, zero-padded] are at least `floor` > 0.
HWY_INLINE size_t count_at_least(const uint32_t* orders, size_t count, uint32_t floor) {
  const VU32 below = hn::Set(U32(), floor - 1);
  VU32 hits = hn::Zero(U32());
  for (size_t i = 0; i < count; i += kLanes) {
    const auto above = hn::Gt(hn::LoadU(U32(), orders + i), below);
    hits = hn::Sub(hits, hn::VecFromMask(U32(), above));  // a true lane is -1
  }
  return hn::GetLane(hn::SumOfLanes(U32(), hits));
}

// The largest order that at least k of orders [count, zero-padded to whole vectors] reach; 1 <= k <= count.
inline uint32_t kth_largest(const uint32_t* orders, size_t count, size_t k) {
  // Bits that all orders share need no counting: softmax scores differ in the lower 25 or so.
  uint32_t differing = 0;
  for (size_t i = 1; i < count; ++i) differing |= orders[i] ^ orders[0];
  const int first_bit = 32 - std::countl_zero(differing);
  uint32_t found = first_bit == 32 ? 0 : orders[0] >> first_bit << first_bit;
  for (int bit = first_bit - 1; bit >= 0; --bit) {
    const uint32_t trial = found | 1u << bit;
    found = count_at_least(orders, count, trial) >= k ? trial : found;
  }
  return found;
}

// Keeps the scores whose order is at least `floor`: their orders and indices, ascending, zero-padded to whole
// vectors. Both outputs need room for count + 2 vectors. Returns how many.
inline size_t keep_above(uint32_t* orders, uint32_t* indices, const float* scores, size_t count,
                         uint32_t floor) {
  const VU32 least = hn::Set(U32(), floor);
  VU32 index = hn::Iota(U32(), 0);
  size_t kept = 0;
  size_t s = 0;
  for (; s + kLanes <= count; s += kLanes) {
    const VU32 order = order_of(hn::LoadU(F32(), scores + s));
    const auto keep = hn::Not(hn::Lt(order, least));
    hn::StoreU(hn::Compress(order, keep), U32(), orders + kept);
    hn::StoreU(hn::Compress(index, keep), U32(), indices + kept);
    kept += hn::CountTrue(U32(), keep);
    index = hn::Add(index, hn::Set(U32(), static_cast<uint32_t>(kLanes)));
  }
  for (; s < count; ++s) {
    orders[kept] = score_order(scores[s]);
    indices[kept] = static_cast<uint32_t>(s);
    kept += orders[kept] >= floor ? 1 : 0;
  }
  std::fill(orders + kept, orders + whole_vectors(kept), 0u);
  return kept;
}

// An order that about k + 3 deviations of the scores reach, from every 16th score. sample: room for count /
// 16 and a vector.
inline uint32_t guess_floor(uint32_t* sample, const float* scores, size_t count, size_t k) {
  constexpr size_t kStride = 16;
  const size_t size = count / kStride;
  // Of the k best, k / 16 are in the sample, give or take sqrt(k / 16).
  const double expected = static_cast<double>(k) / static_cast<double>(kStride);
  const auto rank = static_cast<size_t>(expected + 3.0 * std::sqrt(expected) + 3.0);
  if (rank >= size) return 0;
  // The offset within a stride varies, lest a period in the text be met at one phase only.
  for (size_t i = 0; i < size; ++i) sample[i] = score_order(scores[i * kStride + (i * 7) % kStride]);
  std::fill(sample + size, sample + whole_vectors(size), 0u);
  return kth_largest(sample, size, rank);
}

inline constexpr uint32_t kSkipped = 0xffffffffu;  // an order no score has: it would be a positive NaN's

// indices [count] = those whose order is at least `threshold` and not kSkipped, in place.
inline void compress_reaching(uint32_t* indices, const uint32_t* orders, size_t count, uint32_t threshold) {
  size_t written = 0;
  for (size_t i = 0; i < count; i += kLanes) {
    const VU32 order = hn::LoadU(U32(), orders + i);
    const auto reach = hn::AndNot(hn::Eq(order, hn::Set(U32(), kSkipped)),
                                  hn::Not(hn::Lt(order, hn::Set(U32(), threshold))));
    const auto in_row = hn::FirstN(U32(), std::min(count - i, kLanes));
    const auto keep = hn::And(reach, in_row);
    hn::StoreU(hn::Compress(hn::LoadU(U32(), indices + i), keep), U32(), indices + written);
    written += hn::CountTrue(U32(), keep);
  }
}

inline size_t top_k_simd(uint32_t* out, const float* scores, size_t count, size_t k, KernelScratch& scratch,
                         int worker) {
  if (k >= count) {
    for (size_t i = 0; i < count; ++i) out[i] = static_cast<uint32_t>(i);
    return count;
  }
  if (k == 0) return 0;
  const size_t room = whole_vectors(count) + 2 * kLanes;
  auto* orders = reinterpret_cast<uint32_t*>(worker_scratch(scratch, worker, 2 * room * sizeof(uint32_t)));
  uint32_t* indices = orders + room;
  const uint32_t floor = guess_floor(orders, scores, count, k);
  size_t kept = keep_above(orders, indices, scores, count, floor);
  if (kept < k) kept = keep_above(orders, indices, scores, count, 0);
  const uint32_t threshold = kth_largest(orders, kept, k);
  // More may tie at the threshold than fit: the earliest of them are left out, by taking their order away.
  const size_t reaching = threshold == 0 ? kept : count_at_least(orders, kept, threshold);
  size_t ties_to_skip = reaching - k;
  for (size_t i = 0; ties_to_skip > 0; ++i) {
    if (orders[i] != threshold) continue;
    orders[i] = kSkipped;
    --ties_to_skip;
  }
  compress_reaching(indices, orders, kept, threshold);
  std::copy_n(indices, k, out);
  return k;
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_TOP_K_INL_H
