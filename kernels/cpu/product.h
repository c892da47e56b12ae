// Products with packed weights, in panels of two vectors of columns, held in registers over the whole of K.
#pragma once

#include "columns.h"
#include "core.h"
#include "scratch.h"
#include "vec.h"
#ifdef G2LSTM_PLANES
#include "plane_products.h"
#endif

namespace g2lstm {
namespace {

#if G2LSTM_VECTOR_BYTES == 64
constexpr int kTileRows = 12;  // 24 of 32 registers for sums
#else
constexpr int kTileRows = 6;  // 12 of 16
#endif

template <class F>
G2LSTM_INLINE std::int64_t size_k_of(const Product<F>& product) {
  std::int64_t size_k = 0;
  for (int i = 0; i < product.count; ++i) size_k += product.operands[i].size;
  return size_k;
}

// Adds to the sums of kRows rows their products with a panel; the left side lies row by row, or packed by pack_left.
template <class F, int kRows, bool kPacked>
G2LSTM_INLINE void add_products(
    const F* left, std::int64_t stride, const F* panel, std::int64_t size_k, Vec<F> (&sums)[kRows][2]) {
  for (std::int64_t k = 0; k < size_k; ++k) {
    const Vec<F> right0 = load(panel);
    const Vec<F> right1 = load(panel + kLanes<F>);
    panel += 2 * kLanes<F>;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const F value = kPacked ? left[k * kRows + r] : left[r * stride + k];
      sums[r][0] += value * right0;
      sums[r][1] += value * right1;
    }
  }
}

template <class F, int kRows, bool kWhole>
G2LSTM_INLINE void tile(const Product<F>& product, const F* panel, const Target<F>& target, std::int64_t row) {
  using V = Vec<F>;
  V sums[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      sums[r][v] = V{};
      if (target.start[v] != nullptr) __builtin_prefetch(target.start[v] + (row + r) * target.start_stride);
    }
  }
  if (product.packed_left != nullptr) {
    const std::int64_t size_k = size_k_of(product);
    add_products<F, kRows, true>(product.packed_left + row * size_k, 0, panel, size_k, sums);
  } else {
    for (int i = 0; i < product.count; ++i) {
      const Operand<F>& operand = product.operands[i];
      add_products<F, kRows, false>(operand.data + row * operand.stride, operand.stride, panel, operand.size, sums);
      panel += operand.size * 2 * kLanes<F>;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      F* const out = target.data[v] + (row + r) * target.stride;
      const F* const start = target.start[v] == nullptr ? nullptr : target.start[v] + (row + r) * target.start_stride;
      if (start != nullptr) sums[r][v] += kWhole ? load(start) : load(start, target.width[v]);
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

// Rows in tiles of nearly equal height, at most kTileRows: `high` tiles of one row more than the others come first.
struct RowTiles {
  std::int64_t count;
  std::int64_t low;
  std::int64_t high;

  explicit RowTiles(std::int64_t n_rows)
      : count((n_rows + kTileRows - 1) / kTileRows), low(count > 0 ? n_rows / count : 0), high(n_rows - low * count) {}
  std::int64_t row(std::int64_t tile) const { return tile * low + (tile < high ? tile : high); }
};

template <class F>
void multiply_panel(
    const Product<F>& product, const F* panel, const Target<F>& target, std::int64_t row_begin, std::int64_t row_end) {
  if (row_end <= row_begin) return;
  const RowTiles rows(row_end - row_begin);
  const std::int64_t split = row_begin + rows.row(rows.high);
  const int low = static_cast<int>(rows.low);
  if (rows.high > 0) tiles_of<F, kTileRows>(low + 1, product, panel, target, row_begin, split);
  tiles_of<F, kTileRows>(low, product, panel, target, split, row_end);
}

// Four rows of four numbers become columns.
G2LSTM_INLINE void transpose_4(const float* from, std::int64_t stride, float* to, std::int64_t to_stride) {
  __m128 row0 = _mm_loadu_ps(from), row1 = _mm_loadu_ps(from + stride);
  __m128 row2 = _mm_loadu_ps(from + 2 * stride), row3 = _mm_loadu_ps(from + 3 * stride);
  _MM_TRANSPOSE4_PS(row0, row1, row2, row3);
  _mm_storeu_ps(to, row0);
  _mm_storeu_ps(to + to_stride, row1);
  _mm_storeu_ps(to + 2 * to_stride, row2);
  _mm_storeu_ps(to + 3 * to_stride, row3);
}

template <class F, int kRows>
void pack_rows(
    std::int64_t rows, const F* from, std::int64_t stride, std::int64_t stride_k, std::int64_t size_k, F* to) {
  if (rows == kRows && stride == 1) {
    for (std::int64_t k = 0; k < size_k; ++k) std::memcpy(to + k * kRows, from + k * stride_k, kRows * sizeof(F));
  } else if (rows == kRows) {
    std::int64_t k = 0;
    if constexpr (sizeof(F) == sizeof(float) && kRows % 4 == 0) {
      for (; stride_k == 1 && k + 4 <= size_k; k += 4) {
#pragma GCC unroll 3
        for (int r = 0; r < kRows; r += 4) transpose_4(from + r * stride + k, stride, to + k * kRows + r, kRows);
      }
    }
    for (; k < size_k; ++k) {
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) to[k * kRows + r] = from[r * stride + k * stride_k];
    }
  } else if constexpr (kRows > 1) {
    pack_rows<F, kRows - 1>(rows, from, stride, stride_k, size_k, to);
  }
}

// Tiles of the rows of a product's operands to `to`: of each tile all K, the tile's rows beside one another.
template <class F>
void pack_left(
    const Product<F>& product, std::int64_t n_rows, F* to, std::int64_t tile_begin, std::int64_t tile_end) {
  constexpr std::int64_t kRun = 16;  // of K at a time, so that rows that lie beside one another are read together
  const RowTiles tiles(n_rows);
  const std::int64_t size_k = size_k_of(product);
  std::int64_t k_begin = 0;
  for (int i = 0; i < product.count; ++i) {
    const Operand<F>& operand = product.operands[i];
    const std::int64_t run = operand.stride == 1 ? kRun : operand.size;
    for (std::int64_t k = 0; k < operand.size; k += run) {
      const std::int64_t size = operand.size - k < run ? operand.size - k : run;
      for (std::int64_t tile = tile_begin; tile < tile_end; ++tile) {
        const std::int64_t row = tiles.row(tile), rows = tiles.row(tile + 1) - row;
        pack_rows<F, kTileRows>(
            rows, operand.data + row * operand.stride + k * operand.stride_k, operand.stride, operand.stride_k, size,
            to + row * size_k + (k_begin + k) * rows);
      }
    }
    k_begin += operand.size;
  }
}

// Columns of a block, in rows [row_begin, row_end): out (stride) = start (start_stride) + product.
template <class F>
void multiply_block(
    const Product<F>& product, const Columns& columns, std::int64_t block, F* out, std::int64_t stride, const F* start,
    std::int64_t start_stride, std::int64_t row_begin, std::int64_t row_end) {
#ifdef G2LSTM_PLANES
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
          std::int64_t k = k0;
          if constexpr (sizeof(F) == sizeof(float)) {
            for (; place.width == kLanes<F> && weights.stride_k == 1 && k + 4 <= k1; k += 4) {
              for (int n = 0; n < kLanes<F>; n += 4) {
                transpose_4(
                    from + n * weights.stride_n + k, weights.stride_n, panel + k * kPanel + v * kLanes<F> + n, kPanel);
              }
            }
          }
          for (int n = 0; n < kLanes<F>; ++n) {
            F* to = panel + v * kLanes<F> + n;
            for (std::int64_t rest = k; rest < k1; ++rest) {
              to[rest * kPanel] = n < place.width ? from[n * weights.stride_n + rest * weights.stride_k] : F(0);
            }
          }
        }
      }
    }
  }
}

