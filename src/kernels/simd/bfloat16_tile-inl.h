#if defined(KEYSIEVE_SIMD_BFLOAT16_TILE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KEYSIEVE_SIMD_BFLOAT16_TILE_INL_H
#undef KEYSIEVE_SIMD_BFLOAT16_TILE_INL_H
#else
#define KEYSIEVE_SIMD_BFLOAT16_TILE_INL_H
#endif

#include <algorithm>
#include <cstdint>

#include "kernels/simd/bfloat16_rows-inl.h"

// Attention of a block of queries that read the same keys, with products in bfloat16 and sums in fp32
// (vdpbf16ps: 32 multiply-adds an instruction where fp32 has 16). Rounding to bfloat16's 8 bits moves a
// product by 0.1% to 0.2%, at random, which perplexity does not show (docs/decisions/0022-bfloat16.md).
//
// The 16 lanes of a vector are 16 rows of queries, so a key's values are broadcast from memory as they lie,
// nothing is transposed, and the softmax needs no sums across lanes. Keys are taken 64 at a time and folded
// into a running softmax (FlashAttention's online form, arXiv 2205.14135). A row's result depends neither on
// the rows beside it nor on how far the block reads.
#if HWY_TARGET == HWY_AVX3_DL
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
static_assert(true, "for the semicolon");
namespace keysieve::simd::HWY_NAMESPACE {

inline constexpr size_t kRowLanes = 16;

// The memory one worker needs for a block. Row q * heads per group + h is query q of the block, head h of the
// group; 16 rows are a row group.
struct PairTile {
  uint32_t* q;        // [row_groups, padded_dim / 2, 16] pairs of dimensions, scaled to powers of two
  uint32_t* keys;     // [kTileKeys, padded_dim / 2] pairs of dimensions
  uint32_t* values;   // [kTileKeys / 2, padded_dim] pairs of keys
  uint32_t* weights;  // [kTileKeys / 2, 16] pairs of keys
  uint32_t* visible;  // [row_groups, 16] how many keys of the block's list each row reads
  float* scores;      // [2, kTileKeys, 16] of two row groups at once
  float* out;         // [row_groups, 16, padded_dim]
  float* top;         // [row_groups, 16] what the exponentials are relative to, as a power of two
  float* total;       // [row_groups, 16] running sums
  float* origin;      // [padded_dim] the key that all are rounded less
  size_t rows;
  size_t row_groups;
  size_t padded_dim;  // head_dim rounded up to 32

