#if defined(KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
#undef KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
#else
#define KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
#endif

#include <hwy/cache_control.h>

#include <algorithm>

#include "kernels/simd/vectors-inl.h"

// Decode attention: few queries, so nothing is shared but the heads of a KV group. The keys one (query, KV
// head) reads are cut into parts of 256, spread over threads, and merged by their running maxima
// (Flash-Decoding). Parts have a fixed size, so results do not depend on the number of threads.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kPartKeys = 256;

// What one part leaves behind for each query head of its KV group: [heads_per_group] of each.
struct PartResult {
  float* top;    // [heads_per_group]
  float* total;  // [heads_per_group]
  float* out;    // [heads_per_group, head_dim], not yet divided by the total
};

struct DecodePart {
  const float* q;  // [heads_per_group, head_dim]
  size_t heads_per_group;
  size_t kv_head;
  const uint32_t* slots;  // null: slots first .. first + count - 1
  size_t first;
  size_t count;

  size_t slot(size_t j) const { return slots != nullptr ? slots[j] : first + j; }
};

template <KvType kType>
HWY_INLINE float dot_tail(const float* q, const std::byte* row, size_t from, size_t dim) {
  float sum = 0.0f;
  for (size_t d = from; d < dim; ++d) {
    sum += q[d] * (kType == KvType::f32 ? reinterpret_cast<const float*>(row)[d]
                                        : to_float(reinterpret_cast<const Half*>(row)[d]));
  }
  return sum;
}

// Asks for the cache lines of a row: selected rows lie anywhere, which no hardware prefetcher foresees.
HWY_INLINE void prefetch_row(const std::byte* row, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kAlignment) hwy::Prefetch(row + at);
}

// scores [kHeads, kPartKeys] = scale * q . key for the query heads from `first_head`, kLanes keys at a time;
// each key is widened once for all kHeads.
template <KvType kType, size_t kHeads>
inline void part_scores(float* scores, const DecodePart& part, size_t first_head, const AttentionArgs& args) {
  const KvView& kv = args.kv;
  const size_t whole = kv.head_dim / kLanes * kLanes;
  const size_t row_bytes = kv.head_dim * bytes_per_value(kType);
  const float* q = part.q + first_head * kv.head_dim;
  for (size_t base = 0; base < part.count; base += kLanes) {
    const std::byte* rows[kLanes];
    for (size_t j = 0; j < kLanes; ++j) {
      rows[j] = kv.key_row(part.kv_head, part.slot(std::min(base + j, part.count - 1)));
      const size_t next = std::min(base + kLanes + j, part.count - 1);
      prefetch_row(kv.key_row(part.kv_head, part.slot(next)), row_bytes);
    }
    VF quads[kHeads][kLanes / 4];
    for (size_t four = 0; four < kLanes / 4; ++four) {
      VF sums[kHeads][4];
      for (auto& head : sums) std::fill(head, head + 4, hn::Zero(F32()));
      for (size_t d = 0; d < whole; d += kLanes) {
        VF key[4];
        for (size_t j = 0; j < 4; ++j) key[j] = load_kv<kType>(rows[four * 4 + j], d);
        for (size_t h = 0; h < kHeads; ++h) {
          const VF qv = hn::LoadU(F32(), q + h * kv.head_dim + d);
          for (size_t j = 0; j < 4; ++j) sums[h][j] = hn::MulAdd(qv, key[j], sums[h][j]);
        }
      }
      for (size_t h = 0; h < kHeads; ++h) quads[h][four] = quad_of(sums[h]);
    }
    for (size_t h = 0; h < kHeads; ++h) {
      HWY_ALIGN float dots[kLanes];
      hn::Store(sum_of_quads(quads[h]), F32(), dots);
      if (whole < kv.head_dim) {
        for (size_t j = 0; j < kLanes; ++j) {
          dots[j] += dot_tail<kType>(q + h * kv.head_dim, rows[j], whole, kv.head_dim);
        }
      }
      hn::StoreU(hn::Mul(hn::Load(F32(), dots), hn::Set(F32(), args.scale)), F32(),
                 scores + h * kPartKeys + base);
    }
  }
}

// Softmax numerators in place, past the end set to zero; returns {maximum, sum}.
struct TopAndTotal {
  float top;
  float total;
};
inline TopAndTotal part_softmax(float* scores, size_t count) {
  const size_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (size_t j = count; j < padded; ++j) scores[j] = scores[0];
  VF largest = hn::LoadU(F32(), scores);
  for (size_t j = kLanes; j < padded; j += kLanes) largest = hn::Max(largest, hn::LoadU(F32(), scores + j));
  largest = hn::MaxOfLanes(F32(), largest);
  VF sum = hn::Zero(F32());
  for (size_t j = 0; j < padded; j += kLanes) {
    const VF e = hn::IfThenElseZero(hn::FirstN(F32(), std::min(count - j, kLanes)),
                                    exp_of(hn::Sub(hn::LoadU(F32(), scores + j), largest)));
    hn::StoreU(e, F32(), scores + j);
    sum = hn::Add(sum, e);
  }
  return {hn::GetLane(largest), hn::GetLane(hn::SumOfLanes(F32(), sum))};
}

