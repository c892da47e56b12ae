// What all that runs on AMX's tiles shares: their shapes.
#pragma once

#include <immintrin.h>

#include "scratch.h"
#include "transpose.h"

namespace g2lstm {
namespace {

constexpr std::int64_t kAmxRows = 16;  // of a tile

// GCC's tile instructions do not say that they read and write memory.
G2LSTM_INLINE void tiles_and_memory() { asm volatile("" ::: "memory"); }

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

}  // namespace
}  // namespace g2lstm
