// Products with packed weights, in panels of two vectors of columns, held in registers over the whole of K.
#pragma once

#include "columns.h"
#include "core.h"
#include "vec.h"
#ifdef G2LSTM_AMX
#include "plane_products.h"
#endif

namespace g2lstm {
namespace {

#if G2LSTM_VECTOR_BYTES == 64
constexpr int kTileRows = 12;  // 24 of 32 registers for sums
#else
constexpr int kTileRows = 6;  // 12 of 16
#endif

template <class F, int kRows, bool kWhole>
G2LSTM_INLINE void tile(const Product<F>& product, const F* panel, const Target<F>& target, std::int64_t row) {
  using V = Vec<F>;
  V sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const F* start = target.start[v] == nullptr ? nullptr : target.start[v] + (row + r) * target.start_stride;
      sums[r][v] = start == nullptr ? V{} : kWhole ? load(start) : load(start, target.width[v]);
    }
  }
  for (int i = 0; i < product.count; ++i) {
    const Operand<F>& operand = product.operands[i];
    const F* left = operand.data + row * operand.stride;
    for (std::int64_t k = 0; k < operand.size; ++k) {
      const V right0 = load(panel);
      const V right1 = load(panel + kLanes<F>);
      panel += 2 * kLanes<F>;
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const F value = left[r * operand.stride + k];
        sums[r][0] += value * right0;
        sums[r][1] += value * right1;
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      F* out = target.data[v] + (row + r) * target.stride;
      kWhole ? store(out, sums[r][v]) : store(out, sums[r][v], target.width[v]);
    }
  }
}

template <class F, int kRows>
void tiles(
    const Product<F>& product, const F* panel, const Target<F>& target, std::int64_t row, std::int64_t row_end) {
  const bool whole = target.width[0] == kLanes<F> && target.width[1] == kLanes<F>;
  for (; row < row_end; row += kRows) {
    if (whole) {
      tile<F, kRows, true>(product, panel, target, row);
    } else {
      tile<F, kRows, false>(product, panel, target, row);
    }
  }
}

// Tiles of nearly equal height, at most kTileRows.
template <class F, int kRows>
void tiles_of(
    int rows, const Product<F>& product, const F* panel, const Target<F>& target, std::int64_t row,
    std::int64_t row_end) {
  if (rows == kRows) {
    tiles<F, kRows>(product, panel, target, row, row_end);
  } else if constexpr (kRows > 1) {
    tiles_of<F, kRows - 1>(rows, product, panel, target, row, row_end);
  }
}

template <class F>
void multiply_panel(
    const Product<F>& product, const F* panel, const Target<F>& target, std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t n_rows = row_end - row_begin;
  if (n_rows <= 0) return;
  const std::int64_t n_tiles = (n_rows + kTileRows - 1) / kTileRows;
  const int low = static_cast<int>(n_rows / n_tiles);
  const std::int64_t n_high = n_rows - low * n_tiles;  // tiles of one row more
  const std::int64_t split = row_begin + n_high * (low + 1);
  if (n_high > 0) tiles_of<F, kTileRows>(low + 1, product, panel, target, row_begin, split);
  tiles_of<F, kTileRows>(low, product, panel, target, split, row_end);
}

// Columns of a block, in rows [row_begin, row_end): out (stride) = start (start_stride) + product.
template <class F>
void multiply_block(
    const Product<F>& product, const Columns& columns, std::int64_t block, F* out, std::int64_t stride, const F* start,
    std::int64_t start_stride, std::int64_t row_begin, std::int64_t row_end) {
#ifdef G2LSTM_AMX
  if constexpr (sizeof(F) == sizeof(float)) {
    if (product.planes > 0) {
      return multiply_block_in_planes(product, columns, block, out, stride, start, start_stride, row_end);
    }
  }
#endif
  const std::int64_t panel_size = product.size_k * 2 * kLanes<F>;
  const int panels = columns.groups == 1 ? 1 : 2;
  for (int p = 0; p < panels; ++p) {
    const auto target = target_of<F>(columns, block, 2 * p, out, stride, start, start_stride);
    multiply_panel(product, product.packed + (block * panels + p) * panel_size, target, row_begin, row_end);
  }
}

template <class F>
void pack(
    const Weights<F>& weights, const Columns& columns, std::int64_t k_begin, std::int64_t size_k, F* packed,
    std::int64_t block_begin, std::int64_t block_end) {
  constexpr int kPanel = 2 * kLanes<F>;
  constexpr std::int64_t kRun = 16;  // rows of K at a time, so that what is written stays in the first-level cache
  const int panels = columns.groups == 1 ? 1 : 2;
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    for (int p = 0; p < panels; ++p) {
      F* panel = packed + ((block * panels + p) * size_k + k_begin) * kPanel;
      for (std::int64_t k0 = 0; k0 < weights.size_k; k0 += kRun) {
        const std::int64_t k1 = k0 + kRun < weights.size_k ? k0 + kRun : weights.size_k;
        for (int v = 0; v < 2; ++v) {
          const VectorColumns place = vector_columns<F>(columns, block, 2 * p + v);
          const F* from = weights.data + place.begin * weights.stride_n;
          if (weights.stride_n == 1) {
            for (std::int64_t k = k0; k < k1; ++k) {
              store(panel + k * kPanel + v * kLanes<F>, load(from + k * weights.stride_k, place.width));
            }
            continue;
          }
          for (int n = 0; n < kLanes<F>; ++n) {
            F* to = panel + v * kLanes<F> + n;
            for (std::int64_t k = k0; k < k1; ++k) {
              to[k * kPanel] = n < place.width ? from[n * weights.stride_n + k * weights.stride_k] : F(0);
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace g2lstm
