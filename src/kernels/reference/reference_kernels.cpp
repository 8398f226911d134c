#include "kernels/reference/reference_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/half.h"
#include "core/memory.h"
#include "kernels/fast_exp.h"
#include "kernels/index_query.h"
#include "kernels/reference/reference_index.h"
#include "kernels/score_order.h"

namespace keysieve {
namespace {

class ReferenceMatrix : public PackedMatrix {
 public:
  ReferenceMatrix(size_t rows, size_t columns) : rows_(rows), columns_(columns), values_(rows * columns) {}
  size_t rows() const override { return rows_; }
  size_t columns() const override { return columns_; }
  size_t bytes() const override { return values_.bytes(); }
  float* row(size_t r) { return values_.data() + r * columns_; }
  const float* row(size_t r) const { return values_.data() + r * columns_; }

 private:
  size_t rows_;
  size_t columns_;
  AlignedArray<float> values_;  // [rows, columns]
};

// Eight partial sums: still exact to double rounding, and a compiler may use vectors.
double dot(const float* a, const float* b, size_t count) {
  constexpr size_t kLanes = 8;
  double sums[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      sums[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
    }
  }
  double sum = std::accumulate(sums, sums + kLanes, 0.0);
  for (; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

// Value i of a stored row [dim].
float load_value(const std::byte* row, KvType type, size_t dim, size_t i) {
  if (type == KvType::f32) return reinterpret_cast<const float*>(row)[i];
  if (type == KvType::i8) {
    float scale;
    std::memcpy(&scale, row + kv_scale_at(dim), sizeof(scale));
    return static_cast<float>(reinterpret_cast<const int8_t*>(row)[i]) * scale;
  }
  return to_float(reinterpret_cast<const Half*>(row)[i]);
}

// q . the key of a slot
double key_score(const float* q, const KvView& kv, size_t kv_head, size_t slot) {
  const std::byte* key = kv.key_row(kv_head, slot);
  double score = 0;
  for (size_t d = 0; d < kv.head_dim; ++d) {
    score += static_cast<double>(q[d]) * static_cast<double>(load_value(key, kv.type, kv.head_dim, d));
  }
  return score;
}

// Softmax attention of one query head over `count` slots; slots null means 0 .. count-1. weights [count] is
// scratch.
void attend(float* out, const float* q, const AttentionArgs& args, size_t kv_head, const uint32_t* slots,
            size_t count, double* weights) {
  const KvView& kv = args.kv;
  double largest = -INFINITY;
  for (size_t j = 0; j < count; ++j) {
    weights[j] = key_score(q, kv, kv_head, slots != nullptr ? slots[j] : j) * static_cast<double>(args.scale);
    largest = std::max(largest, weights[j]);
  }
  double total = 0;
  for (size_t j = 0; j < count; ++j) {
    weights[j] = std::exp(weights[j] - largest);
    total += weights[j];
  }
  for (size_t d = 0; d < kv.head_dim; ++d) {
    double sum = 0;
    for (size_t j = 0; j < count; ++j) {
      const std::byte* value = kv.value_row(kv_head, slots != nullptr ? slots[j] : j);
      sum += weights[j] * static_cast<double>(load_value(value, kv.type, kv.head_dim, d));
    }
    out[d] = static_cast<float>(sum / total);
  }
}

class ReferenceKernels : public Kernels {
 public:
  std::string_view name() const override { return "reference"; }

  std::unique_ptr<PackedMatrix> pack(const MatrixSource& source, std::span<const uint32_t> row_order,
                                     const Threads& threads, Arena*) const override {
    auto matrix = std::make_unique<ReferenceMatrix>(source.rows(), source.columns());
    constexpr size_t kRowsPerTask = 64;
    threads.run((source.rows() + kRowsPerTask - 1) / kRowsPerTask, [&](size_t task, int) {
      const size_t first = task * kRowsPerTask;
      const size_t last = std::min(first + kRowsPerTask, source.rows());
      for (size_t r = first; r < last; ++r) {
        source.read_values(row_order.empty() ? r : row_order[r], {matrix->row(r), source.columns()});
      }
    });
    source.release(0, source.rows());
    return matrix;
  }

  void matmul(std::span<const MatmulJob> jobs, const float* x, size_t tokens, KernelScratch&,
              const Threads& threads, size_t) const override {
    constexpr size_t kRowsPerTask = 32;
    for (const MatmulJob& job : jobs) {
      const auto& weight = static_cast<const ReferenceMatrix&>(*job.weight);
      threads.run((weight.rows() + kRowsPerTask - 1) / kRowsPerTask, [&](size_t task, int) {
        const size_t first = task * kRowsPerTask;
        const size_t last = std::min(first + kRowsPerTask, weight.rows());
        for (size_t t = 0; t < tokens; ++t) {
          for (size_t r = first; r < last; ++r) {
            float& out = job.out[t * job.out_stride + r];
            const auto product =
                static_cast<float>(dot(weight.row(r), x + t * weight.columns(), weight.columns()));
            out = job.add ? out + product : product;
            if (job.up == nullptr) continue;
            const float* up_row = static_cast<const ReferenceMatrix&>(*job.up).row(r);
            const auto up = static_cast<float>(dot(up_row, x + t * weight.columns(), weight.columns()));
            swiglu(&out, &out, &up, 1);
          }
        }
      });
    }
  }

  void rms_norm(float* out, const float* x, const float* weight, float eps, size_t rows,
                size_t dim) const override {
    for (size_t r = 0; r < rows; ++r) {
      const float* in = x + r * dim;
      const double mean = dot(in, in, dim) / static_cast<double>(dim);
      const auto factor = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(eps)));
      for (size_t i = 0; i < dim; ++i) out[r * dim + i] = in[i] * factor * weight[i];
    }
  }

  void rotate(float* x, size_t token_stride, const RopeAngles& angles, size_t tokens, size_t heads,
              size_t head_dim) const override {
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t h = 0; h < heads; ++h) {
        float* head = x + t * token_stride + h * head_dim;
        for (size_t i = 0; i < angles.pairs; ++i) {
          const float cosine = angles.cosine_row(t)[i];
          const float sine = angles.sine_row(t)[i];
          const float a = head[i];
          const float b = head[i + angles.pairs];
          head[i] = a * cosine - b * sine;
          head[i + angles.pairs] = b * cosine + a * sine;
        }
      }
    }
  }

