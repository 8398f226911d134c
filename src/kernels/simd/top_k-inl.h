#if defined(KEYSIEVE_SIMD_TOP_K_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_TOP_K_INL_H
#undef KEYSIEVE_SIMD_TOP_K_INL_H
#else
#define KEYSIEVE_SIMD_TOP_K_INL_H
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/score_order.h"
#include "kernels/simd/vectors-inl.h"

// The k best of a row of scores, without a data-dependent branch in any inner loop: scores are as good as
// random to a branch predictor, and quickselect took 27 microseconds for 188 of 4,028 fresh scores where a
// row it had just seen took 1.2.
//   1. A sample of every 16th score gives a floor a little under the k-th best.
//   2. One pass keeps the scores above the floor: about k + 2 sqrt(16 k) of them.
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
  // Counted in scalar registers: a sum over lanes takes 20 cycles more, at each of some 30 calls.
  size_t hits[2] = {0, 0};
  size_t i = 0;
  for (; i + kLanes < count; i += 2 * kLanes) {
    hits[0] += hn::CountTrue(U32(), hn::Gt(hn::LoadU(U32(), orders + i), below));
    hits[1] += hn::CountTrue(U32(), hn::Gt(hn::LoadU(U32(), orders + i + kLanes), below));
  }
  if (i < count) hits[0] += hn::CountTrue(U32(), hn::Gt(hn::LoadU(U32(), orders + i), below));
  return hits[0] + hits[1];
}

// The bits in which any two of orders [count] differ.
inline uint32_t differing_bits(const uint32_t* orders, size_t count) {
  VU32 differing_lanes = hn::Zero(U32());
  const VU32 any = hn::Set(U32(), orders[0]);
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    differing_lanes = hn::Or(differing_lanes, hn::Xor(hn::LoadU(U32(), orders + i), any));
  }
  HWY_ALIGN uint32_t lanes[kLanes];
  hn::Store(differing_lanes, U32(), lanes);
  uint32_t differing = 0;
  for (const uint32_t lane : lanes) differing |= lane;
  for (; i < count; ++i) differing |= orders[i] ^ orders[0];
  return differing;
}

// Copies the orders in [first, first + width) to out, zero-padded to whole vectors; returns how many. out may
// be orders.
inline size_t copy_range(uint32_t* out, const uint32_t* orders, size_t count, uint32_t first,
                         uint32_t width) {
  size_t written = 0;
  for (size_t i = 0; i < count; i += kLanes) {
    const VU32 order = hn::LoadU(U32(), orders + i);
    const auto within = hn::Lt(hn::Sub(order, hn::Set(U32(), first)), hn::Set(U32(), width));
    hn::StoreU(hn::Compress(order, within), U32(), out + written);
    written += hn::CountTrue(U32(), within);
  }
  std::fill(out + written, out + whole_vectors(written), 0u);
  return written;
}

// The largest order that at least k of orders [count, zero-padded to whole vectors] reach; 1 <= k <= count.
// It is found bit by bit from the highest; after every 4 bits only the orders that still match are counted on
// (in `matching`, room for count + 2 vectors). With `most_bits` < 32 only so many of the bits in which orders
// differ are found: the result is then at most that order, and near it.
inline uint32_t kth_largest(const uint32_t* orders, size_t count, size_t k, uint32_t* matching,
                            int most_bits = 32) {
  // Bits that all orders share need no counting: softmax scores differ in the lower 25 or so.
  const int first_bit = 32 - std::countl_zero(differing_bits(orders, count));
  uint32_t found = first_bit == 32 ? 0 : orders[0] >> first_bit << first_bit;
  size_t above = 0;  // orders past every one that matches what is found
  const int last_bit = std::max(0, first_bit - most_bits);
  for (int bit = first_bit - 1; bit >= last_bit; --bit) {
    const uint32_t trial = found | 1u << bit;
    const size_t reaching = count_at_least(orders, count, trial);
    const bool reached = reaching >= k;
    found = reached ? trial : found;
    above = reached ? above : reaching;
    if ((first_bit - bit) % 4 != 0 || bit - last_bit < 4 || count <= 2 * kLanes) continue;
    count = copy_range(matching, orders, count, found, 1u << bit);
    orders = matching;
    k -= above;
    above = 0;
  }
  return found;
}

