// Products of float32 on AMX, whose tiles multiply pairs of bfloat16 and add in float32.
//
// A float32 is the sum of three bfloat16, its planes: 24 bits of mantissa in three times 8. Of the nine products of two
// numbers' planes the six largest give the product to 2^-24 or so, as a float32 product has it, where the planes are no
// denormals, which AMX takes for 0: of numbers below 2^-109 the third plane is lost, below 2^-117 the second. With two
// planes three products give 2^-16, with one the one of bfloat16: what torch.set_float32_matmul_precision calls "high"
// and "medium".
//
// A tile holds 16 rows of 32 bfloat16 of the left side; of the right side 32 rows of 16 columns, pairs of rows beside
// one another, so that a tile of either is the other's with its 32-bit words transposed. Infinities, NaN and what
// rounds to them have no such sum: rows that hold one are multiplied in plain float32, so that they stay what they are.
#pragma once

#include <immintrin.h>

#include <cstdlib>
#include <new>

#include "columns.h"
#include "core.h"
#include "vec.h"

namespace g2lstm {
namespace {

static_assert(kPlaneRowsAtOnce % (2 * kAmxRows) == 0, "pairs of tiles");

// GCC's tile instructions do not say that they read and write memory.
G2LSTM_INLINE void tiles_and_memory() { asm volatile("" ::: "memory"); }

// A thread's own memory, which grows and is kept.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  std::uint8_t* get(std::size_t size) {
    if (size > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<std::uint8_t*>(std::aligned_alloc(64, (size + 63) / 64 * 64));
      if (data_ == nullptr) throw std::bad_alloc();
      size_ = size;
    }
    return data_;
  }

 private:
  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

// --- into planes ----------------------------------------------------------------------------------------------------

G2LSTM_INLINE __mmask16 lanes_below(std::int64_t n) {
  return n >= 16 ? __mmask16(0xffff) : n > 0 ? static_cast<__mmask16>((1u << n) - 1) : __mmask16(0);
}

// Rows become columns.
G2LSTM_INLINE void transpose(__m512 (&rows)[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m512d a = _mm512_castps_pd(t[4 * i + j]), b = _mm512_castps_pd(t[4 * i + 2 + j]);
      rows[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      rows[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0x88);
    t[4 + j] = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0xdd);
    t[8 + j] = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0x88);
    t[12 + j] = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0xdd);
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    rows[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
    rows[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
  }
}

// out (16 a_blocks, 16 b_blocks): element (a, b) from data[a stride_a + b stride_b], 0 beyond size_a or size_b.
template <int kABlocks, int kBBlocks>
G2LSTM_INLINE void load_block(
    const float* data, std::int64_t stride_a, std::int64_t stride_b, std::int64_t size_a, std::int64_t size_b,
    __m512 (&out)[16 * kABlocks][kBBlocks]) {
  if (stride_b == 1) {
    for (int a = 0; a < 16 * kABlocks; ++a) {
      for (int b = 0; b < kBBlocks; ++b) {
        const __mmask16 lanes = a < size_a ? lanes_below(size_b - 16 * b) : __mmask16(0);
        out[a][b] = _mm512_maskz_loadu_ps(lanes, data + (lanes == 0 ? 0 : a * stride_a + 16 * b));
      }
    }
    return;
  }
  const __m512i step = _mm512_mullo_epi32(
      _mm512_set1_epi32(static_cast<int>(stride_a)),
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  for (int i = 0; i < kABlocks; ++i) {
    const __mmask16 lanes = lanes_below(size_a - 16 * i);
    for (int j = 0; j < kBBlocks; ++j) {
      __m512 rows[16];
      for (int b = 0; b < 16; ++b) {
        const bool none = lanes == 0 || 16 * j + b >= size_b;
        const float* const from = data + (none ? 0 : 16 * i * stride_a + (16 * j + b) * stride_b);
        rows[b] = none            ? _mm512_setzero_ps()
                  : stride_a == 1 ? _mm512_maskz_loadu_ps(lanes, from)
                                  : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, step, from, 4);
      }
      transpose(rows);
      for (int a = 0; a < 16; ++a) out[16 * i + a][j] = rows[a];
    }
  }
}

// What is too large for a bfloat16, infinite or NaN
G2LSTM_INLINE __mmask16 odd_lanes(__m512 x) {
  const __m512i size = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
  return _mm512_cmpge_epu32_mask(size, _mm512_set1_epi32(0x7f7f8000));
}

G2LSTM_INLINE __m512 widened(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// The next plane of 32 numbers, those of `low` first; they keep what it leaves.
G2LSTM_INLINE __m512i next_plane(__m512& low, __m512& high) {
  const __m512i plane = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  low = _mm512_sub_ps(low, widened(_mm512_castsi512_si256(plane)));
  high = _mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64(plane, 1)));
  return plane;
}

