#if defined(KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
#undef KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
#else
#define KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
#endif

#include <algorithm>

#include "kernels/simd/row_attention-inl.h"

// Decode and sparse prefill: few queries share a key, so nothing is shared but the heads of a KV group. The
// keys one (query, KV head) reads are cut into parts of kPartKeys, in decode spread over threads, and merged
// by their running maxima (Flash-Decoding). Parts have a fixed size, so results do not depend on the number
// of threads.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kFewQueries = 2;  // up to here as decode; with more, a tile pays for building it
inline constexpr size_t kQueriesPerTask = 8;

// out [dim] from the parts of one query head, whose results lie `stride` floats apart. The maxima become the
// parts' weights.
inline void merge_parts(float* out, const PartResult& first, size_t stride, size_t parts, size_t dim) {
  float largest = *first.maximum;
  for (size_t p = 1; p < parts; ++p) largest = std::max(largest, first.maximum[p * stride]);
  float sum = 0.0f;
  for (size_t p = 0; p < parts; ++p) {
    float& weight = first.maximum[p * stride];
    weight = fast_exp(weight - largest);
    sum += weight * first.total[p * stride];
  }
  const float inverse = 1.0f / sum;
  size_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) {
    VF total = hn::Zero(F32());
    for (size_t p = 0; p < parts; ++p) {
      const VF weight = hn::Set(F32(), first.maximum[p * stride]);
      total = hn::MulAdd(weight, hn::LoadU(F32(), first.out + p * stride + d), total);
    }
    hn::StoreU(hn::Mul(total, hn::Set(F32(), inverse)), F32(), out + d);
  }
  for (; d < dim; ++d) {
    float total = 0.0f;
    for (size_t p = 0; p < parts; ++p) total += first.maximum[p * stride] * first.out[p * stride + d];
    out[d] = total * inverse;
  }
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
  PartResult result(float* results, size_t index) const {
    float* at = results + index * part_floats;
    return {at, at + heads_per_group, at + 2 * heads_per_group};
  }

  // Writes the result of one part.
  template <KvType kType, size_t kDim>
  void attend(const PartResult& to, std::byte* bytes, size_t query, size_t kv_head, size_t index) const {
    const PartMemory memory(bytes, heads_per_group);
    size_t* const offsets = memory.offsets;
    const size_t first = index * kPartKeys;
    const PartRows rows{.keys = args.kv.key_row(kv_head, 0),
                        .values = args.kv.value_row(kv_head, 0),
                        .offsets = offsets,
                        .count = std::min(kPartKeys, keys(query, kv_head) - first),
                        .dim = args.kv.head_dim};
    const size_t row_bytes = kv_row_bytes(kType, dim_of<kDim>(rows));
    if (args.selection == nullptr) {
      for (size_t j = 0; j < rows.count; ++j) offsets[j] = (first + j) * row_bytes;
    } else {
      const uint32_t* slots = args.selection->row(query, group(kv_head)) + first;
      for (size_t j = 0; j < rows.count; ++j) offsets[j] = slots[j] * row_bytes;
    }
    std::fill(offsets + rows.count, offsets + kOffsetsPerPart, offsets[rows.count - 1]);
    const float* q = args.q + (query * args.heads + kv_head * heads_per_group) * args.kv.head_dim;
    attend_part<kType, kDim>(to, memory, q, heads_per_group, args.scale, rows);
  }
  size_t attend_bytes() const { return PartMemory::bytes(heads_per_group, args.kv.head_dim); }

  // Writes the query's outputs from the results of all its parts.
  void merge(float* results, size_t query, size_t kv_head) const {
    const PartResult first = result(results, 0);
    for (size_t h = 0; h < heads_per_group; ++h) {
      const size_t head = kv_head * heads_per_group + h;
      merge_parts(args.out + (query * args.heads + head) * args.kv.head_dim,
                  {first.maximum + h, first.total + h, first.out + h * args.kv.head_dim}, part_floats,
                  parts(query, kv_head), args.kv.head_dim);
    }
  }
};

