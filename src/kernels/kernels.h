#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "core/matrix_source.h"
#include "core/memory.h"
#include "core/threads.h"
#include "kernels/index_keys.h"
#include "kernels/kv_view.h"
#include "kernels/selection.h"

namespace keysieve {

// A weight matrix in the layout one kernel family reads. Made by Kernels::pack, read by that family only.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  virtual size_t rows() const = 0;
  virtual size_t columns() const = 0;
  virtual size_t bytes() const = 0;
};

// One product of a shared input with a weight: out[token] = weight * x[token], or added to what is there;
// with `up` the two projections of a SwiGLU (arXiv 2002.05202): out[token] = silu(weight * x[token]) * (up *
// x[token]).
struct MatmulJob {
  float* out;                        // [tokens, out_stride], the first weight->rows() of each row written
  size_t out_stride;                 // floats between rows of `out`, >= weight->rows()
  const PackedMatrix* weight;        // [rows, columns]
  bool add = false;                  // out += instead of out =; not with `up`
  const PackedMatrix* up = nullptr;  // [rows, columns], as many as `weight` has
};

// Of one token, in one product: see Kernels::matmul.
inline constexpr size_t kMostExactValues = 8;

// Working memory a caller keeps between calls, so that no kernel allocates in the way of a token.
struct KernelScratch {
  explicit KernelScratch(const Threads& threads) : per_worker(static_cast<size_t>(threads.count())) {}
  std::vector<std::vector<std::byte>> per_worker;  // [threads], grown by kernels as needed
  std::vector<std::byte> shared;
};

struct RopeTable {
  // Angle position * frequency[pair] and the magnitude factor of YaRN (1 elsewhere), for each pair of the
  // rotated part; `scale` multiplies both cosine and sine.
  std::vector<double> frequency;  // [rotary_dim / 2]; in fp32 the angle would be off by 0.006 at 100,000
  float scale = 1.0f;
};

// The rotations of a chunk of tokens, computed once (in double: an fp32 angle of 30,000 radians is off by
// 0.002) and used by every layer.
struct RopeAngles {
  std::vector<float> cosine;  // [tokens, pairs], times the table's scale
  std::vector<float> sine;    // [tokens, pairs]
  size_t pairs = 0;

  const float* cosine_row(size_t token) const { return cosine.data() + token * pairs; }
  const float* sine_row(size_t token) const { return sine.data() + token * pairs; }
  // Fills both for positions [tokens]; keeps its memory between calls.
  void compute(const RopeTable& table, std::span<const int32_t> positions);
};

struct AttentionArgs {
  float* out;      // [queries, heads, head_dim]
  const float* q;  // [queries, heads, head_dim], after RoPE
  size_t queries;
  size_t heads;  // a multiple of kv.kv_heads; head h reads KV head h / (heads / kv_heads)
  float scale;   // head_dim^-0.5
  KvView kv;
  // Dense: query i reads slots 0 .. first_visible + i. Sparse: query i reads the slots of its selection only.
  size_t first_visible;
  const SelectionView* selection;  // null: dense
  // Null: the selection is there. Else, for one query, what writes the rows and the count of set g; it is
  // called once for each set, from any worker, before what reads that set.
  const std::function<void(size_t set, int worker)>* choose = nullptr;
};

// Small matrices applied head by head: out[t, h] = map[h / heads_per_map] * x[t, h].
struct HeadMapArgs {
  float* out;         // [tokens, heads, dim]
  const float* x;     // [tokens, heads, head_dim]
  const float* maps;  // [heads / heads_per_map, head_dim, dim]: each matrix transposed
  size_t tokens;
  size_t heads;
  size_t heads_per_map;
  size_t head_dim;
  size_t dim;
};

// Scores over stored index keys, for the query heads that share one key head: of one query, or of neighbours,
// whose scores are added up in their order.
struct IndexScoreArgs {
  float* scores;             // [count + queries - 1 rounded up to 16]
  const float* q;            // [queries, heads, dim], see query_stride
  const float* head_weight;  // [heads], relu_sum only (of one query), already scaled; else null
  size_t heads;
  size_t count;  // slots 0 .. count-1 are scored by the first query, one more by each that follows
  IndexKeyView keys;
  IndexCombine combine;
  bool cold;        // keys are likely to lie in memory, not in a cache: a decode step meets them once a token
  bool accumulate;  // add to `scores` (several key heads voting on one shared set) instead of storing
  size_t queries = 1;
  size_t query_stride = 0;  // floats from one query to the next; unused for one
};

// Attention scores of one query, or of neighbours, for some of the stored keys of a KV head.
struct KeyScoreArgs {
  float* scores;   // [queries, heads, stride]; of each row the first slots.size() are written
  size_t stride;   // at least slots.size()
  const float* q;  // [queries, heads, head_dim], after RoPE; see query_stride
  size_t heads;    // that share the KV head
  float scale;     // head_dim^-0.5, or sharper
  KvView kv;
  size_t kv_head;
  std::span<const uint32_t> slots;
  size_t queries = 1;
  size_t query_stride = 0;  // floats from one query of q to the next; unused for one
};

// A family of kernels: `reference` (scalar, fp32, exact dequantised weights) or one SIMD target. All
// functions are deterministic: equal inputs give bitwise equal outputs, whatever the number of threads. Sizes
// are trusted (the model checks them when weights are bound); nothing here throws but for lack of memory.
class Kernels {
 public:
  virtual ~Kernels() = default;
  virtual std::string_view name() const = 0;