G2LSTM_INLINE void store_planes(std::uint16_t* to, int planes, __m512 low, __m512 high) {
  for (int plane = 0; plane < planes; ++plane) _mm512_storeu_si512(to + plane * kAmxTile, next_plane(low, high));
}

// Rows [row, row + 16) of the left side, K from k on: n_tiles tiles of each plane, at to. Whether some number is odd.
inline bool split_row_tile(
    const Weights<float>& left, std::int64_t row, std::int64_t n_rows, std::int64_t k, std::int64_t n_tiles,
    int planes, std::uint16_t* to) {
  unsigned odd = 0;
  for (std::int64_t tile = 0; tile < n_tiles; ++tile, k += kAmxK, to += planes * kAmxTile) {
    const float* const from = left.data + row * left.stride_n + k * left.stride_k;
    if (left.stride_k == 1 && n_rows - row >= kAmxRows && left.size_k - k >= kAmxK) {
      for (int r = 0; r < 16; ++r) {
        const __m512 low = _mm512_loadu_ps(from + r * left.stride_n);
        const __m512 high = _mm512_loadu_ps(from + r * left.stride_n + 16);
        odd |= odd_lanes(low) | odd_lanes(high);
        store_planes(to + r * kAmxK, planes, low, high);
      }
      continue;
    }
    __m512 block[16][2];
    load_block<1, 2>(from, left.stride_n, left.stride_k, n_rows - row, left.size_k - k, block);
    for (int r = 0; r < 16; ++r) {
      odd |= odd_lanes(block[r][0]) | odd_lanes(block[r][1]);
      store_planes(to + r * kAmxK, planes, block[r][0], block[r][1]);
    }
  }
  return odd != 0;
}

inline void split_left(const Product<float>& product, std::int64_t tile_begin, std::int64_t tile_end) {
  for (std::int64_t tile = tile_begin; tile < tile_end; ++tile) {
    std::uint16_t* to = product.left + tile * product.left_k_tiles * product.planes * kAmxTile;
    bool odd = false;
    for (int i = 0; i < product.count; ++i) {
      const Operand<float>& operand = product.operands[i];
      const std::int64_t n_tiles = tiles_of_k(operand.size);
      odd |= split_row_tile(
          {operand.data, operand.stride_k, operand.stride, operand.size}, tile * kAmxRows, product.rows, 0, n_tiles,
          product.planes, to);
      to += n_tiles * product.planes * kAmxTile;
    }
    product.odd[tile] = odd;
  }
}

