#if defined(KEYSIEVE_SIMD_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_ATTENTION_INL_H
#undef KEYSIEVE_SIMD_ATTENTION_INL_H
#else
#define KEYSIEVE_SIMD_ATTENTION_INL_H
#endif

#include <algorithm>
#include <cstring>

#include "kernels/simd/small_gemm-inl.h"
#include "kernels/simd/vectors-inl.h"

// Dense prefill attention. A block of neighbouring queries and all query heads of one KV head share the keys
// they read. The rows are taken 64 at a time into a contiguous fp32 tile (keys transposed), scored, masked by
// causality, and folded into a running softmax (FlashAttention's online form, arXiv 2205.14135).
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kTileKeys = 64;      // 64 keys and values of head 64 in fp32: 32 KB, an L1 cache
inline constexpr size_t kBlockQueries = 32;  // the tile is built once per block: 96 rows share it at 3 heads

// The memory one worker needs for a block of `rows` = queries x heads per KV head.
struct AttentionTile {
  float* q;        // [rows, head_dim], scaled
  float* keys;     // [padded_dim, kTileKeys]
  float* values;   // [kTileKeys, padded_dim]
  float* scores;   // [rows, kTileKeys]
  float* out;      // [rows, padded_dim]
  float* top;      // [rows] running maximum
  float* total;    // [rows] running sum
  float* staging;  // [kTileKeys, padded_dim] keys before transposition
  size_t rows;
  size_t padded_dim;  // head_dim rounded up to whole vectors
};

inline size_t tile_floats(size_t rows, size_t padded_dim) {
  return 2 * rows * padded_dim + 3 * padded_dim * kTileKeys + rows * kTileKeys + 2 * rows +
         10 * kAlignment / sizeof(float);
}

inline AttentionTile carve_tile(std::byte* memory, size_t rows, size_t head_dim) {
  AttentionTile tile;
  tile.rows = rows;
  tile.padded_dim = (head_dim + kLanes - 1) / kLanes * kLanes;
  auto* next = reinterpret_cast<float*>(memory);
  const auto take = [&next](size_t floats) {
    float* block = next;
    next += (floats + 15) / 16 * 16;
    return block;
  };
  tile.q = take(rows * tile.padded_dim);
  tile.keys = take(tile.padded_dim * kTileKeys);
  tile.values = take(tile.padded_dim * kTileKeys);
  tile.staging = take(tile.padded_dim * kTileKeys);
  tile.scores = take(rows * kTileKeys);
  tile.out = take(rows * tile.padded_dim);
  tile.top = take(rows);
  tile.total = take(rows);
  return tile;
}

// Widens one stored row [head_dim] to fp32, zero-padded to whole vectors.
template <KvType kType>
HWY_INLINE void widen_row(float* out, const std::byte* row, size_t head_dim, size_t padded_dim) {
  size_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) hn::StoreU(load_kv<kType>(row, d), F32(), out + d);
  if (d == padded_dim) return;
  std::fill(out + d, out + padded_dim, 0.0f);
  for (; d < head_dim; ++d) {
    out[d] = kType == KvType::f32 ? reinterpret_cast<const float*>(row)[d]
                                  : to_float(reinterpret_cast<const Half*>(row)[d]);
  }
}