// out [kHeads, head_dim] = sum over the part's keys of weight * value; the values are widened once for kHeads
// heads.
template <KvType kType, size_t kHeads>
inline void part_values(float* out, const float* weights, const DecodePart& part, const KvView& kv) {
  size_t d = 0;
  constexpr size_t kColumns = 4;
  for (; d + kColumns * kLanes <= kv.head_dim; d += kColumns * kLanes) {
    VF acc[kHeads][kColumns];
    for (auto& head : acc) std::fill(head, head + kColumns, hn::Zero(F32()));
    for (size_t j = 0; j < part.count; ++j) {
      const std::byte* row = kv.value_row(part.kv_head, part.slot(j));
      prefetch_row(kv.value_row(part.kv_head, part.slot(std::min(j + 8, part.count - 1))),
                   kv.head_dim * bytes_per_value(kType));
      VF value[kColumns];
      for (size_t c = 0; c < kColumns; ++c) value[c] = load_kv<kType>(row, d + c * kLanes);
      for (size_t h = 0; h < kHeads; ++h) {
        const VF weight = hn::Set(F32(), weights[h * kPartKeys + j]);
        for (size_t c = 0; c < kColumns; ++c) acc[h][c] = hn::MulAdd(weight, value[c], acc[h][c]);
      }
    }
    for (size_t h = 0; h < kHeads; ++h) {
      for (size_t c = 0; c < kColumns; ++c)
        hn::StoreU(acc[h][c], F32(), out + h * kv.head_dim + d + c * kLanes);
    }
  }
  for (; d + kLanes <= kv.head_dim; d += kLanes) {
    VF acc[kHeads];
    std::fill(acc, acc + kHeads, hn::Zero(F32()));
    for (size_t j = 0; j < part.count; ++j) {
      const VF value = load_kv<kType>(kv.value_row(part.kv_head, part.slot(j)), d);
      for (size_t h = 0; h < kHeads; ++h) {
        acc[h] = hn::MulAdd(hn::Set(F32(), weights[h * kPartKeys + j]), value, acc[h]);
      }
    }
    for (size_t h = 0; h < kHeads; ++h) hn::StoreU(acc[h], F32(), out + h * kv.head_dim + d);
  }
  for (; d < kv.head_dim; ++d) {
    for (size_t h = 0; h < kHeads; ++h) {
      float sum = 0.0f;
      for (size_t j = 0; j < part.count; ++j) {
        const std::byte* row = kv.value_row(part.kv_head, part.slot(j));
        sum += weights[h * kPartKeys + j] * (kType == KvType::f32
                                                 ? reinterpret_cast<const float*>(row)[d]
                                                 : to_float(reinterpret_cast<const Half*>(row)[d]));
      }
      out[h * kv.head_dim + d] = sum;
    }
  }
}

// kHeads query heads of one part, from scores to weighted values.
template <KvType kType, size_t kHeads>
inline void run_heads(const PartResult& result, float* scores, const DecodePart& part, size_t first_head,
                      const AttentionArgs& args) {
  part_scores<kType, kHeads>(scores, part, first_head, args);
  for (size_t h = 0; h < kHeads; ++h) {
    const TopAndTotal s = part_softmax(scores + h * kPartKeys, part.count);
    result.top[first_head + h] = s.top;
    result.total[first_head + h] = s.total;
  }
  part_values<kType, kHeads>(result.out + first_head * args.kv.head_dim, scores, part, args.kv);
}

// scores: room for 3 heads x kPartKeys.
template <KvType kType>
inline void run_part(const PartResult& result, float* scores, const DecodePart& part,
                     const AttentionArgs& args) {
  size_t h = 0;
  for (; h + 3 <= part.heads_per_group; h += 3) run_heads<kType, 3>(result, scores, part, h, args);
  for (; h < part.heads_per_group; ++h) run_heads<kType, 1>(result, scores, part, h, args);
}

// out [head_dim] from the parts of one query head; part p's results are `stride` floats after those of part p
// - 1.
inline void merge_parts(float* out, const float* top, const float* total, const float* part_out,
                        size_t stride, size_t parts, size_t dim) {
  float largest = top[0];
  for (size_t p = 1; p < parts; ++p) largest = std::max(largest, top[p * stride]);
  float sum = 0.0f;
  std::fill_n(out, dim, 0.0f);
  for (size_t p = 0; p < parts; ++p) {
    const float weight = fast_exp(top[p * stride] - largest);
    sum += weight * total[p * stride];
    for (size_t d = 0; d < dim; ++d) out[d] += weight * part_out[p * stride + d];
  }
  for (size_t d = 0; d < dim; ++d) out[d] /= sum;
}

