#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/matrix_source.h"
#include "core/threads.h"
#include "formats/gguf.h"
#include "formats/hub_folder.h"
#include "kernels/kernels.h"
#include "model/config.h"

namespace keysieve {

struct LayerWeights {
  std::vector<float> attention_norm;     // [hidden]
  std::unique_ptr<PackedMatrix> q;       // [heads * head_dim, hidden]
  std::unique_ptr<PackedMatrix> k;       // [kv_heads * head_dim, hidden]
  std::unique_ptr<PackedMatrix> v;       // [kv_heads * head_dim, hidden]
  std::vector<float> q_bias;             // [heads * head_dim], or empty
  std::vector<float> k_bias;             // [kv_heads * head_dim], or empty
  std::vector<float> v_bias;             // [kv_heads * head_dim], or empty
  std::vector<float> q_norm;             // [head_dim], or empty
  std::vector<float> k_norm;             // [head_dim], or empty
  std::unique_ptr<PackedMatrix> output;  // [hidden, heads * head_dim]
  std::vector<float> output_bias;        // [hidden], or empty
  std::vector<float> mlp_norm;           // [hidden]
  std::unique_ptr<PackedMatrix> gate;    // [mlp, hidden]
  std::unique_ptr<PackedMatrix> up;      // [mlp, hidden]
  std::unique_ptr<PackedMatrix> down;    // [hidden, mlp]
};

// A model's weights in the layout of one kernel family. q and k are in half-split RoPE order whatever the
// file's order was. The embedding is not packed: its rows are read from the mapped file, so only the pages of
// tokens that occur are ever in memory; a tied head is packed from the same rows.
struct ModelWeights {
  Arena memory;                             // of the packed matrices
  std::vector<LayerWeights> layers;         // [layers]
  std::vector<float> final_norm;            // [hidden]
  std::unique_ptr<MatrixSource> embedding;  // [vocabulary, hidden]
  std::unique_ptr<PackedMatrix> head;       // [vocabulary, hidden]
  bool quantized = false;                   // any layer matrix holds codes; the rest is f32, f16 or bf16
  uint64_t layer_multiply_adds = 0;         // of one token, all layers' matrices
  uint64_t bytes = 0;  // all packed matrices and vectors in memory, the mapped embedding not counted
  // Ties an indexer to the model it was made for: FNV-1a (64 bit) over the sizes of the config, then over the
  // dequantised f32 bits of three rows (first, middle, last) of the embedding and of every layer's k and down
  // matrices in file order. The same for a file however it is loaded (kernels, threads, context); different
  // for another quantisation of the same model.
  uint64_t fingerprint = 0;
};

// Reads, checks and packs all weights. Every tensor's shape is checked against the config: throws
// Error{mismatch} naming file, tensor, found and expected shape; Error{format} for a missing tensor;
// Error{unsupported} for a type this build cannot read. Tensors the model does not use are ignored. The file
// must outlive the weights. `dequantize` packs quantised matrices as the f32 values they stand for.
ModelWeights load_weights(const GgufFile& file, const ModelConfig& config, const Kernels& kernels,
                          const Threads& threads, bool dequantize = false);
ModelWeights load_weights(const HubFolder& folder, const ModelConfig& config, const Kernels& kernels,
                          const Threads& threads, bool dequantize = false);

// Row order that turns interleaved rotary pairs (2i, 2i + 1) into half-split ones (i, i + rotary_dim / 2):
// packed row r is source row order[r]. [heads * head_dim]
std::vector<uint32_t> half_split_row_order(size_t heads, size_t head_dim, size_t rotary_dim);

}  // namespace keysieve