  size_t pairs() const { return padded_dim / kPair; }
  size_t rows_of(size_t group) const { return std::min(kRowLanes, rows - group * kRowLanes); }
};

inline PairTile carve_pair_tile(KernelScratch& scratch, int worker, size_t rows, size_t head_dim) {
  PairTile tile{};
  tile.rows = rows;
  tile.row_groups = (rows + kRowLanes - 1) / kRowLanes;
  tile.padded_dim = pad_dim<0>(head_dim);
  const size_t lanes = tile.row_groups * kRowLanes;
  const size_t words = lanes * tile.pairs() + kTileKeys * tile.pairs() + kTileKeys / kPair * tile.padded_dim +
                       kTileKeys / kPair * kRowLanes + lanes + 2 * kTileKeys * kRowLanes +
                       lanes * tile.padded_dim + 2 * lanes + tile.padded_dim;
  auto* next = reinterpret_cast<uint32_t*>(worker_scratch(scratch, worker, words * sizeof(uint32_t)));
  const auto take = [&next](size_t count) {  // multiples of 16 words: all blocks begin on a cache line
    uint32_t* block = next;
    next += count;
    return block;
  };
  tile.q = take(lanes * tile.pairs());
  tile.keys = take(kTileKeys * tile.pairs());
  tile.values = take(kTileKeys / kPair * tile.padded_dim);
  tile.weights = take(kTileKeys / kPair * kRowLanes);
  tile.visible = take(lanes);
  tile.scores = reinterpret_cast<float*>(take(2 * kTileKeys * kRowLanes));
  tile.out = reinterpret_cast<float*>(take(lanes * tile.padded_dim));
  tile.top = reinterpret_cast<float*>(take(lanes));
  tile.total = reinterpret_cast<float*>(take(lanes));
  tile.origin = reinterpret_cast<float*>(take(tile.padded_dim));
  return tile;
}

// Rounds the `count` rows from place `first` of the block's list on into the tile; the rest are zeros.
template <KvType kType, size_t kDim>
inline void load_rows(const PairTile& tile, const RowList& from, size_t first, size_t count) {
  round_rows<kType, kDim>(tile.keys, tile.values, from, tile.origin, first, count);
  std::fill(tile.keys + count * tile.pairs(), tile.keys + kTileKeys * tile.pairs(), 0u);
  std::fill(tile.values + (count + 1) / kPair * tile.padded_dim,
            tile.values + kTileKeys / kPair * tile.padded_dim, 0u);
}

// Scores of all keys of the tile for kGroups row groups from `group` on, 16 sums at a time.
template <size_t kGroups>
HWY_INLINE void score_tile(const PairTile& tile, size_t group, RowsAhead& ahead) {
  constexpr size_t kKeys = 16 / kGroups;
  const size_t pairs = tile.pairs();
  const uint32_t* q = tile.q + group * pairs * kRowLanes;
  for (size_t first = 0; first < kTileKeys; first += kKeys) {
    __m512 sums[kKeys][kGroups];
    for (auto& key : sums) std::fill(key, key + kGroups, _mm512_setzero_ps());
    ahead.step();
    const uint32_t* keys = tile.keys + first * pairs;
    for (size_t p = 0; p < pairs; ++p) {
      __m512bh rows[kGroups];
      for (size_t g = 0; g < kGroups; ++g) {
        rows[g] = (__m512bh)_mm512_load_si512(q + (g * pairs + p) * kRowLanes);
      }
      for (size_t k = 0; k < kKeys; ++k) {
        const auto key = (__m512bh)_mm512_set1_epi32(static_cast<int>(keys[k * pairs + p]));
        for (size_t g = 0; g < kGroups; ++g) sums[k][g] = _mm512_dpbf16_ps(sums[k][g], rows[g], key);
      }
    }
    for (size_t k = 0; k < kKeys; ++k) {
      for (size_t g = 0; g < kGroups; ++g) {
        _mm512_store_ps(tile.scores + (g * kTileKeys + first + k) * kRowLanes, sums[k][g]);
      }
    }
  }
}

// 2^x for x <= kTopSlack: 2^(x - floor(x)) by a cubic that is exact at 0 and 1 and off by at most 1.2e-4
// between, a sixteenth of a step of the bfloat16 it is rounded to.
HWY_INLINE __m512 power_of_two(__m512 x) {
  constexpr int kFractionAbove = 0x09;  // x - floor(x), no exceptions
  const __m512 r = _mm512_reduce_ps(x, kFractionAbove);
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.0775116f), r, _mm512_set1_ps(0.2274884f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.695f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}

// Makes what the exponentials of a row group are relative to its largest scores, where those are above it by
// more than kTopSlack.
inline HWY_NOINLINE void raise_tops(const PairTile& tile, size_t group, __m512 largest, __mmask16 above) {
  float* top = tile.top + group * kRowLanes;
  float* total = tile.total + group * kRowLanes;
  const __m512 before = _mm512_load_ps(top);
  const __m512 shrink = power_of_two(_mm512_sub_ps(before, _mm512_mask_mov_ps(before, above, largest)));
  _mm512_mask_store_ps(top, above, largest);
  _mm512_mask_store_ps(total, above, _mm512_mul_ps(_mm512_load_ps(total), shrink));
  HWY_ALIGN float factors[kRowLanes];
  _mm512_store_ps(factors, shrink);
  for (size_t row = 0; row < tile.rows_of(group); ++row) {
    if ((above >> row & 1) == 0) continue;
    float* out = tile.out + (group * kRowLanes + row) * tile.padded_dim;
    for (size_t d = 0; d < tile.padded_dim; ++d) out[d] *= factors[row];
  }
}

// Scores [kTileKeys, 16] of one row group to weights, which are added to the running sums. base: the first
// key's place in the block's list.
inline void weigh_tile(const PairTile& tile, size_t group, float* scores, size_t base, bool all_visible) {
  constexpr size_t kSums = 4;
  if (!all_visible) {
    const __m512i visible = _mm512_load_si512(tile.visible + group * kRowLanes);
    for (size_t k = 0; k < kTileKeys; ++k) {
      float* at = scores + k * kRowLanes;
      const __mmask16 hidden =
          _mm512_cmple_epu32_mask(visible, _mm512_set1_epi32(static_cast<int>(base + k)));
      _mm512_mask_store_ps(at, hidden, _mm512_set1_ps(kMasked));
    }
  }
  // Groups of kSums keys with loops that unroll, so that sums stay in registers.
  __m512 largest[kSums];
  for (size_t i = 0; i < kSums; ++i) largest[i] = _mm512_load_ps(scores + i * kRowLanes);
  for (size_t k = kSums; k < kTileKeys; k += kSums) {
    for (size_t i = 0; i < kSums; ++i) {
      largest[i] = _mm512_max_ps(largest[i], _mm512_load_ps(scores + (k + i) * kRowLanes));
    }
  }
  const __m512 most =
      _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3]));
  const float* tops = tile.top + group * kRowLanes;
  const __m512 limit = _mm512_add_ps(_mm512_load_ps(tops), _mm512_set1_ps(kTopSlack));
  const __mmask16 above = _mm512_cmp_ps_mask(most, limit, _CMP_GT_OQ);
  if (above != 0) raise_tops(tile, group, most, above);
  const __m512 top = _mm512_load_ps(tops);
  __m512 sums[kSums];
  std::fill(sums, sums + kSums, _mm512_setzero_ps());
  for (size_t k = 0; k < kTileKeys; k += kSums) {
    __m512 weights[kSums];
    for (size_t i = 0; i < kSums; ++i) {
      weights[i] = power_of_two(_mm512_sub_ps(_mm512_load_ps(scores + (k + i) * kRowLanes), top));
      sums[i] = _mm512_add_ps(sums[i], weights[i]);
    }
    for (size_t i = 0; i < kSums; i += kPair) {
      _mm512_store_si512(tile.weights + (k + i) / kPair * kRowLanes, pairs_of(weights[i], weights[i + 1]));
    }
  }
  float* total = tile.total + group * kRowLanes;
  const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
  _mm512_store_ps(total, _mm512_add_ps(_mm512_load_ps(total), sum));
}