// The planes of two rows of the right side, number by number beside one another.
G2LSTM_INLINE void store_pairs(std::uint16_t* to, int planes, __m512 first, __m512 second) {
  for (int plane = 0; plane < planes; ++plane) {
    const __m512i both = next_plane(first, second);
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
    _mm512_storeu_si512(to + plane * kAmxTile, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

// Columns of the right side from `column` on, K from k on: n_tiles tiles of each plane, at to. Whether some number is
// odd.
inline bool split_columns(
    const Weights<float>& right, std::int64_t column, int width, std::int64_t k, std::int64_t n_tiles, int planes,
    std::uint16_t* to) {
  unsigned odd = 0;
  for (std::int64_t tile = 0; tile < n_tiles; ++tile, k += kAmxK, to += planes * kAmxTile) {
    const float* const from = right.data + k * right.stride_k + column * right.stride_n;
    if (right.stride_n == 1 && width == kAmxRows && right.size_k - k >= kAmxK) {
      for (int pair = 0; pair < 16; ++pair) {
        const __m512 first = _mm512_loadu_ps(from + 2 * pair * right.stride_k);
        const __m512 second = _mm512_loadu_ps(from + (2 * pair + 1) * right.stride_k);
        odd |= odd_lanes(first) | odd_lanes(second);
        store_pairs(to + pair * kAmxK, planes, first, second);
      }
      continue;
    }
    __m512 rows[kAmxK][1];
    load_block<2, 1>(from, right.stride_k, right.stride_n, right.size_k - k, width, rows);
    for (int pair = 0; pair < 16; ++pair) {
      odd |= odd_lanes(rows[2 * pair][0]) | odd_lanes(rows[2 * pair + 1][0]);
      store_pairs(to + pair * kAmxK, planes, rows[2 * pair][0], rows[2 * pair + 1][0]);
    }
  }
  return odd != 0;
}

inline bool split_right(
    const Weights<float>& weights, const Columns& columns, std::int64_t k_begin, std::int64_t k_tiles, int planes,
    std::uint16_t* tiles, std::int64_t block_begin, std::int64_t block_end) {
  const int vectors = columns.groups == 1 ? 2 : 4;
  bool odd = false;
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    for (int v = 0; v < vectors; ++v) {
      const VectorColumns place = vector_columns<float>(columns, block, v);
      std::uint16_t* const to = tiles + ((block * vectors + v) * k_tiles + k_begin) * planes * kAmxTile;
      odd |= split_columns(weights, place.begin, place.width, 0, tiles_of_k(weights.size_k), planes, to);
    }
  }
  return !odd;
}

// --- the products ---------------------------------------------------------------------------------------------------

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t column_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int tile, std::int64_t n_rows, std::int64_t bytes) {
    if (n_rows == 0 || bytes == 0) return;
    rows[tile] = static_cast<std::uint8_t>(n_rows);
    column_bytes[tile] = static_cast<std::uint16_t>(bytes);
  }
};

G2LSTM_INLINE void load_config(const TileConfig& config) {
  tiles_and_memory();
  _tile_loadconfig(&config);
}

// Tiles 0 to 3 hold the sums of two row tiles by two vectors of columns, 4 and 5 the left side, 6 and 7 the right.
G2LSTM_INLINE void configure(std::int64_t n_rows, const int (&width)[2]) {
  TileConfig config;
  for (int i = 0; i < 2; ++i) {
    const std::int64_t left = n_rows - i * kAmxRows;
    const std::int64_t own = left >= kAmxRows ? kAmxRows : left > 0 ? left : 0;
    for (int j = 0; j < 2; ++j) config.set(2 * i + j, own, width[j] * 4);
    config.set(4 + i, own, 64);
    config.set(6 + i, kAmxRows, width[i] * 4);
  }
  load_config(config);
}

// One panel: two vectors of columns. Row tiles of `left` and tiles of `right` lie k_stride tiles of K apart.
struct Panel {
  const std::uint16_t* left;
  const std::uint16_t* right[2];
  std::int64_t left_stride;  // between row tiles
  std::int64_t k_tiles;
};

#define G2LSTM_LOAD_SUM(tile, i, j)                                                                        \
  if (target.start[j] == nullptr) {                                                                        \
    _tile_zero(tile);                                                                                      \
  } else {                                                                                                 \
    _tile_loadd(                                                                                           \
        tile, target.start[j] + (row + i * kAmxRows) * target.start_stride, target.start_stride * 4);     \
  }
#define G2LSTM_STORE_SUM(tile, i, j) \
  _tile_stored(tile, target.data[j] + (row + i * kAmxRows) * target.stride, target.stride * 4);
#define G2LSTM_LOAD_LEFT(plane)                                       \
  _tile_loadd(4, left0 + plane * kAmxTile, 64);                          \
  if (kTwoRows) _tile_loadd(5, left1 + plane * kAmxTile, 64);