// out [columns, kTileKeys] = in [kTileKeys, columns] transposed, by squares of kLanes that stay in registers'
// reach.
inline void transpose_keys(float* out, const float* in, size_t columns) {
  constexpr size_t kSquare = 8;
  for (size_t c = 0; c < columns; c += kSquare) {
    for (size_t k = 0; k < kTileKeys; k += kSquare) {
#if HWY_ARCH_X86
      __m256 r[8];
      for (size_t i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(in + (k + i) * columns + c);
      __m256 t[8];
      for (size_t i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
      }
      __m256 u[8];
      for (size_t i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
      }
      for (size_t i = 0; i < 4; ++i) {
        _mm256_storeu_ps(out + (c + i) * kTileKeys + k, _mm256_permute2f128_ps(u[i], u[i + 4], 0x20));
        _mm256_storeu_ps(out + (c + i + 4) * kTileKeys + k, _mm256_permute2f128_ps(u[i], u[i + 4], 0x31));
      }
#else
      for (size_t i = 0; i < kSquare; ++i) {
        for (size_t j = 0; j < kSquare; ++j) out[(c + j) * kTileKeys + k + i] = in[(k + i) * columns + c + j];
      }
#endif
    }
  }
}

// Fills the tile with the rows first .. first + count - 1; missing rows become zeros (masked later).
template <KvType kType>
inline void load_tile(const AttentionTile& tile, const KvView& kv, size_t kv_head, size_t first,
                      size_t count) {
  for (size_t j = 0; j < count; ++j) {
    widen_row<kType>(tile.staging + j * tile.padded_dim, kv.key_row(kv_head, first + j), kv.head_dim,
                     tile.padded_dim);
    widen_row<kType>(tile.values + j * tile.padded_dim, kv.value_row(kv_head, first + j), kv.head_dim,
                     tile.padded_dim);
  }
  std::fill(tile.staging + count * tile.padded_dim, tile.staging + kTileKeys * tile.padded_dim, 0.0f);
  std::fill(tile.values + count * tile.padded_dim, tile.values + kTileKeys * tile.padded_dim, 0.0f);
  transpose_keys(tile.keys, tile.staging, tile.padded_dim);
}

inline constexpr float kMasked = -1e30f;  // far below any score, yet finite: no NaN from inf - inf

// One row of scores: masks it, updates the running maximum and sum, leaves e^(score - max) in place.
// keep [kTileKeys / kLanes] gives the visible keys of each vector.
HWY_INLINE void softmax_row(const AttentionTile& tile, size_t row, const hn::Mask<F32>* keep) {
  constexpr size_t kVectors = kTileKeys / kLanes;
  float* scores = tile.scores + row * kTileKeys;
  VF v[kVectors];
  VF largest = hn::Set(F32(), tile.top[row]);
  for (size_t i = 0; i < kVectors; ++i) {
    v[i] = hn::IfThenElse(keep[i], hn::LoadU(F32(), scores + i * kLanes), hn::Set(F32(), kMasked));
    largest = hn::Max(largest, v[i]);
  }
  largest = hn::MaxOfLanes(F32(), largest);
  const float top = hn::GetLane(largest);
  VF sum = hn::Zero(F32());
  for (size_t i = 0; i < kVectors; ++i) {
    const VF e = hn::IfThenElseZero(keep[i], exp_of(hn::Sub(v[i], largest)));
    hn::StoreU(e, F32(), scores + i * kLanes);
    sum = hn::Add(sum, e);
  }
  if (top > tile.top[row]) {
    const float shrink = fast_exp(tile.top[row] - top);
    tile.total[row] *= shrink;
    float* out = tile.out + row * tile.padded_dim;
    for (size_t d = 0; d < tile.padded_dim; d += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(F32(), out + d), hn::Set(F32(), shrink)), F32(), out + d);
    }
    tile.top[row] = top;
  }
  tile.total[row] += hn::GetLane(hn::SumOfLanes(F32(), sum));
}

// Scores, masks and folds in one loaded tile. visible(query, vector) gives the mask of kLanes keys.
template <class Visible>
inline void fold_tile(const AttentionTile& tile, size_t heads_per_group, const Visible& visible) {
  constexpr size_t kVectors = kTileKeys / kLanes;
  small_gemm({tile.scores, kTileKeys, tile.q, tile.padded_dim, tile.keys, kTileKeys, tile.rows, kTileKeys,
              tile.padded_dim, false});
  hn::Mask<F32> keep[kVectors];
  for (size_t row = 0; row < tile.rows; ++row) {
    if (row % heads_per_group == 0) {
      for (size_t i = 0; i < kVectors; ++i) keep[i] = visible(row / heads_per_group, i);
    }
    softmax_row(tile, row, keep);
  }
  small_gemm({tile.out, tile.padded_dim, tile.scores, kTileKeys, tile.values, tile.padded_dim, tile.rows,
              tile.padded_dim, kTileKeys, true});
}