// out [kRows, padded_dim] += weights x values at kVectors * 16 columns from `column` on.
template <size_t kRows, size_t kVectors>
HWY_INLINE void add_values_tile(const PairTile& tile, float* out, const uint32_t* weights, size_t column) {
  __m512 sums[kRows][kVectors];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v)
      sums[r][v] = _mm512_load_ps(out + r * tile.padded_dim + column + v * 16);
  }
  for (size_t j = 0; j < kTileKeys / kPair; ++j) {
    __m512bh values[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      values[v] = (__m512bh)_mm512_load_si512(tile.values + j * tile.padded_dim + column + v * 16);
    }
    for (size_t r = 0; r < kRows; ++r) {
      const auto weight = (__m512bh)_mm512_set1_epi32(static_cast<int>(weights[j * kRowLanes + r]));
      for (size_t v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], weight, values[v]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v)
      _mm512_store_ps(out + r * tile.padded_dim + column + v * 16, sums[r][v]);
  }
}

template <size_t kRows>
inline void add_value_rows(const PairTile& tile, float* out, const uint32_t* weights) {
  size_t column = 0;
  for (; column + 64 <= tile.padded_dim; column += 64) add_values_tile<kRows, 4>(tile, out, weights, column);
  if (column < tile.padded_dim) add_values_tile<kRows, 2>(tile, out, weights, column);
}

// 6 rows x 4 vectors of sums, the values and a weight fill 29 of the 32 registers.
inline void add_values_of_group(const PairTile& tile, size_t group, RowsAhead& ahead) {
  const size_t rows = tile.rows_of(group);
  float* out = tile.out + group * kRowLanes * tile.padded_dim;
  for (size_t row = 0; row < rows;) {
    ahead.step();
    const size_t left = rows - row;
    float* to = out + row * tile.padded_dim;
    const uint32_t* weights = tile.weights + row;
    const size_t now = left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    if (now == 6) add_value_rows<6>(tile, to, weights);
    if (now == 4) add_value_rows<4>(tile, to, weights);
    if (now == 2) add_value_rows<2>(tile, to, weights);
    if (now == 1) add_value_rows<1>(tile, to, weights);
    row += now;
  }
}

