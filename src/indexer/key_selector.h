#pragma once

#include <cstddef>
#include <functional>

#include "indexer/layer_query.h"
#include "indexer/selection_buffer.h"

namespace keysieve {

// Chooses the keys each query of a layer reads. The model calls, per layer and chunk: project_keys, appends
// the keys to the cache, select, attention. One selector serves one session (it keeps working memory).
class KeySelector {
 public:
  virtual ~KeySelector() = default;

  virtual size_t groups() const = 0;              // sets per query: 1 or the model's kv_heads
  virtual size_t budget(size_t layer) const = 0;  // 0: the layer is dense
  // Stored keys that choosing reads for query `index`, in each KV head.
  virtual size_t keys_refined(const LayerQuery&, size_t /*index*/) const { return 0; }

  // What the cache must hold beside keys and values; heads 0: nothing, and project_keys is not called.
  struct KeyShape {
    size_t heads = 0;
    size_t dim = 0;
    IndexKeyType type = IndexKeyType::f32;
    size_t query_heads = 0;  // dot products one query takes a slot
  };
  virtual KeyShape key_shape() const { return {}; }
  // keys [inputs.tokens, heads, dim] of key_shape()
  virtual void project_keys(float* /*keys*/, size_t /*layer*/, const LayerInputs&, KernelContext&) {}

  // False: every query of the chunk reads all its candidates, `out` is untouched and attention runs dense.
  // True: `out` holds the selection of every query.
  virtual bool select(const LayerQuery& query, KernelContext& context, SelectionBuffer& out) = 0;

  // For a chunk of one query with several sets: prepares, and returns what makes set g of `out`, to be called
  // once for each set, from any worker, while all three live. Empty: select() is to be used.
  virtual std::function<void(size_t set, int worker)> choose_later(const LayerQuery&, KernelContext&,
                                                                   SelectionBuffer& /*out*/) {
    return {};
  }

  // What a cache that must forget goes by: scores [groups, query.slots()], the sum over the last
  // min(voters, tokens) queries of their scores (0 where a slot is no candidate of a voter). voters 1 is the
  // seed's rule.
  virtual void scores(float* scores, const LayerQuery& query, size_t voters, KernelContext& context) = 0;
};

}  // namespace keysieve
