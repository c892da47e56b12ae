// float32 as sums of bfloat16, pairs of which AMX and AVX-512 multiply and add in float32.
//
// A float32 is the sum of three bfloat16, its planes: 24 bits of mantissa in three times 8. Of the nine products of two
// numbers' planes the six largest give the product to 2^-24 or so, as a float32 product has it, where the planes are no
// denormals, which these instructions take for 0, in what they read and in their sums: of numbers below 2^-109 the
// third plane is lost, below 2^-117 the second, and products below 2^-105 or so lose digits alike. With two planes three
// products give 2^-16, with one the one of bfloat16: what torch.set_float32_matmul_precision calls "high" and "medium".
//
// A tile holds 16 rows of 32 bfloat16 of the left side; of the right side 32 rows of 16 columns, pairs of rows beside
// one another, so that a tile of either is the other's with its 32-bit words transposed. Infinities, NaN and what
// rounds to them have no such sum: rows that hold one are multiplied in plain float32, so that they stay what they are.
// Sums that overflow do so plane by plane: they may be NaN where float32 has infinity.
#pragma once

#include "columns.h"
#include "transpose.h"

namespace g2lstm {
namespace {

G2LSTM_INLINE __mmask16 lanes_below(std::int64_t n) {
  return n >= 16 ? __mmask16(0xffff) : n > 0 ? static_cast<__mmask16>((1u << n) - 1) : __mmask16(0);
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

// Two vectors of columns of the right side, and the left side.
struct Panel {
  const std::uint16_t* left;
  const std::uint16_t* right[2];
  std::int64_t left_stride;  // numbers from one row tile to the next
  std::int64_t k_tiles;
};

// The next plane of 32 numbers, those of `low` first; they keep what it leaves.
G2LSTM_INLINE __m512i next_plane(__m512& low, __m512& high) {
  const __m512i plane = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  low = _mm512_sub_ps(low, widened(_mm512_castsi512_si256(plane)));
  high = _mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64(plane, 1)));
  return plane;
}

G2LSTM_INLINE void store_planes(std::uint16_t* to, int planes, __m512 low, __m512 high) {
  for (int plane = 0; plane < planes; ++plane) _mm512_storeu_si512(to + plane * kPlaneTile, next_plane(low, high));
}

// Tiles of K to split at a time: all where the numbers of a row or column lie together, else one of each row or column.
G2LSTM_INLINE std::int64_t tiles_in_a_run(std::int64_t stride_k, std::int64_t k_tiles) {
  return stride_k == 1 ? k_tiles : 1;
}

// Rows [row, row + 16) of the left side, K from k on: n_tiles tiles of each plane, at to. Whether some number is odd.
inline bool split_row_tile(
    const Weights<float>& left, std::int64_t row, std::int64_t n_rows, std::int64_t k, std::int64_t n_tiles,
    int planes, std::uint16_t* to) {
  unsigned odd = 0;
  for (std::int64_t tile = 0; tile < n_tiles; ++tile, k += kPlaneK, to += planes * kPlaneTile) {
    const float* const from = left.data + row * left.stride_n + k * left.stride_k;
    if (left.stride_k == 1 && n_rows - row >= kPlaneRows && left.size_k - k >= kPlaneK) {
      for (int r = 0; r < 16; ++r) {
        const __m512 low = _mm512_loadu_ps(from + r * left.stride_n);
        const __m512 high = _mm512_loadu_ps(from + r * left.stride_n + 16);
        odd |= odd_lanes(low) | odd_lanes(high);
        store_planes(to + r * kPlaneK, planes, low, high);
      }
      continue;
    }
    __m512 block[16][2];
    load_block<1, 2>(from, left.stride_n, left.stride_k, n_rows - row, left.size_k - k, block);
    for (int r = 0; r < 16; ++r) {
      odd |= odd_lanes(block[r][0]) | odd_lanes(block[r][1]);
      store_planes(to + r * kPlaneK, planes, block[r][0], block[r][1]);
    }
  }
  return odd != 0;
}

inline void split_left(const Product<float>& product, std::int64_t tile_begin, std::int64_t tile_end) {
  for (std::int64_t tile = tile_begin; tile < tile_end; ++tile) {
    std::uint16_t* to = product.left + tile * product.left_k_tiles * product.planes * kPlaneTile;
    bool odd = false;
    for (int i = 0; i < product.count; ++i) {
      const Operand<float>& operand = product.operands[i];
      const std::int64_t n_tiles = tiles_of_k(operand.size);
      odd |= split_row_tile(
          {operand.data, operand.stride_k, operand.stride, operand.size}, tile * kPlaneRows, product.rows, 0, n_tiles,
          product.planes, to);
      to += n_tiles * product.planes * kPlaneTile;
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
    _mm512_storeu_si512(to + plane * kPlaneTile, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

// Columns of the right side from `column` on, K from k on: n_tiles tiles of each plane, at to. Whether some number is
// odd.
inline bool split_columns(
    const Weights<float>& right, std::int64_t column, int width, std::int64_t k, std::int64_t n_tiles, int planes,
    std::uint16_t* to) {
  unsigned odd = 0;
  for (std::int64_t tile = 0; tile < n_tiles; ++tile, k += kPlaneK, to += planes * kPlaneTile) {
    const float* const from = right.data + k * right.stride_k + column * right.stride_n;
    if (right.stride_n == 1 && width == kPlaneRows && right.size_k - k >= kPlaneK) {
      for (int pair = 0; pair < 16; ++pair) {
        const __m512 first = _mm512_loadu_ps(from + 2 * pair * right.stride_k);
        const __m512 second = _mm512_loadu_ps(from + (2 * pair + 1) * right.stride_k);
        odd |= odd_lanes(first) | odd_lanes(second);
        store_pairs(to + pair * kPlaneK, planes, first, second);
      }
      continue;
    }
    __m512 rows[kPlaneK][1];
    load_block<2, 1>(from, right.stride_k, right.stride_n, right.size_k - k, width, rows);
    for (int pair = 0; pair < 16; ++pair) {
      odd |= odd_lanes(rows[2 * pair][0]) | odd_lanes(rows[2 * pair + 1][0]);
      store_pairs(to + pair * kPlaneK, planes, rows[2 * pair][0], rows[2 * pair + 1][0]);
    }
  }
  return odd != 0;
}

inline bool split_right(
    const Weights<float>& weights, const Columns& columns, std::int64_t k_begin, std::int64_t k_tiles, int planes,
    std::uint16_t* tiles, std::int64_t block_begin, std::int64_t block_end) {
  const int vectors = columns.groups == 1 ? 2 : 4;
  const std::int64_t own_tiles = tiles_of_k(weights.size_k), run = tiles_in_a_run(weights.stride_k, own_tiles);
  bool odd = false;
  for (std::int64_t k = 0; k < own_tiles; k += run) {
    for (std::int64_t block = block_begin; block < block_end; ++block) {
      for (int v = 0; v < vectors; ++v) {
        const VectorColumns place = vector_columns<float>(columns, block, v);
        std::uint16_t* const to = tiles + ((block * vectors + v) * k_tiles + k_begin + k) * planes * kPlaneTile;
        odd |= split_columns(weights, place.begin, place.width, k * kPlaneK, run, planes, to);
      }
    }
  }
  return !odd;
}

}  // namespace
}  // namespace g2lstm
