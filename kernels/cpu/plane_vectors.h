// The sums of products of planes (planes.h) in vectors, with AVX-512's instruction for products of bfloat16: each lane
// adds the products of two pairs. One plane takes half the instructions of float32; two or three would take more.
#pragma once

#include "planes.h"

namespace g2lstm {
namespace {

constexpr int kRowsAtOnce = 8;  // times two vectors of columns in registers: half of a tile

G2LSTM_INLINE __m512 add_pairs(__m512 sum, __m512i left, __m512i right) {
  return _mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)right);
}

// Rows [row, row + kRows) of the target, those of a tile from `left` on.
template <int kRows, bool kTwoColumns>
void multiply_vectors(const Panel& panel, const std::uint16_t* left, const Target<float>& target, std::int64_t row) {
  constexpr int kVectors = kTwoColumns ? 2 : 1;
  __m512 sums[kRows][kVectors];
  __mmask16 lanes[kVectors];
  const std::uint16_t* right[kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    lanes[v] = lanes_below(target.width[v]);
    right[v] = panel.right[v];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const float* const start = target.start[v];
      sums[r][v] = start == nullptr ? _mm512_setzero_ps()
                                    : _mm512_maskz_loadu_ps(lanes[v], start + (row + r) * target.start_stride);
    }
  }
  for (std::int64_t k = 0; k < panel.k_tiles; ++k, left += kPlaneTile) {
    for (int pair = 0; pair < kPlaneK / 2; ++pair) {
      __m512i columns[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = _mm512_loadu_si512(right[v]);
        right[v] += kPlaneK;
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        std::int32_t numbers;
        std::memcpy(&numbers, left + r * kPlaneK + 2 * pair, sizeof(numbers));
        const __m512i both = _mm512_set1_epi32(numbers);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[r][v] = add_pairs(sums[r][v], both, columns[v]);
      }
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      _mm512_mask_storeu_ps(target.data[v] + (row + r) * target.stride, lanes[v], sums[r][v]);
    }
  }
}

template <bool kTwoColumns, int kRows = kRowsAtOnce>
void multiply_vectors_of(
    std::int64_t n_rows, const Panel& panel, const std::uint16_t* left, const Target<float>& target, std::int64_t row) {
  if (n_rows == kRows) {
    multiply_vectors<kRows, kTwoColumns>(panel, left, target, row);
  } else if constexpr (kRows > 1) {
    multiply_vectors_of<kTwoColumns, kRows - 1>(n_rows, panel, left, target, row);
  }
}

// Products of the rows of two tiles and two vectors of columns.
class PlaneMultiplier {
 public:
  static constexpr int kMostPlanes = 1;

  // Rows [row, row + n_rows) of the target, at most 32, whose tiles begin at `left`.
  template <int kPlanes, bool kTwoColumns>
  void multiply(
      const Panel& panel, const std::uint16_t* left, const Target<float>& target, std::int64_t row,
      std::int64_t n_rows) {
    static_assert(kPlanes == kMostPlanes, "no more planes than one");
    for (std::int64_t r = 0; r < n_rows; r += kRowsAtOnce) {
      const std::int64_t rows = n_rows - r < kRowsAtOnce ? n_rows - r : kRowsAtOnce;
      const std::uint16_t* const from = left + r / kPlaneRows * panel.left_stride + r % kPlaneRows * kPlaneK;
      multiply_vectors_of<kTwoColumns>(rows, panel, from, target, row + r);
    }
  }
};

}  // namespace
}  // namespace g2lstm
