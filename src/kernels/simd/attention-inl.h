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
// they read. The keys are taken 64 at a time into a contiguous fp32 tile (transposed, 32 KB with the values,
// so both stay in an L1 cache of 48 KB); a few rows of queries at a time are scored against it, masked by
// causality, and folded into a running softmax (FlashAttention's online form, arXiv 2205.14135).
HWY_BEFORE_NAMESPACE();
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kTileKeys = 64;
inline constexpr size_t kBlockQueries = 64;  // the tile is built once per block: 192 rows share it at 3 heads

// The memory one worker needs for a block of `rows` = queries x heads per KV head.
struct AttentionTile {
  float* q;        // [rows, padded_dim], scaled
  float* keys;     // [padded_dim, kTileKeys]
  float* values;   // [kTileKeys, padded_dim]
  float* scores;   // [kGemmRows, kTileKeys]
  float* out;      // [rows, padded_dim]
  float* top;      // [rows] what the exponentials are relative to
  float* total;    // [rows, kLanes] running sums
  float* staging;  // [kTileKeys, padded_dim] keys before transposition
  size_t rows;
  size_t padded_dim;  // head_dim rounded up to whole vectors
};

inline size_t tile_floats(size_t rows, size_t padded_dim) {
  return 2 * rows * padded_dim + 3 * padded_dim * kTileKeys + kGemmRows * kTileKeys + rows * (1 + kLanes) +
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
  tile.scores = take(kGemmRows * kTileKeys);
  tile.out = take(rows * tile.padded_dim);
  tile.top = take(rows);
  tile.total = take(rows * kLanes);
  return tile;
}

// Widens one stored row [head_dim] to fp32, zero-padded to whole vectors.
template <KvType kType>
HWY_INLINE void widen_row(float* out, const std::byte* row, size_t head_dim, size_t padded_dim) {
  const float scale = kType == KvType::i8 ? kv_scale(row, head_dim) : 1.0f;
  size_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    VF values = load_kv<kType>(row, d);
    if constexpr (kType == KvType::i8) values = hn::Mul(values, hn::Set(F32(), scale));
    hn::StoreU(values, F32(), out + d);
  }
  if (d == padded_dim) return;
  std::fill(out + d, out + padded_dim, 0.0f);
  for (; d < head_dim; ++d) out[d] = load_one<kType>(row, d) * scale;
}

// out [columns, kTileKeys] = in [kTileKeys, columns] transposed, by squares of kLanes that stay in registers'
// reach.
inline void transpose_keys(float* out, const float* in, size_t columns) {
  constexpr size_t kSquare = std::min<size_t>(kLanes, 8);
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
      VF r[4];
      for (size_t i = 0; i < 4; ++i) r[i] = hn::LoadU(F32(), in + (k + i) * columns + c);
      const auto store = [&](size_t column, VF even, VF odd) HWY_ATTR {
        float* to = out + (c + column) * kTileKeys + k;
        hn::StoreU(hn::InterleaveLower(F32(), even, odd), F32(), to);
        hn::StoreU(hn::InterleaveUpper(F32(), even, odd), F32(), to + kTileKeys);
      };
      store(0, hn::InterleaveLower(F32(), r[0], r[2]), hn::InterleaveLower(F32(), r[1], r[3]));
      store(2, hn::InterleaveUpper(F32(), r[0], r[2]), hn::InterleaveUpper(F32(), r[1], r[3]));
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
// The exponentials of a row are relative to its largest score when that was last looked for. A larger one is
// no reason to look again until it is e^8 times as large: sums of such numerators lose nothing in fp32, and
// one comparison stands in for a horizontal maximum and for scaling the row's outputs.
inline constexpr float kTopSlack = 8.0f;

// Makes `top` what the row's exponentials are relative to.
inline void raise_top(const AttentionTile& tile, size_t row, float top) {
  const VF shrink = hn::Set(F32(), fast_exp(tile.top[row] - top));
  const auto scale = [&](float* values)
                         HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(F32(), values), shrink), F32(), values); };
  scale(tile.total + row * kLanes);
  float* out = tile.out + row * tile.padded_dim;
  for (size_t d = 0; d < tile.padded_dim; d += kLanes) scale(out + d);
  tile.top[row] = top;
}

// One row of scores, the first kVectors * kLanes of which are in use: e^(score - top) in place, 0 from
// `visible` on; adds them to the row's running sum. visible is not 0.
template <size_t kVectors>
HWY_INLINE void softmax_row(const AttentionTile& tile, float* scores, size_t row, size_t visible) {
  VF v[kVectors];
  for (size_t i = 0; i < kVectors; ++i) v[i] = hn::LoadU(F32(), scores + i * kLanes);
  const bool whole = visible >= kVectors * kLanes;
  if (!whole) {
    for (size_t i = 0; i < kVectors; ++i) {
      const size_t seen = std::min(kLanes, visible - std::min(visible, i * kLanes));
      v[i] = hn::IfThenElse(hn::FirstN(F32(), seen), v[i], hn::Set(F32(), kMasked));
    }
  }
  VF largest = v[0];
  for (size_t i = 1; i < kVectors; ++i) largest = hn::Max(largest, v[i]);
  if (!hn::AllFalse(F32(), hn::Gt(largest, hn::Set(F32(), tile.top[row] + kTopSlack)))) {
    raise_top(tile, row, hn::GetLane(hn::MaxOfLanes(F32(), largest)));
  }
  const VF top = hn::Set(F32(), tile.top[row]);
  VF sum = hn::LoadU(F32(), tile.total + row * kLanes);
  for (size_t i = 0; i < kVectors; ++i) {
    VF e = exp_of(hn::Sub(v[i], top));
    if (!whole) {
      const size_t seen = std::min(kLanes, visible - std::min(visible, i * kLanes));
      e = hn::IfThenElseZero(hn::FirstN(F32(), seen), e);
    }
    hn::StoreU(e, F32(), scores + i * kLanes);
    sum = hn::Add(sum, e);
  }
  hn::StoreU(sum, F32(), tile.total + row * kLanes);
}

