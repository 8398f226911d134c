#pragma once

#include "kernels/kernel_test_support.h"

namespace keysieve::testing {

struct AttentionCase {
  size_t heads, kv_heads, head_dim, queries, past;
  KvType type;
};

// A filled KV store and queries for one case.
struct AttentionProblem {
  explicit AttentionProblem(const AttentionCase& c) : config(c), capacity(c.past + c.queries + 3) {
    Random random(c.heads * 100 + c.head_dim + c.queries + c.past);
    const size_t values_count = c.kv_heads * capacity * c.head_dim;
    const std::vector<float> k = random.values(values_count, -2.0f, 2.0f);
    const std::vector<float> v = random.values(values_count);
    const size_t row = kv_row_bytes(c.type, c.head_dim);
    keys.resize(c.kv_heads * capacity * row);
    values.resize(keys.size());
    const auto reference = make_kernels("reference");
    for (size_t i = 0; i < c.kv_heads * capacity; ++i) {
      reference->store_kv(keys.data() + i * row, c.type, k.data() + i * c.head_dim, c.head_dim);
      reference->store_kv(values.data() + i * row, c.type, v.data() + i * c.head_dim, c.head_dim);
    }
    q = random.values(c.queries * c.heads * c.head_dim, -2.0f, 2.0f);
    scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  }
  KvView view() const {
    return {keys.data(), values.data(), config.type, config.kv_heads, capacity, config.head_dim};
  }
  using Choose = std::function<void(size_t set, int worker)>;
  std::vector<float> run(const Kernels& kernels, const SelectionView* selection, int thread_count = 2,
                         const Choose* choose = nullptr) const {
    return run_range(kernels, selection, 0, config.queries, thread_count, choose);
  }
  // Only the queries first .. first + count - 1, the selection's row 0 being that of `first`.
  std::vector<float> run_range(const Kernels& kernels, const SelectionView* selection, size_t first,
                               size_t count, int thread_count = 2, const Choose* choose = nullptr) const {
    const Threads threads(thread_count);
    KernelScratch scratch(threads);
    const size_t width = config.heads * config.head_dim;
    std::vector<float> out(count * width, NAN);
    AttentionArgs args{};
    args.out = out.data();
    args.q = q.data() + first * width;
    args.queries = count;
    args.heads = config.heads;
    args.scale = scale;
    args.kv = view();
    args.first_visible = config.past + first;
    args.selection = selection;
    args.choose = choose;
    kernels.attention(args, scratch, threads);
    return out;
  }

  AttentionCase config;
  size_t capacity;
  std::vector<std::byte> keys, values;
  std::vector<float> q;  // [queries, heads, head_dim]
  float scale;
};

// Each query reads a random ascending subset of what it may see, itself included.
struct RandomSelection {
  RandomSelection(const AttentionCase& c, size_t groups, size_t budget)
      : slots(c.queries * groups * budget), counts(c.queries * groups) {
    Random random(7);
    for (size_t query = 0; query < c.queries; ++query) {
      for (size_t group = 0; group < groups; ++group) {
        uint32_t* row = slots.data() + (query * groups + group) * budget;
        size_t count = 0;
        const size_t visible = c.past + query + 1;
        for (size_t s = 0; s + 1 < visible && count + 1 < budget; ++s) {
          if (random.uniform(0, 1) < 0.5f) row[count++] = static_cast<uint32_t>(s);
        }
        row[count++] = static_cast<uint32_t>(visible - 1);
        counts[query * groups + group] = static_cast<uint32_t>(count);
      }
    }
    view = {slots.data(), counts.data(), groups, budget};
  }
  std::vector<uint32_t> slots;
  std::vector<uint32_t> counts;
  SelectionView view{};
};

// Blocks of `block` neighbouring queries read slots 0 to 3, the same random slots and after them all up to
// their own, as an indexer's query blocks do.
struct BlockSelection {
  BlockSelection(const AttentionCase& c, size_t groups, size_t budget, size_t block)
      : slots(c.queries * groups * budget), counts(c.queries * groups) {
    Random random(8);
    for (size_t query = 0; query < c.queries; ++query) {
      const size_t first = query / block * block;
      for (size_t group = 0; group < groups; ++group) {
        uint32_t* row = slots.data() + (query * groups + group) * budget;
        uint32_t& count = counts[query * groups + group];
        if (query == first) {
          for (size_t s = 0; s < c.past + first && count + block < budget; ++s) {
            if (s < 4 || random.uniform(0, 1) < 0.5f) row[count++] = static_cast<uint32_t>(s);
          }
        } else {
          count = counts[(query - 1) * groups + group];
          std::copy_n(row - groups * budget, count, row);
        }
        row[count++] = static_cast<uint32_t>(c.past + query);
      }
    }
    view = {slots.data(), counts.data(), groups, budget};
  }
  std::vector<uint32_t> slots;
  std::vector<uint32_t> counts;
  SelectionView view{};
};

}  // namespace keysieve::testing
