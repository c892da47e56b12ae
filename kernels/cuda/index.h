// Where elements stand, and how a grid of threads covers them. All in 64 bits: T B 4H passes 2^31.
#pragma once

#include <cstdint>

#include "../common/philox.h"

namespace g2lstm::cuda {

// Element of a matrix whose rows lie `stride` elements apart.
G2LSTM_HOST_DEVICE std::int64_t offset(std::int64_t row, std::int64_t column, std::int64_t stride) {
  return row * stride + column;
}

// Element of `gate` (0 to 3: i, f, g, o) in pre-activations (B, 4H).
G2LSTM_HOST_DEVICE std::int64_t gate_offset(
    std::int64_t row, std::int64_t gate, std::int64_t unit, std::int64_t h_size) {
  return (4 * row + gate) * h_size + unit;
}

// Element of `gate` (0 or 1: i, f) in the sigmoids' arguments (B, 2H).
G2LSTM_HOST_DEVICE std::int64_t argument_offset(
    std::int64_t row, std::int64_t gate, std::int64_t unit, std::int64_t h_size) {
  return (2 * row + gate) * h_size + unit;
}

// Word k (0 to 3) of a cell, which is row + B t, in (4, T, B, H) with T B cells.
G2LSTM_HOST_DEVICE std::int64_t word_offset(
    std::int64_t k, std::int64_t cell, std::int64_t unit, std::int64_t n_cells, std::int64_t h_size) {
  return (k * n_cells + cell) * h_size + unit;
}

// A thread's place in the whole grid, and the grid's extent: it works at (y + k extent_y, x + l extent_x) for all k, l.
struct Place {
  std::int64_t x, y, extent_x, extent_y;
};

// Blocks of block_x times block_y threads, blocks_x times blocks_y of them.
struct Grid {
  std::int64_t block_x, block_y, blocks_x, blocks_y;
};

constexpr std::int64_t kUnitThreads = 256;       // threads of a block that works on rows and units
constexpr std::int64_t kUnitWidth = 128;         // the most of them side by side on one row
constexpr std::int64_t kAttentionThreads = 256;  // threads of a block that works on one row's attention
constexpr std::int64_t kMostBlocksX = 0x7fffffff;
constexpr std::int64_t kMostBlocksY = 65535;

inline std::int64_t blocks_for(std::int64_t size, std::int64_t width, std::int64_t most) {
  const std::int64_t blocks = size / width + (size % width != 0);
  return blocks < most ? blocks : most;
}

// One thread for each unit of each row, as far as a grid reaches; n_rows and h_size are at least 1.
inline Grid unit_grid(std::int64_t n_rows, std::int64_t h_size) {
  std::int64_t width = 1;
  while (width < h_size && width < kUnitWidth) width *= 2;
  const std::int64_t height = kUnitThreads / width;
  return {width, height, blocks_for(h_size, width, kMostBlocksX), blocks_for(n_rows, height, kMostBlocksY)};
}

// One block for each row, as far as a grid reaches.
inline Grid row_grid(std::int64_t n_rows) {
  return {kAttentionThreads, 1, blocks_for(n_rows, 1, kMostBlocksX), 1};
}

}  // namespace g2lstm::cuda