// Rows and blocks of columns of a product of large matrices, whose right side is packed. The left is packed on its way
// where its rows' numbers do not lie together. It also is where a tile's rows lie so far apart that they share the sets
// of the first cache, if there are columns enough to make up for it.
template <class F>
void multiply_packed(
    const MatrixProduct<F>& task, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
    std::int64_t row_end) {
  constexpr std::int64_t kRowsAtOnce = 96;  // times K, less than the second cache
  constexpr std::int64_t kManyColumns = 256;
  constexpr std::size_t kSharedSets = 2048;  // bytes
  static thread_local Scratch memory;
  const Columns columns{task.columns, 1};
  const bool share_sets = task.left.stride_n * sizeof(F) % kSharedSets == 0;
  const bool many_columns = (block_end - block_begin) * 2 * kLanes<F> >= kManyColumns;
  const std::int64_t size_k = task.left.size_k;
  for (std::int64_t row = row_begin; row < row_end; row += kRowsAtOnce) {
    const std::int64_t n_rows = row_end - row < kRowsAtOnce ? row_end - row : kRowsAtOnce;
    Product<F> product;
    const F* const from = task.left.data + row * task.left.stride_n;
    product.operands[product.count++] = {from, task.left.stride_n, size_k, task.left.stride_k};
    product.packed = task.packed;
    product.size_k = size_k;
    if (task.left.stride_k != 1 || (share_sets && many_columns)) {
      auto* const left = reinterpret_cast<F*>(memory.get(static_cast<std::size_t>(kRowsAtOnce * size_k) * sizeof(F)));
      pack_left(product, n_rows, left, 0, RowTiles(n_rows).count);
      product.packed_left = left;
    }
    F* const out = task.out + row * task.stride;
    const F* const start = task.start == nullptr ? nullptr : task.start + row * task.start_stride;
    for (std::int64_t block = block_begin; block < block_end; ++block) {
      multiply_block(product, columns, block, out, task.stride, start, task.start_stride, 0, n_rows);
    }
  }
}

}  // namespace
}  // namespace g2lstm