// Writes the positions of the bits set in `word`, plus `base`, to out (room for 16 more than there are);
// returns how many.
HWY_INLINE size_t write_bit_positions(uint32_t* out, uint64_t word, uint32_t base) {
  const auto bits = static_cast<size_t>(std::popcount(word));
#if HWY_TARGET <= HWY_AVX3_DL && HWY_ARCH_X86
  HWY_ALIGN static constexpr uint8_t kIota[64] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
      22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
      44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  HWY_ALIGN uint8_t positions[64];
  const __m512i packed = _mm512_maskz_compress_epi8(word, _mm512_load_si512(kIota));
  const __m512i first = _mm512_set1_epi32(static_cast<int>(base));
  _mm512_storeu_si512(out, _mm512_add_epi32(_mm512_cvtepu8_epi32(_mm512_castsi512_si128(packed)), first));
  if (bits <= 16) return bits;
  _mm512_store_si512(positions, packed);
  for (size_t i = 16; i < bits; i += 16) {
    const __m128i some = _mm_load_si128(reinterpret_cast<const __m128i*>(positions + i));
    _mm512_storeu_si512(out + i, _mm512_add_epi32(_mm512_cvtepu8_epi32(some), first));
  }
#else
  // 4 at a time whether there are as many or not: one branch in 4 instead of one each to predict.
  for (size_t i = 0; i < bits; i += 4) {
    for (size_t j = 0; j < 4; ++j) {
      out[i + j] = base + static_cast<uint32_t>(std::countr_zero(word));
      word &= word - 1;
    }
  }
#endif
  return bits;
}

// Sets the bits of the scores that are at least `floor`; bits: whole words for `count`. Returns how many.
inline size_t mark_above(uint8_t* bits, const float* scores, size_t count, float floor) {
  const VF least = hn::Set(F32(), floor);
  constexpr size_t kStep = std::max<size_t>(kLanes, 8);  // whole bytes of bits
  size_t s = 0;
  for (; s + kStep <= count; s += kStep) {
    hn::StoreMaskBits(F32(), hn::Ge(hn::LoadU(F32(), scores + s), least), bits + s / 8);  // NaN: no
    if constexpr (kLanes == 4) {
      uint8_t upper;
      hn::StoreMaskBits(F32(), hn::Ge(hn::LoadU(F32(), scores + s + 4), least), &upper);
      bits[s / 8] |= static_cast<uint8_t>(upper << 4);
    }
  }
  const size_t words = (count + 63) / 64;
  std::fill(bits + s / 8, bits + words * 8, uint8_t{0});
  for (; s < count; ++s) bits[s / 8] |= static_cast<uint8_t>((scores[s] >= floor ? 1 : 0) << s % 8);
  size_t marked = 0;
  for (size_t w = 0; w < words; ++w) {
    uint64_t word;
    std::memcpy(&word, bits + w * 8, sizeof(word));
    marked += static_cast<size_t>(std::popcount(word));
  }
  return marked;
}

// The marked scores by their orders and indices, ascending, zero-padded to whole vectors. Outputs: room for
// count and 2 vectors. Returns how many.
inline size_t keep_marked(uint32_t* orders, uint32_t* indices, const uint8_t* bits, const float* scores,
                          size_t count) {
  size_t kept = 0;
  for (size_t s = 0; s < count; s += 64) {
    uint64_t word;
    std::memcpy(&word, bits + s / 8, sizeof(word));
    kept += write_bit_positions(indices + kept, word, static_cast<uint32_t>(s));
  }
  // One by one: a gather instruction of 16 takes some 40 cycles.
  auto* kept_scores = reinterpret_cast<float*>(orders);
#pragma clang loop vectorize(disable)
  for (size_t i = 0; i < kept; ++i) kept_scores[i] = scores[indices[i]];
  for (size_t i = 0; i < kept; i += kLanes) {
    hn::StoreU(order_of(hn::LoadU(F32(), kept_scores + i)), U32(), orders + i);
  }
  std::fill(orders + kept, orders + whole_vectors(kept), 0u);
  return kept;
}