#define G2LSTM_LOAD_RIGHT(plane)                                      \
  _tile_loadd(6, right0 + plane * kAmxTile, 64);                         \
  if (kTwoColumns) _tile_loadd(7, right1 + plane * kAmxTile, 64);
#define G2LSTM_MULTIPLY                                               \
  _tile_dpbf16ps(0, 4, 6);                                            \
  if (kTwoColumns) _tile_dpbf16ps(1, 4, 7);                           \
  if (kTwoRows) _tile_dpbf16ps(2, 5, 6);                              \
  if (kTwoRows && kTwoColumns) _tile_dpbf16ps(3, 5, 7);

// Rows [row, row + 16 or 32) of the target; the smaller products first.
template <int kPlanes, bool kTwoRows, bool kTwoColumns>
G2LSTM_INLINE void multiply_tiles(
    const Panel& panel, const std::uint16_t* left0, const Target<float>& target, std::int64_t row) {
  const std::uint16_t* left1 = left0 + panel.left_stride;
  const std::uint16_t *right0 = panel.right[0], *right1 = panel.right[1];
  G2LSTM_LOAD_SUM(0, 0, 0)
  if (kTwoColumns) { G2LSTM_LOAD_SUM(1, 0, 1) }
  if (kTwoRows) { G2LSTM_LOAD_SUM(2, 1, 0) }
  if (kTwoRows && kTwoColumns) { G2LSTM_LOAD_SUM(3, 1, 1) }
  for (std::int64_t k = 0; k < panel.k_tiles; ++k) {
    if (kPlanes == 3) {
      G2LSTM_LOAD_LEFT(2)
      G2LSTM_LOAD_RIGHT(0)
      G2LSTM_MULTIPLY
    }
    if (kPlanes >= 2) {
      G2LSTM_LOAD_LEFT(1)
      if (kPlanes == 2) { G2LSTM_LOAD_RIGHT(0) }
      G2LSTM_MULTIPLY
      G2LSTM_LOAD_RIGHT(1)
      if (kPlanes == 3) { G2LSTM_MULTIPLY }
      G2LSTM_LOAD_LEFT(0)
      G2LSTM_MULTIPLY
    }
    if (kPlanes == 3) {
      G2LSTM_LOAD_RIGHT(2)
      G2LSTM_MULTIPLY
    }
    if (kPlanes == 1) { G2LSTM_LOAD_LEFT(0) }
    G2LSTM_LOAD_RIGHT(0)
    G2LSTM_MULTIPLY
    left0 += kPlanes * kAmxTile;
    left1 += kPlanes * kAmxTile;
    right0 += kPlanes * kAmxTile;
    right1 += kPlanes * kAmxTile;
  }
  G2LSTM_STORE_SUM(0, 0, 0)
  if (kTwoColumns) { G2LSTM_STORE_SUM(1, 0, 1) }
  if (kTwoRows) { G2LSTM_STORE_SUM(2, 1, 0) }
  if (kTwoRows && kTwoColumns) { G2LSTM_STORE_SUM(3, 1, 1) }
}

#undef G2LSTM_LOAD_SUM
#undef G2LSTM_STORE_SUM
#undef G2LSTM_LOAD_LEFT
#undef G2LSTM_LOAD_RIGHT
#undef G2LSTM_MULTIPLY

// Whether the pair of row tiles that begins at `row` holds an odd row.
G2LSTM_INLINE bool is_odd_pair(const bool* odd, std::int64_t row, std::int64_t row_end) {
  return odd[row / kAmxRows] || (row_end - row > kAmxRows && odd[row / kAmxRows + 1]);
}

template <int kPlanes, bool kTwoColumns>
void multiply_row_tiles(
    const Panel& panel, const Target<float>& target, std::int64_t row, std::int64_t row_end, const bool* odd) {
  const std::uint16_t* left = panel.left;
  std::int64_t configured = 0;
  for (; row < row_end; row += 2 * kAmxRows, left += 2 * panel.left_stride) {
    const std::int64_t n_rows = row_end - row < 2 * kAmxRows ? row_end - row : 2 * kAmxRows;
    const bool two = n_rows > kAmxRows;
    if (odd != nullptr && is_odd_pair(odd, row, row_end)) continue;
    if (n_rows != configured) configure(configured = n_rows, target.width);
    if (two) {
      multiply_tiles<kPlanes, true, kTwoColumns>(panel, left, target, row);
    } else {
      multiply_tiles<kPlanes, false, kTwoColumns>(panel, left, target, row);
    }
  }
}