  void swiglu(float* out, const float* gate, const float* up, size_t count) const override {
    for (size_t i = 0; i < count; ++i) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
  }

  void add(float* out, const float* x, size_t count) const override {
    for (size_t i = 0; i < count; ++i) out[i] += x[i];
  }

  void store_kv(std::byte* out, KvType type, const float* x, size_t count) const override {
    if (type == KvType::f32) {
      std::copy_n(x, count, reinterpret_cast<float*>(out));
    } else if (type == KvType::i8) {
      const float scale = round_to_int8(reinterpret_cast<int8_t*>(out), x, count);
      std::memset(out + count, 0, kv_scale_at(count) - count);
      std::memcpy(out + kv_scale_at(count), &scale, sizeof(scale));
    } else {
      std::transform(x, x + count, reinterpret_cast<Half*>(out), to_half);
    }
  }

  void attention(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) const override {
    const size_t heads_per_group = args.heads / args.kv.kv_heads;
    if (args.choose != nullptr) threads.run(args.selection->groups, *args.choose);
    threads.run(args.queries * args.heads, [&](size_t task, int worker) {
      const size_t query = task / args.heads;
      const size_t head = task % args.heads;
      const size_t kv_head = head / heads_per_group;
      const uint32_t* slots = nullptr;
      size_t count = args.first_visible + query + 1;
      if (args.selection != nullptr) {
        const size_t group = args.selection->groups == 1 ? 0 : kv_head;
        slots = args.selection->row(query, group);
        count = args.selection->count(query, group);
      }
      auto* weights = reinterpret_cast<double*>(worker_scratch(scratch, worker, count * sizeof(double)));
      const size_t offset = task * args.kv.head_dim;
      attend(args.out + offset, args.q + offset, args, kv_head, slots, count, weights);
    });
  }

  void key_scores(const KeyScoreArgs& args, KernelScratch&, int) const override {
    for (size_t row = 0; row < args.queries * args.heads; ++row) {
      const float* q = args.q + row / args.heads * args.query_stride + row % args.heads * args.kv.head_dim;
      for (size_t j = 0; j < args.slots.size(); ++j) {
        const double score = key_score(q, args.kv, args.kv_head, args.slots[j]);
        args.scores[row * args.stride + j] = static_cast<float>(score * static_cast<double>(args.scale));
      }
    }
  }

  void map_heads(const HeadMapArgs& args) const override { reference::map_heads(args); }

  void index_scores(const IndexScoreArgs& args, KernelScratch& scratch, int worker) const override {
    reference::index_scores(args, scratch, worker);
  }

  void add_softmax(float* out, float* scores, size_t count, bool accumulate) const override {
    reference::add_softmax(out, scores, count, accumulate);
  }

  size_t top_k(uint32_t* out, const float* scores, size_t count, size_t k, KernelScratch& scratch,
               int worker) const override {
    if (k >= count) {
      std::iota(out, out + count, 0u);
      return count;
    }
    auto* order = reinterpret_cast<uint32_t*>(worker_scratch(scratch, worker, count * sizeof(uint32_t)));
    std::iota(order, order + count, 0u);
    std::nth_element(order, order + k, order + count, [&](uint32_t a, uint32_t b) {
      const uint32_t score_a = score_order(scores[a]);
      const uint32_t score_b = score_order(scores[b]);
      return score_a != score_b ? score_a > score_b : a > b;
    });
    std::copy_n(order, k, out);
    std::sort(out, out + k);
    return k;
  }
};

}  // namespace

std::unique_ptr<Kernels> make_reference_kernels() { return std::make_unique<ReferenceKernels>(); }

}  // namespace keysieve