// Folds the first kVectors * kLanes keys of the loaded tile into kGemmRows (or fewer) rows. visible [rows]:
// how many of them each row may see, ascending.
template <size_t kVectors>
inline void fold_rows(const AttentionTile& tile, size_t first_row, size_t rows, const size_t* visible) {
  small_gemm({tile.scores, kTileKeys, tile.q + first_row * tile.padded_dim, tile.padded_dim, tile.keys,
              kTileKeys, rows, kVectors * kLanes, tile.padded_dim, false});
  for (size_t r = 0; r < rows; ++r) {
    float* scores = tile.scores + r * kTileKeys;
    if (visible[r] == 0) {
      std::fill_n(scores, kVectors * kLanes, 0.0f);
    } else {
      softmax_row<kVectors>(tile, scores, first_row + r, visible[r]);
    }
  }
  small_gemm({tile.out + first_row * tile.padded_dim, tile.padded_dim, tile.scores, kTileKeys, tile.values,
              tile.padded_dim, rows, tile.padded_dim, std::min(visible[rows - 1], kVectors * kLanes), true});
}

// Scores, masks and folds in one loaded tile: row 0 sees `visible_first` of its keys (0 or less: none), the
// rows of each further query one more.
inline void fold_tile(const AttentionTile& tile, size_t heads_per_group, ptrdiff_t visible_first) {
  for (size_t row = 0; row < tile.rows; row += kGemmRows) {
    const size_t rows = std::min(kGemmRows, tile.rows - row);
    size_t visible[kGemmRows];
    for (size_t r = 0; r < rows; ++r) {
      const auto query = static_cast<ptrdiff_t>((row + r) / heads_per_group);
      visible[r] = static_cast<size_t>(
          std::clamp<ptrdiff_t>(visible_first + query, 0, static_cast<ptrdiff_t>(kTileKeys)));
    }
    // On the diagonal only the vectors that some row sees are worked on.
    const size_t quarters = (visible[rows - 1] * 4 + kTileKeys - 1) / kTileKeys;
    constexpr size_t kQuarter = kTileKeys / 4 / kLanes;
    if (quarters == 4) fold_rows<4 * kQuarter>(tile, row, rows, visible);
    if (quarters == 3) fold_rows<3 * kQuarter>(tile, row, rows, visible);
    if (quarters == 2) fold_rows<2 * kQuarter>(tile, row, rows, visible);
    if (quarters == 1) fold_rows<1 * kQuarter>(tile, row, rows, visible);
  }
}

// Where a row of a block lies in q and out: row q * heads_per_group + h is query q of the block, head h of
// the group.
inline size_t row_at(const AttentionArgs& args, size_t first_query, size_t kv_head, size_t row) {
  const size_t heads_per_group = args.heads / args.kv.kv_heads;
  const size_t query = first_query + row / heads_per_group;
  return (query * args.heads + kv_head * heads_per_group + row % heads_per_group) * args.kv.head_dim;
}

// to [padded_dim] = scale * q [dim], then zeros.
inline void scale_query(float* to, const float* q, float scale, size_t dim, size_t padded_dim) {
  for (size_t d = 0; d < dim; ++d) to[d] = q[d] * scale;
  std::fill(to + dim, to + padded_dim, 0.0f);
}

inline void begin_block(const AttentionTile& tile, const AttentionArgs& args, size_t first_query,
                        size_t kv_head) {
  for (size_t row = 0; row < tile.rows; ++row) {
    scale_query(tile.q + row * tile.padded_dim, args.q + row_at(args, first_query, kv_head, row), args.scale,
                args.kv.head_dim, tile.padded_dim);
  }
  std::fill_n(tile.out, tile.rows * tile.padded_dim, 0.0f);
  std::fill_n(tile.top, tile.rows, kMasked);
  std::fill_n(tile.total, tile.rows * kLanes, 0.0f);
}

inline void end_block(const AttentionTile& tile, const AttentionArgs& args, size_t first_query,
                      size_t kv_head) {
  const size_t dim = args.kv.head_dim;
  for (size_t row = 0; row < tile.rows; ++row) {
    float* out = args.out + row_at(args, first_query, kv_head, row);
    const VF total = hn::LoadU(F32(), tile.total + row * kLanes);
    const float inverse = 1.0f / hn::GetLane(hn::SumOfLanes(F32(), total));
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
  for (size_t base = 0; base < end; base += kTileKeys) {
    load_tile<kType>(tile, args.kv, kv_head, base, std::min(kTileKeys, end - base));
    fold_tile(tile, heads_per_group,
              static_cast<ptrdiff_t>(visible_first + 1) - static_cast<ptrdiff_t>(base));
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