// Rows [row, row_end) of a panel, but pairs of row tiles that hold an odd row; `left` begins with those of `row`.
inline void multiply_panel_in_planes(
    int planes, const Panel& panel, const Target<float>& target, std::int64_t row, std::int64_t row_end,
    const bool* odd) {
  const bool two = target.width[1] > 0;
  switch (planes) {
    case 1:
      return (two ? multiply_row_tiles<1, true> : multiply_row_tiles<1, false>)(panel, target, row, row_end, odd);
    case 2:
      return (two ? multiply_row_tiles<2, true> : multiply_row_tiles<2, false>)(panel, target, row, row_end, odd);
    default:
      return (two ? multiply_row_tiles<3, true> : multiply_row_tiles<3, false>)(panel, target, row, row_end, odd);
  }
}

// The same in plain float32, for rows [row, row_end) of a vector of columns that begins at `column`.
inline void multiply_odd_rows(
    const Product<float>& product, const Target<float>& target, int v, std::int64_t column, std::int64_t row,
    std::int64_t row_end) {
  const int width = target.width[v];
  for (; row < row_end; ++row) {
    const float* const start = target.start[v];
    float sums[kAmxRows] = {};
    for (int n = 0; n < width && start != nullptr; ++n) sums[n] = start[row * target.start_stride + n];
    for (int i = 0; i < product.count; ++i) {
      const Operand<float>& operand = product.operands[i];
      const Weights<float>& weights = product.weights[i];
      for (std::int64_t k = 0; k < operand.size; ++k) {
        const float left = operand.data[row * operand.stride + k];
        const float* const right = weights.data + k * weights.stride_k + column * weights.stride_n;
        for (int n = 0; n < width; ++n) sums[n] += left * right[n * weights.stride_n];
      }
    }
    for (int n = 0; n < width; ++n) target.data[v][row * target.stride + n] = sums[n];
  }
}

// A block of a product whose sides are in planes; rows begin at 0.
inline void multiply_block_in_planes(
    const Product<float>& product, const Columns& columns, std::int64_t block, float* out, std::int64_t stride,
    const float* start, std::int64_t start_stride, std::int64_t row_end) {
  const int vectors = columns.groups == 1 ? 2 : 4;
  std::int64_t k_tiles = 0;
  for (int i = 0; i < product.count; ++i) k_tiles += tiles_of_k(product.operands[i].size);
  for (int v = 0; v < vectors; v += 2) {
    Target<float> target;
    Panel panel{product.left, {}, product.left_k_tiles * product.planes * kAmxTile, k_tiles};
    std::int64_t column[2];
    target.stride = stride;
    target.start_stride = start_stride;
    for (int i = 0; i < 2; ++i) {
      const VectorColumns place = vector_columns<float>(columns, block, v + i);
      panel.right[i] = product.right + (block * vectors + v + i) * product.right_k_tiles * product.planes * kAmxTile;
      column[i] = place.begin;
      target.data[i] = out + place.begin;
      target.start[i] = start == nullptr ? nullptr : start + place.begin;
      target.width[i] = place.width;
    }
    multiply_panel_in_planes(product.planes, panel, target, 0, row_end, product.odd);
    for (std::int64_t row = 0; row < row_end; row += 2 * kAmxRows) {
      if (!is_odd_pair(product.odd, row, row_end)) continue;
      const std::int64_t until = row + 2 * kAmxRows < row_end ? row + 2 * kAmxRows : row_end;
      for (int i = 0; i < 2; ++i) multiply_odd_rows(product, target, i, column[i], row, until);
    }
  }
  _tile_release();
  tiles_and_memory();
}

