// Products on AMX of sides that came into planes (planes.h): in a step with packed weights, and of two matrices.
#pragma once

#include "planes.h"

namespace g2lstm {
namespace {

// What the tiles are configured for; nothing yet with 0 rows.
struct TileShape {
  std::int64_t rows = 0;
  int width[2] = {};
};

// Tiles 0 to 3 hold the sums of two row tiles by two vectors of columns, 4 and 5 the left side, 6 and 7 the right.
G2LSTM_INLINE void configure(TileShape& configured, std::int64_t n_rows, const int (&width)[2]) {
  if (configured.rows == n_rows && configured.width[0] == width[0] && configured.width[1] == width[1]) return;
  configured = {n_rows, {width[0], width[1]}};
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

// Two vectors of columns of the right side, and the left side.
struct Panel {
  const std::uint16_t* left;
  const std::uint16_t* right[2];
  std::int64_t left_stride;  // numbers from one row tile to the next
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
    const Panel& panel, const Target<float>& target, std::int64_t row, std::int64_t row_end, const bool* odd,
    TileShape& configured) {
  const std::uint16_t* left = panel.left;
  for (; row < row_end; row += 2 * kAmxRows, left += 2 * panel.left_stride) {
    const std::int64_t n_rows = row_end - row < 2 * kAmxRows ? row_end - row : 2 * kAmxRows;
    const bool two = n_rows > kAmxRows;
    if (odd != nullptr && is_odd_pair(odd, row, row_end)) continue;
    configure(configured, n_rows, target.width);
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
    const bool* odd, TileShape& configured) {
  const bool two = target.width[1] > 0;
  const auto multiply = planes == 1   ? (two ? multiply_row_tiles<1, true> : multiply_row_tiles<1, false>)
                        : planes == 2 ? (two ? multiply_row_tiles<2, true> : multiply_row_tiles<2, false>)
                                      : (two ? multiply_row_tiles<3, true> : multiply_row_tiles<3, false>);
  multiply(panel, target, row, row_end, odd, configured);
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
  TileShape configured;
  for (int v = 0; v < vectors; v += 2) {
    const auto target = target_of<float>(columns, block, v, out, stride, start, start_stride);
    Panel panel{product.left, {}, product.left_k_tiles * product.planes * kAmxTile, k_tiles};
    for (int i = 0; i < 2; ++i) {
      panel.right[i] = product.right + (block * vectors + v + i) * product.right_k_tiles * product.planes * kAmxTile;
    }
    multiply_panel_in_planes(product.planes, panel, target, 0, row_end, product.odd, configured);
    for (std::int64_t row = 0; row < row_end; row += 2 * kAmxRows) {
      if (!is_odd_pair(product.odd, row, row_end)) continue;
      const std::int64_t until = row + 2 * kAmxRows < row_end ? row + 2 * kAmxRows : row_end;
      for (int i = 0; i < 2; ++i) {
        multiply_odd_rows(product, target, i, vector_columns<float>(columns, block, v + i).begin, row, until);
      }
    }
  }
  _tile_release();
  tiles_and_memory();
}

// Blocks [block_begin, block_end) of columns of rows [row, row_end); the sides' tiles begin with that row and block.
// Some blocks of two rows of tiles at a time, so that what is written lies together.
inline void multiply_blocks(
    const MatrixProduct<float>& task, const std::uint16_t* left, std::int64_t row, std::int64_t row_end,
    const std::uint16_t* right, std::int64_t block_begin, std::int64_t block_end) {
  const std::int64_t k_tiles = tiles_of_k(task.left.size_k), stride = k_tiles * task.planes * kAmxTile;
  const std::int64_t group = task.at_once / 32;
  TileShape configured;
  for (std::int64_t begin = block_begin; begin < block_end; begin += group) {
    const std::int64_t end = block_end - begin < group ? block_end : begin + group;
    for (std::int64_t r = row; r < row_end; r += 2 * kAmxRows) {
      const std::int64_t until = row_end - r < 2 * kAmxRows ? row_end : r + 2 * kAmxRows;
      for (std::int64_t block = begin; block < end; ++block) {
        const std::uint16_t* const tiles = right + 2 * (block - block_begin) * stride;
        const Panel panel{left + (r - row) / kAmxRows * stride, {tiles, tiles + stride}, stride, k_tiles};
        const auto target = target_of<float>(
            {task.columns, 1}, block, 0, task.out, task.stride, task.start, task.start_stride);
        multiply_panel_in_planes(task.planes, panel, target, r, until, nullptr, configured);
      }
    }
  }
  tiles_and_memory();  // the next planes may be written where these were read
}

// Rows [begin, end), whose numbers are split on the way.
inline bool multiply_rows(
    const MatrixProduct<float>& task, std::int64_t begin, std::int64_t end, std::uint16_t* scratch) {
  const std::int64_t k_tiles = tiles_of_k(task.left.size_k), tile = task.planes * kAmxTile;
  const std::int64_t run = tiles_in_a_run(task.left.stride_k, k_tiles);
  for (std::int64_t row = begin; row < end; row += task.at_once) {
    const std::int64_t n_rows = end - row < task.at_once ? end - row : task.at_once;
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
  const std::int64_t k_tiles = tiles_of_k(task.right.size_k), blocks = task.at_once / 32;
  const std::int64_t run = tiles_in_a_run(task.right.stride_k, k_tiles);
  for (std::int64_t block = begin; block < end; block += blocks) {
    const std::int64_t until = end - block < blocks ? end : block + blocks;
    bool odd = false;
    for (std::int64_t k = 0; k < k_tiles; k += run) {
      for (std::int64_t i = 0; i < 2 * (until - block); ++i) {
        const VectorColumns place = vector_columns<float>({task.columns, 1}, block + i / 2, static_cast<int>(i % 2));
        std::uint16_t* const to = scratch + (i * k_tiles + k) * task.planes * kAmxTile;
        odd |= split_columns(task.right, place.begin, place.width, k * kAmxK, run, task.planes, to);
      }
    }
    if (odd) return false;
    multiply_blocks(task, task.left_tiles, 0, task.rows, scratch, block, until);
  }
  return true;
}

inline bool multiply_matrices(const MatrixProduct<float>& task, std::int64_t begin, std::int64_t end) {
  static thread_local Scratch memory;
  const std::int64_t words = task.at_once / kAmxRows * tiles_of_k(task.left.size_k) * task.planes * kAmxTile;
  const auto bytes = static_cast<std::size_t>(words) * sizeof(std::uint16_t);
  auto* const scratch = reinterpret_cast<std::uint16_t*>(memory.get(bytes));
  const bool done = task.left_tiles == nullptr ? multiply_rows(task, begin, end, scratch)
                                               : multiply_columns(task, begin, end, scratch);
  _tile_release();
  tiles_and_memory();
  return done;
}

}  // namespace
}  // namespace g2lstm
