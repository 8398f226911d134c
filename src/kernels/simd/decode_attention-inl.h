#if defined(KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
#undef KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
#else
#define KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
#endif

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

// scores [heads_per_group, kPartKeys] = scale * q . key, kLanes keys at a time.
template <KvType kType>
inline void part_scores(float* scores, const DecodePart& part, const AttentionArgs& args) {
  const KvView& kv = args.kv;
  const size_t whole = kv.head_dim / kLanes * kLanes;
  for (size_t base = 0; base < part.count; base += kLanes) {
    const std::byte* rows[kLanes];
    for (size_t j = 0; j < kLanes; ++j) {
      rows[j] = kv.key_row(part.kv_head, part.slot(std::min(base + j, part.count - 1)));
    }
    for (size_t h = 0; h < part.heads_per_group; ++h) {
      const float* q = part.q + h * kv.head_dim;
      VF sums[kLanes];
      for (size_t j = 0; j < kLanes; ++j) sums[j] = hn::Zero(F32());
      for (size_t d = 0; d < whole; d += kLanes) {
        const VF qv = hn::LoadU(F32(), q + d);
        for (size_t j = 0; j < kLanes; ++j) sums[j] = hn::MulAdd(qv, load_kv<kType>(rows[j], d), sums[j]);
      }
      HWY_ALIGN float dots[kLanes];
      hn::Store(sums_of(sums), F32(), dots);
      if (whole < kv.head_dim) {
        for (size_t j = 0; j < kLanes; ++j) dots[j] += dot_tail<kType>(q, rows[j], whole, kv.head_dim);
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

template <KvType kType>
inline void run_part(const PartResult& result, float* scores, const DecodePart& part,
                     const AttentionArgs& args) {
  part_scores<kType>(scores, part, args);
  for (size_t h = 0; h < part.heads_per_group; ++h) {
    const TopAndTotal s = part_softmax(scores + h * kPartKeys, part.count);
    result.top[h] = s.top;
    result.total[h] = s.total;
  }
  const size_t dim = args.kv.head_dim;
  size_t h = 0;
  for (; h + 3 <= part.heads_per_group; h += 3) {
    part_values<kType, 3>(result.out + h * dim, scores + h * kPartKeys, part, args.kv);
  }
  for (; h < part.heads_per_group; ++h) {
    part_values<kType, 1>(result.out + h * dim, scores + h * kPartKeys, part, args.kv);
  }
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

template <KvType kType>
inline void decode_attention(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) {
  const KvView& kv = args.kv;
  const size_t heads_per_group = args.heads / kv.kv_heads;
  const auto keys_of = [&](size_t query, size_t kv_head) {
    if (args.selection == nullptr) return args.first_visible + query + 1;
    return args.selection->count(query, args.selection->groups == 1 ? 0 : kv_head);
  };
  size_t max_keys = 0;
  for (size_t q = 0; q < args.queries; ++q) {
    for (size_t g = 0; g < kv.kv_heads; ++g) max_keys = std::max(max_keys, keys_of(q, g));
  }
  const size_t parts = (max_keys + kPartKeys - 1) / kPartKeys;
  const size_t part_floats = heads_per_group * (2 + kv.head_dim);
  const size_t tasks = args.queries * kv.kv_heads * parts;
  auto* results = reinterpret_cast<float*>(shared_scratch(scratch, tasks * part_floats * sizeof(float)));
  const auto result_of = [&](size_t task) {
    float* at = results + task * part_floats;
    return PartResult{at, at + heads_per_group, at + 2 * heads_per_group};
  };
  threads.run(tasks, [&](size_t task, int worker) HWY_ATTR {
    const size_t p = task % parts;
    const size_t kv_head = task / parts % kv.kv_heads;
    const size_t query = task / parts / kv.kv_heads;
    const size_t keys = keys_of(query, kv_head);
    if (p * kPartKeys >= keys) return;
    DecodePart part;
    part.q = args.q + (query * args.heads + kv_head * heads_per_group) * kv.head_dim;
    part.heads_per_group = heads_per_group;
    part.kv_head = kv_head;
    part.first = p * kPartKeys;
    part.count = std::min(kPartKeys, keys - part.first);
    part.slots = args.selection == nullptr
                     ? nullptr
                     : args.selection->row(query, args.selection->groups == 1 ? 0 : kv_head) + part.first;
    auto* scores = reinterpret_cast<float*>(
        worker_scratch(scratch, worker, heads_per_group * kPartKeys * sizeof(float)));
    run_part<kType>(result_of(task), scores, part, args);
  });
  for (size_t query = 0; query < args.queries; ++query) {
    for (size_t head = 0; head < args.heads; ++head) {
      const size_t kv_head = head / heads_per_group;
      const size_t h = head % heads_per_group;
      const PartResult first = result_of((query * kv.kv_heads + kv_head) * parts);
      const size_t used = (keys_of(query, kv_head) + kPartKeys - 1) / kPartKeys;
      // Parts lie part_floats apart; the pointers below are those of part 0 and this head.
      merge_parts(args.out + (query * args.heads + head) * kv.head_dim, first.top + h, first.total + h,
                  first.out + h * kv.head_dim, part_floats, used, kv.head_dim);
    }
  }
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_DECODE_ATTENTION_INL_H