// Queries of the block into the tile, in powers of two: scores are then times scale times log2(e).
inline void begin_pair_block(const PairTile& tile, const AttentionArgs& args, const RowList& keys,
                             size_t first_query) {
  constexpr float kLog2E = 1.44269504f;
  const size_t heads_per_group = args.heads / args.kv.kv_heads;
  const size_t dim = args.kv.head_dim;
  const size_t lanes = tile.row_groups * kRowLanes;
  const __m512 factor = _mm512_set1_ps(args.scale * kLog2E);
  for (size_t row = 0; row < lanes; ++row) {
    // Lanes past the last row repeat it.
    const size_t live = std::min(row, tile.rows - 1);
    const size_t query = first_query + live / heads_per_group;
    tile.visible[row] = static_cast<uint32_t>(
        args.selection == nullptr
            ? args.first_visible + query + 1
            : args.selection->count(query, args.selection->groups == 1 ? 0 : keys.kv_head));
    const float* q = args.q + row_at(args, first_query, keys.kv_head, live);
    uint32_t* to = tile.q + row / kRowLanes * tile.pairs() * kRowLanes + row % kRowLanes;
    for (size_t d = 0; d < tile.padded_dim; d += 32) {
      const __m512 low = load_first(q + std::min(d, dim), dim - std::min(d, dim)).raw;
      const __m512 high = load_first(q + std::min(d + 16, dim), dim - std::min(d + 16, dim)).raw;
      alignas(64) uint32_t pairs[kRowLanes];
      _mm512_store_si512(pairs, rounded(_mm512_mul_ps(low, factor), _mm512_mul_ps(high, factor)));
      for (size_t p = 0; p < kRowLanes; ++p) to[(d / kPair + p) * kRowLanes] = pairs[p];
    }
  }
  std::fill_n(tile.out, lanes * tile.padded_dim, 0.0f);
  std::fill_n(tile.top, lanes, kMasked);
  std::fill_n(tile.total, lanes, 0.0f);
}

inline void end_pair_block(const PairTile& tile, const AttentionArgs& args, size_t kv_head,
                           size_t first_query) {
  for (size_t row = 0; row < tile.rows; ++row) {
    float* out = args.out + row_at(args, first_query, kv_head, row);
    const float* sums = tile.out + row * tile.padded_dim;
    const float inverse = 1.0f / tile.total[row];
    for (size_t d = 0; d < args.kv.head_dim; ++d) out[d] = sums[d] * inverse;
  }
}

// Folds one loaded tile into kGroups row groups.
template <size_t kGroups>
inline void fold_groups(const PairTile& tile, size_t group, size_t base, RowsAhead& ahead) {
  score_tile<kGroups>(tile, group, ahead);
  for (size_t g = 0; g < kGroups; ++g) {
    const bool all_visible = tile.visible[(group + g) * kRowLanes] >= base + kTileKeys;
    weigh_tile(tile, group + g, tile.scores + g * kTileKeys * kRowLanes, base, all_visible);
    add_values_of_group(tile, group + g, ahead);
  }
}

inline constexpr size_t kStepsPerGroup = 6;  // 4 stretches of scores, 2 or 3 of values

// Attention of queries first_query .. first_query + queries - 1, each reading the beginning of one list of
// keys.
template <KvType kType, size_t kDim>
HWY_NOINLINE void attend_block(const AttentionArgs& args, const RowList& keys, size_t first_query,
                               size_t queries, KernelScratch& scratch, int worker) {
  const size_t rows = queries * (args.heads / args.kv.kv_heads);
  const PairTile tile = carve_pair_tile(scratch, worker, rows, args.kv.head_dim);
  RowsAhead(keys, 0, std::min(kTileKeys, keys.count), 1).step();
  begin_pair_block(tile, args, keys, first_query);
  load_origin<kType, kDim>(tile.origin, args.kv, keys.kv_head, keys.origin());
  for (size_t base = 0; base < keys.count; base += kTileKeys) {
    const size_t end = std::min(base + kTileKeys, keys.count);
    load_rows<kType, kDim>(tile, keys, base, end - base);
    RowsAhead ahead(keys, end, std::min(kTileKeys, keys.count - end), kStepsPerGroup * tile.row_groups);
    // Rows read ever more keys: those of the first groups may end before this tile.
    size_t group = 0;
    while (tile.visible[group * kRowLanes + kRowLanes - 1] <= base) ++group;
    for (; group + 2 <= tile.row_groups; group += 2) fold_groups<2>(tile, group, base, ahead);
    if (group < tile.row_groups) fold_groups<1>(tile, group, base, ahead);
  }
  end_pair_block(tile, args, keys.kv_head, first_query);
}

}  // namespace keysieve::simd::HWY_NAMESPACE
HWY_POP_ATTRIBUTES
static_assert(true, "for the semicolon");
#endif  // HWY_AVX3_DL
#endif  // KEYSIEVE_SIMD_BFLOAT16_TILE_INL_H