// Blocks [block_begin, block_end) of columns of rows [row, row_end); the sides' tiles begin with that row and block.
inline void multiply_blocks(
    const MatrixProduct<float>& task, const std::uint16_t* left, std::int64_t row, std::int64_t row_end,
    const std::uint16_t* right, std::int64_t block_begin, std::int64_t block_end) {
  const std::int64_t k_tiles = tiles_of_k(task.left.size_k), stride = k_tiles * task.planes * kAmxTile;
  Target<float> target;
  target.stride = task.stride;
  target.start_stride = task.start_stride;
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    Panel panel{left, {}, stride, k_tiles};
    for (int v = 0; v < 2; ++v) {
      const VectorColumns place = vector_columns<float>({task.columns, 1}, block, v);
      panel.right[v] = right + (2 * (block - block_begin) + v) * stride;
      target.data[v] = task.out + place.begin;
      target.start[v] = task.start == nullptr ? nullptr : task.start + place.begin;
      target.width[v] = place.width;
    }
    multiply_panel_in_planes(task.planes, panel, target, row, row_end, nullptr);
  }
}

// Rows [begin, end), whose numbers are split on the way.
inline bool multiply_rows(
    const MatrixProduct<float>& task, std::int64_t begin, std::int64_t end, std::uint16_t* scratch) {
  const std::int64_t k_tiles = tiles_of_k(task.left.size_k), tile = task.planes * kAmxTile;
  // Tiles of K at a time: where the numbers of a row do not lie together, those of all rows that do.
  const std::int64_t run = task.left.stride_k == 1 ? k_tiles : 1;
  for (std::int64_t row = begin; row < end; row += kPlaneRowsAtOnce) {
    const std::int64_t n_rows = end - row < kPlaneRowsAtOnce ? end - row : kPlaneRowsAtOnce;
    bool odd = false;
    for (std::int64_t k = 0; k < k_tiles; k += run) {
      for (std::int64_t r = 0; r < n_rows; r += kAmxRows) {
        std::uint16_t* const to = scratch + (r / kAmxRows * k_tiles + k) * tile;
        odd |= split_row_tile(task.left, row + r, end, k * kAmxK, run, task.planes, to);
      }
    }
    if (odd) return false;
    multiply_blocks(task, scratch, row, row + n_rows, task.right_tiles, 0, (task.columns + 31) / 32);
  }
  return true;
}

// All rows of blocks [begin, end) of columns, whose numbers are split on the way.
inline bool multiply_columns(
    const MatrixProduct<float>& task, std::int64_t begin, std::int64_t end, std::uint16_t* scratch) {
  constexpr std::int64_t kBlocks = kPlaneRowsAtOnce / 32;
  const std::int64_t k_tiles = tiles_of_k(task.right.size_k);
  for (std::int64_t block = begin; block < end; block += kBlocks) {
    const std::int64_t until = end - block < kBlocks ? end : block + kBlocks;
    bool odd = false;
    for (std::int64_t i = 0; i < 2 * (until - block); ++i) {
      const VectorColumns place = vector_columns<float>({task.columns, 1}, block + i / 2, static_cast<int>(i % 2));
      std::uint16_t* const to = scratch + i * k_tiles * task.planes * kAmxTile;
      odd |= split_columns(task.right, place.begin, place.width, 0, k_tiles, task.planes, to);
    }
    if (odd) return false;
    multiply_blocks(task, task.left_tiles, 0, task.rows, scratch, block, until);
  }
  return true;
}

inline bool multiply_matrices(const MatrixProduct<float>& task, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kPlane = kPlaneRowsAtOnce / kAmxRows * kPlaneTilesAtOnce * kAmxTile;
  static thread_local Scratch memory;
  const auto bytes = static_cast<std::size_t>(task.planes * kPlane) * sizeof(std::uint16_t);
  auto* const scratch = reinterpret_cast<std::uint16_t*>(memory.get(bytes));
  const bool done = task.left_tiles == nullptr ? multiply_rows(task, begin, end, scratch)
                                               : multiply_columns(task, begin, end, scratch);
  _tile_release();
  tiles_and_memory();
  return done;
}

}  // namespace
}  // namespace g2lstm
