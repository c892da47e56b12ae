// The sums of products of planes (planes.h) on AMX's tiles.
#pragma once

#include "planes.h"
#include "tiles.h"

namespace g2lstm {
namespace {

static_assert(kPlaneRows == kAmxRows, "a tile of planes is one of AMX's");

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
    const std::int64_t left = n_rows - i * kPlaneRows;
    const std::int64_t own = left >= kPlaneRows ? kPlaneRows : left > 0 ? left : 0;
    for (int j = 0; j < 2; ++j) config.set(2 * i + j, own, width[j] * 4);
    config.set(4 + i, own, 64);
    config.set(6 + i, kPlaneRows, width[i] * 4);
  }
  load_config(config);
}

#define G2LSTM_LOAD_SUM(tile, i, j)                                                                        \
  if (target.start[j] == nullptr) {                                                                        \
    _tile_zero(tile);                                                                                      \
  } else {                                                                                                 \
    _tile_loadd(                                                                                           \
        tile, target.start[j] + (row + i * kPlaneRows) * target.start_stride, target.start_stride * 4);     \
  }
#define G2LSTM_STORE_SUM(tile, i, j) \
  _tile_stored(tile, target.data[j] + (row + i * kPlaneRows) * target.stride, target.stride * 4);
#define G2LSTM_LOAD_LEFT(plane)                                       \
  _tile_loadd(4, left0 + plane * kPlaneTile, 64);                          \
  if (kTwoRows) _tile_loadd(5, left1 + plane * kPlaneTile, 64);
#define G2LSTM_LOAD_RIGHT(plane)                                      \
  _tile_loadd(6, right0 + plane * kPlaneTile, 64);                         \
  if (kTwoColumns) _tile_loadd(7, right1 + plane * kPlaneTile, 64);
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
    left0 += kPlanes * kPlaneTile;
    left1 += kPlanes * kPlaneTile;
    right0 += kPlanes * kPlaneTile;
    right1 += kPlanes * kPlaneTile;
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

// Products of the rows of two tiles and two vectors of columns. The tiles are this thread's until it is destroyed.
class PlaneMultiplier {
 public:
  static constexpr int kMostPlanes = 3;

  ~PlaneMultiplier() {
    _tile_release();
    tiles_and_memory();  // the next planes may be written where these were read
  }

  // Rows [row, row + n_rows) of the target, at most 32, whose tiles begin at `left`.
  template <int kPlanes, bool kTwoColumns>
  void multiply(
      const Panel& panel, const std::uint16_t* left, const Target<float>& target, std::int64_t row,
      std::int64_t n_rows) {
    configure(configured_, n_rows, target.width);
    if (n_rows > kPlaneRows) {
      multiply_tiles<kPlanes, true, kTwoColumns>(panel, left, target, row);
    } else {
      multiply_tiles<kPlanes, false, kTwoColumns>(panel, left, target, row);
    }
  }

 private:
  TileShape configured_;
};

}  // namespace
}  // namespace g2lstm