// What one (query, KV head) reads, cut into parts whose results lie one after another.
struct PartPlan {
  const AttentionArgs& args;
  size_t heads_per_group;
  size_t part_floats;  // of one part's results

  explicit PartPlan(const AttentionArgs& a)
      : args(a),
        heads_per_group(a.heads / a.kv.kv_heads),
        part_floats(heads_per_group * (2 + a.kv.head_dim)) {}

  size_t group(size_t kv_head) const { return args.selection->groups == 1 ? 0 : kv_head; }
  size_t keys(size_t query, size_t kv_head) const {
    return args.selection == nullptr ? args.first_visible + query + 1
                                     : args.selection->count(query, group(kv_head));
  }
  size_t parts(size_t query, size_t kv_head) const {
    return (keys(query, kv_head) + kPartKeys - 1) / kPartKeys;
  }

  DecodePart part(size_t query, size_t kv_head, size_t index) const {
    const size_t first = index * kPartKeys;
    return {.q = args.q + (query * args.heads + kv_head * heads_per_group) * args.kv.head_dim,
            .heads_per_group = heads_per_group,
            .kv_head = kv_head,
            .slots = args.selection == nullptr ? nullptr : args.selection->row(query, group(kv_head)) + first,
            .first = first,
            .count = std::min(kPartKeys, keys(query, kv_head) - first)};
  }
  PartResult result(float* results, size_t index) const {
    float* at = results + index * part_floats;
    return {at, at + heads_per_group, at + 2 * heads_per_group};
  }
  // Writes the query's outputs from the results of all its parts.
  void merge(float* results, size_t query, size_t kv_head) const {
    const PartResult first = result(results, 0);
    for (size_t h = 0; h < heads_per_group; ++h) {
      const size_t head = kv_head * heads_per_group + h;
      merge_parts(args.out + (query * args.heads + head) * args.kv.head_dim, first.top + h, first.total + h,
                  first.out + h * args.kv.head_dim, part_floats, parts(query, kv_head), args.kv.head_dim);
    }
  }
};

// One or two queries: the parts themselves are spread over the threads.
template <KvType kType>
inline void decode_attention(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) {
  const PartPlan plan(args);
  const size_t kv_heads = args.kv.kv_heads;
  size_t max_parts = 0;
  for (size_t i = 0; i < args.queries * kv_heads; ++i) {
    max_parts = std::max(max_parts, plan.parts(i / kv_heads, i % kv_heads));
  }
  const size_t tasks = args.queries * kv_heads * max_parts;
  auto* results = reinterpret_cast<float*>(shared_scratch(scratch, tasks * plan.part_floats * sizeof(float)));
  const auto results_of = [&](size_t query, size_t kv_head) {
    return results + (query * kv_heads + kv_head) * max_parts * plan.part_floats;
  };
  threads.run(tasks, [&](size_t task, int worker) HWY_ATTR {
    const size_t index = task % max_parts;
    const size_t kv_head = task / max_parts % kv_heads;
    const size_t query = task / max_parts / kv_heads;
    if (index >= plan.parts(query, kv_head)) return;
    auto* scores = reinterpret_cast<float*>(worker_scratch(scratch, worker, 3 * kPartKeys * sizeof(float)));
    run_part<kType>(plan.result(results_of(query, kv_head), index), scores, plan.part(query, kv_head, index),
                    args);
  });
  for (size_t query = 0; query < args.queries; ++query) {
    for (size_t kv_head = 0; kv_head < kv_heads; ++kv_head)
      plan.merge(results_of(query, kv_head), query, kv_head);
  }
}

// Many queries with selections of their own: each (query, KV head) is one task. Neighbouring queries share
// fewer of their keys than a gathered union costs (docs/decisions/0005-sparse-prefill.md).
template <KvType kType>
inline void sparse_prefill_attention(const AttentionArgs& args, KernelScratch& scratch,
                                     const Threads& threads) {
  const PartPlan plan(args);
  const size_t kv_heads = args.kv.kv_heads;
  constexpr size_t kQueriesPerTask = 8;
  const size_t blocks = (args.queries + kQueriesPerTask - 1) / kQueriesPerTask;
  threads.run(blocks * kv_heads, [&](size_t task, int worker) HWY_ATTR {
    const size_t kv_head = task % kv_heads;
    const size_t first = task / kv_heads * kQueriesPerTask;
    for (size_t query = first; query < std::min(first + kQueriesPerTask, args.queries); ++query) {
      const size_t parts = plan.parts(query, kv_head);
      auto* scores = reinterpret_cast<float*>(
          worker_scratch(scratch, worker, (3 * kPartKeys + parts * plan.part_floats) * sizeof(float)));
      float* results = scores + 3 * kPartKeys;
      for (size_t index = 0; index < parts; ++index) {
        run_part<kType>(plan.result(results, index), scores, plan.part(query, kv_head, index), args);
      }
      plan.merge(results, query, kv_head);
    }
  });
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
