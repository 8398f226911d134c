#if defined(KEYSIEVE_SIMD_KEY_SCORES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_KEY_SCORES_INL_H
#undef KEYSIEVE_SIMD_KEY_SCORES_INL_H
#else
#define KEYSIEVE_SIMD_KEY_SCORES_INL_H
#endif

#include <algorithm>

#include "kernels/simd/attention-inl.h"
#include "kernels/simd/row_attention-inl.h"

// The first half of attention alone: scores of keys that may lie anywhere, for a choice among them. One query
// reads each key where it lies; neighbours share a transposed tile of 64 keys, as in a dense prompt.
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

template <KvType kType, size_t kDim>
inline void key_scores_of(const KeyScoreArgs& args, KernelScratch& scratch, int worker) {
  const size_t dim = kDim != 0 ? kDim : args.kv.head_dim;
  const PartMemory memory(worker_scratch(scratch, worker, PartMemory::bytes(args.heads, dim)), args.heads);
  const size_t row_bytes = kv_row_bytes(kType, dim);
  for (size_t first = 0; first < args.slots.size(); first += kPartKeys) {
    const PartRows rows{.keys = args.kv.key_row(args.kv_head, 0),
                        .values = nullptr,
                        .offsets = memory.offsets,
                        .count = std::min(kPartKeys, args.slots.size() - first),
                        .dim = dim};
    for (size_t j = 0; j < rows.count; ++j) memory.offsets[j] = args.slots[first + j] * row_bytes;
    std::fill(memory.offsets + rows.count, memory.offsets + kOffsetsPerPart, memory.offsets[rows.count - 1]);
    for (size_t j = 0; j < kRowsAhead; ++j) prefetch_row<kType, kDim>(rows.keys + rows.offsets[j], rows);
    for (size_t base = 0; base < rows.count; base += kBlockRows) {
      in_turns<kWidens<kType>>(args.heads, [&]<size_t kHeads, Turn kTurn>(size_t h) {
        block_scores<kType, kDim, kHeads, kTurn>(memory.scores + h * kPartKeys + base, memory.widened,
                                                 args.q + h * dim, args.scale, rows, base);
      });
    }
    for (size_t h = 0; h < args.heads; ++h) {
      std::copy_n(memory.scores + h * kPartKeys, rows.count, args.scores + h * args.stride + first);
    }
  }
}

// The memory one worker needs for the rows [queries, heads] of several queries.
struct KeyTile {
  float* q;        // [rows, padded_dim], scaled
  float* staging;  // [kTileKeys, padded_dim]
  float* keys;     // [padded_dim, kTileKeys]
  float* last;     // [rows, kTileKeys] scores of a tile that is not whole
  size_t rows;
  size_t padded_dim;  // head_dim rounded up to whole vectors
};

inline KeyTile make_key_tile(const KeyScoreArgs& args, KernelScratch& scratch, int worker) {
  KeyTile tile{};
  tile.rows = args.queries * args.heads;
  tile.padded_dim = (args.kv.head_dim + kLanes - 1) / kLanes * kLanes;
  const size_t floats = tile.rows * tile.padded_dim + 2 * kTileKeys * tile.padded_dim + tile.rows * kTileKeys;
  tile.keys = reinterpret_cast<float*>(worker_scratch(scratch, worker, floats * sizeof(float)));
  tile.staging = tile.keys + tile.padded_dim * kTileKeys;
  tile.last = tile.staging + kTileKeys * tile.padded_dim;
  tile.q = tile.last + tile.rows * kTileKeys;
  for (size_t row = 0; row < tile.rows; ++row) {
    const float* q = args.q + row / args.heads * args.query_stride + row % args.heads * args.kv.head_dim;
    scale_query(tile.q + row * tile.padded_dim, q, args.scale, args.kv.head_dim, tile.padded_dim);
  }
  return tile;
}

template <KvType kType>
inline void key_scores_of_queries(const KeyScoreArgs& args, KernelScratch& scratch, int worker) {
  const KeyTile tile = make_key_tile(args, scratch, worker);
  const size_t dim = args.kv.head_dim, count = args.slots.size();
  const PartRows row_shape{.keys = nullptr, .values = nullptr, .offsets = nullptr, .count = 0, .dim = dim};
  const auto key = [&](size_t j) { return args.kv.key_row(args.kv_head, args.slots[j]); };
  for (size_t j = 0; j < std::min(kTileKeys, count); ++j) prefetch_row<kType, 0>(key(j), row_shape);
  for (size_t base = 0; base < count; base += kTileKeys) {
    const size_t here = std::min(kTileKeys, count - base);
    for (size_t j = 0; j < here; ++j) {
      if (base + kTileKeys + j < count) prefetch_row<kType, 0>(key(base + kTileKeys + j), row_shape);
      widen_row<kType>(tile.staging + j * tile.padded_dim, key(base + j), dim, tile.padded_dim);
    }
    std::fill(tile.staging + here * tile.padded_dim, tile.staging + kTileKeys * tile.padded_dim, 0.0f);
    transpose_keys(tile.keys, tile.staging, tile.padded_dim);
    const bool whole = here == kTileKeys;
    small_gemm({whole ? args.scores + base : tile.last, whole ? args.stride : kTileKeys, tile.q,
                tile.padded_dim, tile.keys, kTileKeys, tile.rows, kTileKeys, tile.padded_dim, false});
    for (size_t row = 0; row < tile.rows && !whole; ++row) {
      std::copy_n(tile.last + row * kTileKeys, here, args.scores + row * args.stride + base);
    }
  }
}

template <KvType kType>
inline void key_scores_simd(const KeyScoreArgs& args, KernelScratch& scratch, int worker) {
  if (args.queries > 1) return key_scores_of_queries<kType>(args, scratch, worker);
  with_head_dim(args.kv.head_dim, [&]<size_t kDim>() { key_scores_of<kType, kDim>(args, scratch, worker); });
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_KEY_SCORES_INL_H