// All of them, NaN too.
inline size_t keep_all(uint32_t* orders, uint32_t* indices, const float* scores, size_t count) {
  for (size_t s = 0; s < count; ++s) {
    orders[s] = score_order(scores[s]);
    indices[s] = static_cast<uint32_t>(s);
  }
  std::fill(orders + count, orders + whole_vectors(count), 0u);
  return count;
}

inline constexpr size_t kSampleStride = 16;

// The orders of every 16th score, whole vectors of them; returns how many. sample: room for count / 16 scores
// and a vector.
inline size_t take_sample(uint32_t* sample, const float* scores, size_t count) {
  constexpr size_t kTaken = kSampleStride * kLanes;  // scores that give one vector of samples
  const size_t size = count / kTaken * kLanes;
  // Of 16 vectors each gives one lane (every second or fourth, with 8 or 4 lanes), a different one each time,
  // lest a period in the text be met at one phase only. Blending costs a load a lane, gathering 40 cycles
  // each 16.
  constexpr size_t kVectorsBetween = kSampleStride / kLanes;
  const auto lane = hn::Iota(U32(), 0);
  for (size_t at = 0; at < size; at += kLanes) {
    const float* taken = scores + at * kSampleStride;
    VF blend = hn::LoadU(F32(), taken);
    for (size_t i = 1; i < kLanes; ++i) {
      const auto here = hn::Eq(lane, hn::Set(U32(), static_cast<uint32_t>(i * 7 % kLanes)));
      const VF next = hn::LoadU(F32(), taken + i * kVectorsBetween * kLanes);
      blend = hn::IfThenElse(hn::RebindMask(F32(), here), next, blend);
    }
    hn::StoreU(order_of(blend), U32(), sample + at);
  }
  return size;
}

// Keeps a superset of the k best that is not much larger, or all. A sample's floor is met by fewer than k
// scores once in 40 times when it is set 2 deviations low, and then once more in a billion at 6.
inline size_t keep_candidates(uint32_t* orders, uint32_t* indices, uint8_t* bits, uint32_t* sample,
                              const float* scores, size_t count, size_t k) {
  const size_t size = take_sample(sample, scores, count);
  // Of the k best, k / 16 are in the sample, give or take sqrt(k / 16).
  const double expected = static_cast<double>(k) / static_cast<double>(kSampleStride);
  for (const double deviations : {2.0, 6.0}) {
    const auto rank = static_cast<size_t>(expected + deviations * std::sqrt(expected) + 2.0);
    if (rank >= size) break;
    // 14 bits tell scores apart to about 2% once their exponents differ: enough for a floor.
    const float floor = score_of_order(kth_largest(sample, size, rank, sample + size, 14));
    if (std::isnan(floor) || mark_above(bits, scores, count, floor) < k) continue;
    return keep_marked(orders, indices, bits, scores, count);
  }
  return keep_all(orders, indices, scores, count);
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
  auto* orders = reinterpret_cast<uint32_t*>(
      worker_scratch(scratch, worker, 3 * room * sizeof(uint32_t) + count / 8 + 2 * sizeof(uint64_t)));
  uint32_t* indices = orders + room;
  uint32_t* matching = indices + room;
  auto* bits = reinterpret_cast<uint8_t*>(matching + room);
  const size_t kept = keep_candidates(orders, indices, bits, matching, scores, count, k);
  const uint32_t threshold = kth_largest(orders, kept, k, matching);
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