// One or two queries: the parts themselves are spread over the threads.
template <KvType kType, size_t kDim>
inline void spread_parts(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) {
  const PartPlan plan(args);
  const size_t kv_heads = args.kv.kv_heads;
  size_t max_parts = 0;
  if (args.choose != nullptr) {
    // Sets still to be chosen have no counts yet.
    max_parts = (args.selection->budget + kPartKeys - 1) / kPartKeys;
  } else {
    for (size_t i = 0; i < args.queries * kv_heads; ++i) {
      max_parts = std::max(max_parts, plan.parts(i / kv_heads, i % kv_heads));
    }
  }
  const size_t tasks = args.queries * kv_heads * max_parts;
  auto* results = reinterpret_cast<float*>(shared_scratch(scratch, tasks * plan.part_floats * sizeof(float)));
  const auto results_of = [&](size_t query, size_t kv_head) {
    return results + (query * kv_heads + kv_head) * max_parts * plan.part_floats;
  };
  const auto attend_one = [&](size_t task, int worker) HWY_ATTR {
    const size_t index = task % max_parts;
    const size_t kv_head = task / max_parts % kv_heads;
    const size_t query = task / max_parts / kv_heads;
    if (index >= plan.parts(query, kv_head)) return;
    std::byte* memory = worker_scratch(scratch, worker, plan.attend_bytes());
    plan.attend<kType, kDim>(plan.result(results_of(query, kv_head), index), memory, query, kv_head, index);
  };
  if (args.choose == nullptr) {
    threads.run(tasks, attend_one);
  } else {
    threads.run_chained(args.selection->groups, *args.choose, tasks, attend_one,
                        [&](size_t task) { return plan.group(task / max_parts % kv_heads); });
  }
  for (size_t query = 0; query < args.queries; ++query) {
    for (size_t kv_head = 0; kv_head < kv_heads; ++kv_head)
      plan.merge(results_of(query, kv_head), query, kv_head);
  }
}

// All parts of one query, on one thread.
template <KvType kType, size_t kDim>
inline void attend_alone(const PartPlan& plan, size_t query, size_t kv_head, KernelScratch& scratch,
                         int worker) {
  const size_t parts = plan.parts(query, kv_head);
  std::byte* memory =
      worker_scratch(scratch, worker, plan.attend_bytes() + parts * plan.part_floats * sizeof(float));
  auto* results = reinterpret_cast<float*>(memory + plan.attend_bytes());
  for (size_t index = 0; index < parts; ++index) {
    plan.attend<kType, kDim>(plan.result(results, index), memory, query, kv_head, index);
  }
  plan.merge(results, query, kv_head);
}

// Many queries with selections of their own: each (query, KV head) is worked on by one thread. Neighbouring
// queries share fewer of their keys than a gathered union costs (docs/decisions/0005-sparse-prefill.md).
template <KvType kType, size_t kDim>
inline void spread_queries(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) {
  const PartPlan plan(args);
  const size_t kv_heads = args.kv.kv_heads;
  const size_t blocks = (args.queries + kQueriesPerTask - 1) / kQueriesPerTask;
  threads.run(blocks * kv_heads, [&](size_t task, int worker) HWY_ATTR {
    const size_t first = task / kv_heads * kQueriesPerTask;
    for (size_t query = first; query < std::min(first + kQueriesPerTask, args.queries); ++query) {
      attend_alone<kType, kDim>(plan, query, task % kv_heads, scratch, worker);
    }
  });
}

template <KvType kType>
inline void decode_attention(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) {
  with_head_dim(args.kv.head_dim, [&]<size_t kDim>() { spread_parts<kType, kDim>(args, scratch, threads); });
}

template <KvType kType>
inline void sparse_prefill_attention(const AttentionArgs& args, KernelScratch& scratch,
                                     const Threads& threads) {
  with_head_dim(args.kv.head_dim,
                [&]<size_t kDim>() { spread_queries<kType, kDim>(args, scratch, threads); });
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