// Row q * heads_per_group + h of the tile is query q of the block, head h of the group.
inline void begin_block(const AttentionTile& tile, const AttentionArgs& args, size_t first_query,
                        size_t kv_head) {
  const size_t heads_per_group = args.heads / args.kv.kv_heads;
  const size_t dim = args.kv.head_dim;
  for (size_t row = 0; row < tile.rows; ++row) {
    const size_t query = first_query + row / heads_per_group;
    const float* q = args.q + (query * args.heads + kv_head * heads_per_group + row % heads_per_group) * dim;
    float* to = tile.q + row * tile.padded_dim;
    for (size_t d = 0; d < dim; ++d) to[d] = q[d] * args.scale;
    std::fill(to + dim, to + tile.padded_dim, 0.0f);
  }
  std::fill_n(tile.out, tile.rows * tile.padded_dim, 0.0f);
  std::fill_n(tile.top, tile.rows, kMasked);
  std::fill_n(tile.total, tile.rows, 0.0f);
}

inline void end_block(const AttentionTile& tile, const AttentionArgs& args, size_t first_query,
                      size_t kv_head) {
  const size_t heads_per_group = args.heads / args.kv.kv_heads;
  const size_t dim = args.kv.head_dim;
  for (size_t row = 0; row < tile.rows; ++row) {
    const size_t query = first_query + row / heads_per_group;
    float* out = args.out + (query * args.heads + kv_head * heads_per_group + row % heads_per_group) * dim;
    const float inverse = 1.0f / tile.total[row];
    for (size_t d = 0; d < dim; ++d) out[d] = tile.out[row * tile.padded_dim + d] * inverse;
  }
}

template <KvType kType>
inline void dense_block(const AttentionArgs& args, size_t first_query, size_t queries, size_t kv_head,
                        KernelScratch& scratch, int worker) {
  const size_t heads_per_group = args.heads / args.kv.kv_heads;
  const size_t rows = queries * heads_per_group;
  const size_t padded_dim = (args.kv.head_dim + kLanes - 1) / kLanes * kLanes;
  const AttentionTile tile = carve_tile(
      worker_scratch(scratch, worker, tile_floats(rows, padded_dim) * sizeof(float)), rows, args.kv.head_dim);
  begin_block(tile, args, first_query, kv_head);
  const size_t visible_first =
      args.first_visible + first_query;  // last slot the block's first query may read
  const size_t end = visible_first + queries;
  const auto lane = hn::Iota(I32(), 0);
  for (size_t base = 0; base < end; base += kTileKeys) {
    const size_t count = std::min(kTileKeys, end - base);
    load_tile<kType>(tile, args.kv, kv_head, base, count);
    fold_tile(tile, heads_per_group, [&](size_t query, size_t vector) HWY_ATTR {
      const auto last =
          static_cast<int32_t>(visible_first + query) - static_cast<int32_t>(base + vector * kLanes);
      return hn::RebindMask(F32(), hn::Not(hn::Gt(lane, hn::Set(I32(), last))));
    });
  }
  end_block(tile, args, first_query, kv_head);
}

template <KvType kType>
inline void dense_prefill_attention(const AttentionArgs& args, KernelScratch& scratch,
                                    const Threads& threads) {
  const size_t blocks = (args.queries + kBlockQueries - 1) / kBlockQueries;
  threads.run(blocks * args.kv.kv_heads, [&](size_t task, int worker) HWY_ATTR {
    // Last blocks first: they are the longest.
    const size_t first = (blocks - 1 - task / args.kv.kv_heads) * kBlockQueries;
    const size_t queries = std::min(kBlockQueries, args.queries - first);
    dense_block<kType>(args, first, queries, task % args.kv.kv_heads, scratch, worker);
  });
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // KEYSIEVE_SIMD_ATTENTION_INL_H
