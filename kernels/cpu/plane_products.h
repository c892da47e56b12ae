// Products of sides that came into planes (planes.h): in a step with packed weights, and of two matrices.
#pragma once

#ifdef G2LSTM_AMX
#include "plane_tiles.h"
#else
#include "plane_vectors.h"
#endif

namespace g2lstm {
namespace {

// Whether the pair of row tiles that begins at `row` holds an odd row.
G2LSTM_INLINE bool is_odd_pair(const bool* odd, std::int64_t row, std::int64_t row_end) {
  return odd[row / kPlaneRows] || (row_end - row > kPlaneRows && odd[row / kPlaneRows + 1]);
}

template <int kPlanes, bool kTwoColumns>
void multiply_row_tiles(
    const Panel& panel, const Target<float>& target, std::int64_t row, std::int64_t row_end, const bool* odd,
    PlaneMultiplier& multiplier) {
  const std::uint16_t* left = panel.left;
  for (; row < row_end; row += 2 * kPlaneRows, left += 2 * panel.left_stride) {
    const std::int64_t n_rows = row_end - row < 2 * kPlaneRows ? row_end - row : 2 * kPlaneRows;
    if (odd != nullptr && is_odd_pair(odd, row, row_end)) continue;
    multiplier.multiply<kPlanes, kTwoColumns>(panel, left, target, row, n_rows);
  }
}

// Rows [row, row_end) of a panel, but pairs of row tiles that hold an odd row; `left` begins with those of `row`.
template <int kPlanes = PlaneMultiplier::kMostPlanes>
void multiply_panel_in_planes(
    int planes, const Panel& panel, const Target<float>& target, std::int64_t row, std::int64_t row_end,
    const bool* odd, PlaneMultiplier& multiplier) {
  if (kPlanes > 1 && planes < kPlanes) {
    multiply_panel_in_planes<(kPlanes > 1 ? kPlanes - 1 : 1)>(planes, panel, target, row, row_end, odd, multiplier);
  } else if (target.width[1] > 0) {
    multiply_row_tiles<kPlanes, true>(panel, target, row, row_end, odd, multiplier);
  } else {
    multiply_row_tiles<kPlanes, false>(panel, target, row, row_end, odd, multiplier);
  }
}

// The same in plain float32, for rows [row, row_end) of a vector of columns that begins at `column`.
inline void multiply_odd_rows(
    const Product<float>& product, const Target<float>& target, int v, std::int64_t column, std::int64_t row,
    std::int64_t row_end) {
  const int width = target.width[v];
  for (; row < row_end; ++row) {
    const float* const start = target.start[v];
    float sums[kPlaneRows] = {};
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
  PlaneMultiplier multiplier;
  for (int v = 0; v < vectors; v += 2) {
    const auto target = target_of<float>(columns, block, v, out, stride, start, start_stride);
    Panel panel{product.left, {}, product.left_k_tiles * product.planes * kPlaneTile, k_tiles};
    for (int i = 0; i < 2; ++i) {
      panel.right[i] = product.right + (block * vectors + v + i) * product.right_k_tiles * product.planes * kPlaneTile;
    }
    multiply_panel_in_planes(product.planes, panel, target, 0, row_end, product.odd, multiplier);
    for (std::int64_t row = 0; row < row_end; row += 2 * kPlaneRows) {
      if (!is_odd_pair(product.odd, row, row_end)) continue;
      const std::int64_t until = row + 2 * kPlaneRows < row_end ? row + 2 * kPlaneRows : row_end;
      for (int i = 0; i < 2; ++i) {
        multiply_odd_rows(product, target, i, vector_columns<float>(columns, block, v + i).begin, row, until);
      }
    }
  }
}

// Blocks [block_begin, block_end) of columns of rows [row, row_end); the sides' tiles begin with that row and block.
// Some blocks of two rows of tiles at a time, so that what is written lies together.
inline void multiply_blocks(
    const MatrixProduct<float>& task, const std::uint16_t* left, std::int64_t row, std::int64_t row_end,
    const std::uint16_t* right, std::int64_t block_begin, std::int64_t block_end) {
  const std::int64_t k_tiles = tiles_of_k(task.left.size_k), stride = k_tiles * task.planes * kPlaneTile;
  const std::int64_t group = task.at_once / 32;
  PlaneMultiplier multiplier;
  for (std::int64_t begin = block_begin; begin < block_end; begin += group) {
    const std::int64_t end = block_end - begin < group ? block_end : begin + group;
    for (std::int64_t r = row; r < row_end; r += 2 * kPlaneRows) {
      const std::int64_t until = row_end - r < 2 * kPlaneRows ? row_end : r + 2 * kPlaneRows;
      for (std::int64_t block = begin; block < end; ++block) {
        const std::uint16_t* const tiles = right + 2 * (block - block_begin) * stride;
        const Panel panel{left + (r - row) / kPlaneRows * stride, {tiles, tiles + stride}, stride, k_tiles};
        const auto target = target_of<float>(
            {task.columns, 1}, block, 0, task.out, task.stride, task.start, task.start_stride);
        multiply_panel_in_planes(task.planes, panel, target, r, until, nullptr, multiplier);
      }
    }
  }
}

// Rows [begin, end), whose numbers are split on the way.
inline bool multiply_rows(
    const MatrixProduct<float>& task, std::int64_t begin, std::int64_t end, std::uint16_t* scratch) {
  const std::int64_t k_tiles = tiles_of_k(task.left.size_k), tile = task.planes * kPlaneTile;
  const std::int64_t run = tiles_in_a_run(task.left.stride_k, k_tiles);
  for (std::int64_t row = begin; row < end; row += task.at_once) {
    const std::int64_t n_rows = end - row < task.at_once ? end - row : task.at_once;
    bool odd = false;
    for (std::int64_t k = 0; k < k_tiles; k += run) {
      for (std::int64_t r = 0; r < n_rows; r += kPlaneRows) {
        std::uint16_t* const to = scratch + (r / kPlaneRows * k_tiles + k) * tile;
        odd |= split_row_tile(task.left, row + r, end, k * kPlaneK, run, task.planes, to);
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
  const std::int64_t k_tiles = tiles_of_k(task.right.size_k), blocks = task.at_once / 32;
  const std::int64_t run = tiles_in_a_run(task.right.stride_k, k_tiles);
  for (std::int64_t block = begin; block < end; block += blocks) {
    const std::int64_t until = end - block < blocks ? end : block + blocks;
    bool odd = false;
    for (std::int64_t k = 0; k < k_tiles; k += run) {
      for (std::int64_t i = 0; i < 2 * (until - block); ++i) {
        const VectorColumns place = vector_columns<float>({task.columns, 1}, block + i / 2, static_cast<int>(i % 2));
        std::uint16_t* const to = scratch + (i * k_tiles + k) * task.planes * kPlaneTile;
        odd |= split_columns(task.right, place.begin, place.width, k * kPlaneK, run, task.planes, to);
      }
    }
    if (odd) return false;
    multiply_blocks(task, task.left_tiles, 0, task.rows, scratch, block, until);
  }
  return true;
}

inline bool multiply_matrices(const MatrixProduct<float>& task, std::int64_t begin, std::int64_t end) {
  static thread_local Scratch memory;
  const std::int64_t words = task.at_once / kPlaneRows * tiles_of_k(task.left.size_k) * task.planes * kPlaneTile;
  const auto bytes = static_cast<std::size_t>(words) * sizeof(std::uint16_t);
  auto* const scratch = reinterpret_cast<std::uint16_t*>(memory.get(bytes));
  return task.left_tiles == nullptr ? multiply_rows(task, begin, end, scratch)
                                    : multiply_columns(task, begin, end, scratch);
}

}  // namespace
}  // namespace g2lstm