  // Copies a matrix into this family's layout, giving the file's pages back as it goes. Row r of the result
  // is row row_order[r] of the source (empty: the same order); used to turn interleaved-RoPE files into
  // half-split ones. The memory comes from `arena`, which must outlive the matrix; null: from the heap.
  virtual std::unique_ptr<PackedMatrix> pack(const MatrixSource& source, std::span<const uint32_t> row_order,
                                             const Threads& threads, Arena* arena = nullptr) const = 0;

  // All jobs in one parallel pass. x [tokens, columns]; every weight has the same number of columns. A family
  // that rounds x for quantised weights leaves `exact_values` of each token (at most kMostExactValues) as
  // they are, those whose size would make the rounding of their neighbours coarsest (docs/decisions/0018);
  // twice as many where it rounds by 64 columns in place of 32 (0023).
  virtual void matmul(std::span<const MatmulJob> jobs, const float* x, size_t tokens, KernelScratch& scratch,
                      const Threads& threads, size_t exact_values = 0) const = 0;

  // out[row] = x[row] / sqrt(mean(x[row]^2) + eps) * weight. out, x [rows, dim] (may be the same), weight
  // [dim].
  virtual void rms_norm(float* out, const float* x, const float* weight, float eps, size_t rows,
                        size_t dim) const = 0;

  // Half-split rotation in place of the first 2 * angles.pairs values of each head: pair (i, i + pairs).
  // x: token t starts at x + t * token_stride and holds [heads, head_dim]. (RoFormer, arXiv 2104.09864; the
  // half-split layout of GPT-NeoX.)
  virtual void rotate(float* x, size_t token_stride, const RopeAngles& angles, size_t tokens, size_t heads,
                      size_t head_dim) const = 0;
  // The same for positions [tokens], computing the angles on the way: for callers that rotate once.
  void rope(float* x, size_t token_stride, const int32_t* positions, size_t tokens, size_t heads,
            size_t head_dim, const RopeTable& table) const {
    RopeAngles angles;
    angles.compute(table, {positions, tokens});
    rotate(x, token_stride, angles, tokens, heads, head_dim);
  }

  // out[i] = silu(gate[i]) * up[i]; out may be gate. (SwiGLU, arXiv 2002.05202.)
  virtual void swiglu(float* out, const float* gate, const float* up, size_t count) const = 0;
  // out[i] += x[i]
  virtual void add(float* out, const float* x, size_t count) const = 0;

  // Writes one row of keys or values into a store of `type`: out [kv_row_bytes(type, count)], x [count]. i8
  // rounds to nearest even with scale max|x| / 127; a row with a value that is not finite becomes zeros.
  virtual void store_kv(std::byte* out, KvType type, const float* x, size_t count) const = 0;

  // Softmax attention over all visible slots or over each query's selection (keys not selected are not read).
  // From three queries on avx512bf16 multiplies stored f16 and i8 in bfloat16; all else sums fp32 products.
  virtual void attention(const AttentionArgs& args, KernelScratch& scratch, const Threads& threads) const = 0;

  // scores[i, h, j] = scale * q[i, h] . key[slots[j]], summed in fp32, in one order for one query and in
  // another for several. Runs on the calling thread; `worker` picks the scratch.
  virtual void key_scores(const KeyScoreArgs& args, KernelScratch& scratch, int worker) const = 0;

  // On the calling thread. A token's result does not depend on the others.
  virtual void map_heads(const HeadMapArgs& args) const = 0;

  // See IndexCombine for the formulas. Runs on the calling thread; `worker` picks the scratch.
  virtual void index_scores(const IndexScoreArgs& args, KernelScratch& scratch, int worker) const = 0;

  // out = softmax(scores), or out += it with `accumulate`: index scores of one query made shares of 1,
  // bitwise equal on all families. Both [count], apart; `scores` is overwritten.
  virtual void add_softmax(float* out, float* scores, size_t count, bool accumulate) const = 0;

  // The k best of scores[0 .. count): writes min(k, count) indices in ascending order, returns how many.
  // Equal scores (-0 equals +0) go to the larger index. NaN counts as the lowest score.
  virtual size_t top_k(uint32_t* out, const float* scores, size_t count, size_t k, KernelScratch& scratch,
                       int worker) const = 0;
};

// "reference" and the SIMD families this machine can run, slowest first: {"reference", "avx2", "avx512",
// "avx512bf16"}, on 64-bit Arm with dot products {"reference", "neon"}, without them {"reference"}.
std::vector<std::string_view> available_kernels();

// The family by name; "auto" is the fastest available, or the one the environment variable KEYSIEVE_KERNELS
// names. Throws Error{usage} for an unknown name or one this machine cannot run, listing those it can.
std::shared_ptr<const Kernels> make_kernels(std::string_view name = "auto");

// Grows one worker's scratch to at least `bytes` (64-byte aligned) and returns it. Its content, and any
// pointer from an earlier call for the same worker, is lost: a caller that holds worker scratch must not call
// another kernel.
std::byte* worker_scratch(KernelScratch& scratch, int worker, size_t bytes);
std::byte* shared_scratch(KernelScratch& scratch, size_t bytes);

}  // namespace keysieve
