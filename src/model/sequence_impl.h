#pragma once

#include <memory>

#include "core/memory.h"
#include "model/sequence_state.h"

namespace keysieve {

// Caches that bound memory are read in chunks this small; so what works on a chunk keeps its buffers small
// too.
inline bool bounded_memory(size_t max_chunk) { return max_chunk <= 128; }

// Where a chunk's numbers live on their way through the layers. [chunk] is max_chunk tokens; pages are taken
// when first written, so short chunks cost little.
struct ForwardBuffers {
  ForwardBuffers(const ModelConfig& config, size_t chunk, const KeySelector::KeyShape& index);

  // Rows that the feed-forward part takes at once: 512 of a width of 4,864 are 10 MB, 64 where memory is
  // bounded 1.2.
  size_t mlp_rows;
  RopeAngles angles;                // of the chunk's tokens, the same for all layers
  AlignedArray<int32_t> positions;  // [chunk]
  AlignedArray<float> x;            // [chunk, hidden], the residual stream
  AlignedArray<float> normed;       // [chunk, hidden]
  AlignedArray<float> q;            // [chunk, heads, head_dim]
  AlignedArray<float> k;            // [chunk, kv_heads, head_dim]
  AlignedArray<float> v;            // [chunk, kv_heads, head_dim]
  AlignedArray<float> index_keys;   // [chunk, index heads, index dim]
  AlignedArray<float> attention;    // [chunk, heads, head_dim]
  AlignedArray<float> gated;        // [mlp_rows, mlp], silu(gate) * up
  AlignedArray<float> logits;       // [block, vocabulary], grown when a block of rows is first asked for
  AlignedArray<float> last_logits;  // [vocabulary]
};

struct SequenceState::Impl {
  Impl(std::shared_ptr<const Model> for_model, const SequenceOptions& options);

  std::shared_ptr<const Model> model;
  std::shared_ptr<KeySelector> selector;  // null: dense
  KeySelector::KeyShape index;            // heads 0: no index keys
  size_t max_chunk;
  std::unique_ptr<KvCache> cache;
  size_t position = 0;
  bool has_logits = false;
  WorkCounters work;
  KernelScratch scratch;
  SelectionBuffer selection;
  std::vector<float> scores;  // [groups, slots], for caches that forget and for taps
  ForwardBuffers buffers;

  KernelContext context() { return {model->kernels(), model->threads(), scratch}; }
};

}  // namespace keysieve
