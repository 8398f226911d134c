#if defined(KEYSIEVE_SIMD_BFLOAT16_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_BFLOAT16_ATTENTION_INL_H
#undef KEYSIEVE_SIMD_BFLOAT16_ATTENTION_INL_H
#else
#define KEYSIEVE_SIMD_BFLOAT16_ATTENTION_INL_H
#endif

#include <algorithm>
#include <cstring>

#include "kernels/simd/bfloat16_tile-inl.h"
#include "kernels/simd/simd_kernels-inl.h"

// Prefill attention on machines with AVX-512 BF16: blocks of queries that read the same keys, whole or
// selected, go through a tile (bfloat16_tile-inl.h). Everything else is the avx512 family's.
#if HWY_TARGET == HWY_AVX3_DL
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

// A tile's work is that of 16 rows at least: for 8 (2 heads x 4 queries, 512 of 8,000 keys, Zen 4) it does 40
// G multiply-adds/s where each query for itself does 32, so for fewer there is little or nothing to win. One
// or two queries are as decode has them, so that where a call begins does not tell.
inline constexpr size_t kLeastTileRows = 8;
inline constexpr size_t kMostTileQueries = 16;

// Queries of one call whose slots go on where their predecessor's end.
struct QueryRuns {
  const AttentionArgs& args;
  size_t group;

  bool goes_on(size_t query) const {
    const SelectionView& selection = *args.selection;
    const size_t before = selection.count(query - 1, group);
    return selection.count(query, group) >= before &&
           std::memcmp(selection.row(query - 1, group), selection.row(query, group),
                       before * sizeof(uint32_t)) == 0;
  }
  // Where the run begins that `query` is part of.
  size_t begin(size_t query) const {
    while (query > 0 && goes_on(query)) --query;
    return query;
  }
  // How many queries from `first` on go into one tile.
  size_t count(size_t first) const {
    size_t count = 1;
    while (count < kMostTileQueries && first + count < args.queries && goes_on(first + count)) ++count;
    return count;
  }
};

// The selected keys of queries that read alike, through one tile, for all tiles that begin at a query from
// `first` to before `end`. How a run is cut depends on where it begins alone.
template <KvType kType, size_t kDim>
inline void attend_runs(const AttentionArgs& args, size_t first, size_t end, size_t kv_head,
                        KernelScratch& scratch, int worker) {
  const PartPlan plan(args);
  const QueryRuns runs{args, plan.group(kv_head)};
  size_t count = 0;
  for (size_t at = runs.begin(first); at < end; at += count) {
    count = runs.count(at);
    if (at < first) continue;
    if (count <= kFewQueries || count * plan.heads_per_group < kLeastTileRows) {
      for (size_t i = 0; i < count; ++i) attend_alone<kType, kDim>(plan, at + i, kv_head, scratch, worker);
    } else {
      const size_t last = at + count - 1;
      const RowList keys{&args.kv, kv_head, args.selection->row(last, runs.group), plan.keys(last, kv_head)};
      attend_block<kType, kDim>(args, keys, at, count, scratch, worker);
    }
  }
}

class Bfloat16Kernels : public SimdKernels {
 public:
  using SimdKernels::SimdKernels;

  void attention(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) const override {
    if (args.queries <= kFewQueries || args.kv.type == KvType::f32) {
      SimdKernels::attention(args, scratch, threads);
    } else if (args.kv.type == KvType::f16) {
      with_head_dim(args.kv.head_dim,
                    [&]<size_t kDim>() { prefill<KvType::f16, kDim>(args, scratch, threads); });
    } else {
      with_head_dim(args.kv.head_dim,
                    [&]<size_t kDim>() { prefill<KvType::i8, kDim>(args, scratch, threads); });
    }
  }

 private:
  template <KvType kType, size_t kDim>
  static void prefill(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) {
    if (args.selection == nullptr) return prefill_dense<kType, kDim>(args, scratch, threads);
    const size_t tasks = (args.queries + kQueriesPerTask - 1) / kQueriesPerTask;
    threads.run(tasks * args.kv.kv_heads, [&](size_t task, int worker) {
      const size_t first = task / args.kv.kv_heads * kQueriesPerTask;
      const size_t end = std::min(first + kQueriesPerTask, args.queries);
      attend_runs<kType, kDim>(args, first, end, task % args.kv.kv_heads, scratch, worker);
    });
  }

  template <KvType kType, size_t kDim>
  static void prefill_dense(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) {
    const size_t kv_heads = args.kv.kv_heads;
    const size_t blocks = (args.queries + kBlockQueries - 1) / kBlockQueries;
    threads.run(blocks * kv_heads, [&](size_t task, int worker) {
      // Last blocks first: they are the longest.
      const size_t first = (blocks - 1 - task / kv_heads) * kBlockQueries;
      const size_t end = std::min(first + kBlockQueries, args.queries);
      const RowList keys{&args.kv, task % kv_heads, nullptr, args.first_visible + end};
      attend_block<kType, kDim>(args, keys, first, end - first, scratch, worker);
    });
  }
};

inline std::unique_ptr<Kernels> make_bfloat16(std::string_view name) {
  return std::make_unique<Bfloat16Kernels>(name);
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_AVX3_DL
#endif  // KEYSIEVE_SIMD_BFLOAT16_ATTENTION_INL_H
