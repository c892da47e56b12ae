// Products of integers on AMX: the left side's 16 bits as a signed and an unsigned byte, q = 256 high + low.
//
// A tile holds 16 rows of 64 bytes of the left side, of the weights 64 of 16 columns, four beside one another. Sums of
// both bytes' products are exact in 32 bits up to kLargestK.
#pragma once

#include "core.h"
#include "tiles.h"

namespace g2lstm {
namespace {

constexpr std::int64_t kTileOfBytes = 1024;
constexpr std::int64_t kBytesOfK = 64;
constexpr std::int64_t kLargestK = 65536;          // 255 * 127 * K < 2^31
constexpr std::int64_t kFewRowsInTiles = 16;       // for which the weights are not worth their way into tiles
constexpr std::int64_t kLeftBytesAtOnce = 1 << 20;  // that stay in the second-level cache

// Rows [row, row_end), at most 16, of integers: for each 64 of K a tile of the high bytes and one of the low.
inline void split_integers(
    const std::int16_t* q, std::int64_t stride, std::int64_t row, std::int64_t row_end, std::int64_t k_tiles,
    std::uint8_t* to) {
  const std::int64_t n_rows = row_end - row < kAmxRows ? row_end - row : kAmxRows;
  for (std::int64_t r = 0; r < n_rows; ++r) {
    const std::int16_t* const from = q + (row + r) * stride;
    for (std::int64_t tile = 0; tile < k_tiles; ++tile) {
      for (std::int64_t half = 0; half < 2; ++half) {
        const std::int64_t k = tile * kBytesOfK + half * 32;
        const __m512i words = k < stride ? _mm512_loadu_si512(from + k) : _mm512_setzero_si512();
        std::uint8_t* const place = to + tile * 2 * kTileOfBytes + r * kBytesOfK + half * 32;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), _mm512_cvtepi16_epi8(_mm512_srai_epi16(words, 8)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(place + kTileOfBytes), _mm512_cvtepi16_epi8(words));
      }
    }
  }
}

// 16 columns of the weights (N, K) from `column` on, 0 beyond column_end.
inline void tile_weights(
    const std::int8_t* weights, std::int64_t size_k, std::int64_t column, std::int64_t column_end, std::int64_t k_tiles,
    std::uint8_t* to) {
  for (std::int64_t tile = 0; tile < k_tiles; ++tile, to += kTileOfBytes) {
    const std::int64_t k = tile * kBytesOfK, left = size_k - k;
    const __mmask64 bytes = left >= kBytesOfK ? ~__mmask64(0) : (__mmask64(1) << left) - 1;
    __m512 rows[16];
    for (std::int64_t n = 0; n < 16; ++n) {
      const bool none = column + n >= column_end;
      const std::int8_t* const from = none ? weights : weights + (column + n) * size_k + k;
      rows[n] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi8(none ? __mmask64(0) : bytes, from));
    }
    transpose(rows);
    for (int n = 0; n < 16; ++n) _mm512_storeu_ps(to + n * kBytesOfK, rows[n]);
  }
}

// Sums of up to 16 rows by two vectors of columns: tiles 0 and 1 of the high bytes, 2 and 3 of the low.
struct alignas(64) IntegerSums {
  std::int32_t high[2][256];
  std::int32_t low[2][256];
};

G2LSTM_INLINE void sum_integers(
    const std::uint8_t* left, const std::uint8_t* right, std::int64_t right_stride, std::int64_t k_tiles, bool two,
    IntegerSums& sums) {
  _tile_zero(0);
  _tile_zero(2);
  if (two) {
    _tile_zero(1);
    _tile_zero(3);
    for (std::int64_t k = 0; k < k_tiles; ++k, left += 2 * kTileOfBytes, right += kTileOfBytes) {
      _tile_loadd(4, left, 64);
      _tile_loadd(5, left + kTileOfBytes, 64);
      _tile_loadd(6, right, 64);
      _tile_loadd(7, right + right_stride, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(1, sums.high[1], 64);
    _tile_stored(3, sums.low[1], 64);
  } else {
    for (std::int64_t k = 0; k < k_tiles; ++k, left += 2 * kTileOfBytes, right += kTileOfBytes) {
      _tile_loadd(4, left, 64);
      _tile_loadd(5, left + kTileOfBytes, 64);
      _tile_loadd(6, right, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_dpbusd(2, 5, 6);
    }
  }
  _tile_stored(0, sums.high[0], 64);
  _tile_stored(2, sums.low[0], 64);
  tiles_and_memory();
}

template <class F>
G2LSTM_INLINE Vec<F> total_of(const IntegerSums& sums, std::int64_t v, std::int64_t at) {
  typedef std::int32_t Ints __attribute__((vector_size(kLanes<F> * 4)));
  Ints high, low;
  std::memcpy(&high, sums.high[v] + at, sizeof(high));
  std::memcpy(&low, sums.low[v] + at, sizeof(low));
  return __builtin_convertvector(high, Vec<F>) * F(256) + __builtin_convertvector(low, Vec<F>);
}

// What the sums stand for.
template <class F>
void finish_integers(
    const IntegerProduct<F>& task, const IntegerSums& sums, const IntegerSums* rests, std::int64_t row,
    std::int64_t row_end, std::int64_t column, std::int64_t column_end) {
  using V = Vec<F>;
  for (std::int64_t n = column; n < column_end; n += kLanes<F>) {
    const int width = static_cast<int>(column_end - n < kLanes<F> ? column_end - n : kLanes<F>);
    const std::int64_t v = (n - column) / 16, lane = (n - column) % 16;
    const V scales = load(task.scales + n, width);
    for (std::int64_t r = row; r < row_end; ++r) {
      const std::int64_t at = (r - row) * 16 + lane;
      V y = total_of<F>(sums, v, at);
      if (rests != nullptr) y += total_of<F>(*rests, v, at) * F(1.0 / kRest);
      y = y * task.row_scales[r] * scales;
      if (task.start != nullptr) y += load(task.start + r * task.start_stride + n, width);
      store(task.out + r * task.stride + n, y, width);
    }
  }
}

template <class F>
void multiply_integers_in_tiles(
    const IntegerProduct<F>& task, std::int64_t column_begin, std::int64_t column_end, std::int64_t row_begin,
    std::int64_t row_end) {
  if (row_end - row_begin < kFewRowsInTiles || task.size_k > kLargestK) {
    return avx512_vnni::get<F>().multiply_integers(task, column_begin, column_end, row_begin, row_end);
  }
  const std::int64_t k_tiles = (task.size_k + kBytesOfK - 1) / kBytesOfK, stride = padded_size(task.size_k);
  const std::int64_t parts = task.q_rest == nullptr ? 1 : 2;
  const std::int64_t row_tile = parts * k_tiles * 2 * kTileOfBytes;  // bytes
  const std::int64_t most_tiles = kLeftBytesAtOnce / row_tile > 0 ? kLeftBytesAtOnce / row_tile : 1;
  const std::int64_t all_tiles = (row_end - row_begin + kAmxRows - 1) / kAmxRows;
  const std::int64_t at_once = most_tiles < all_tiles ? most_tiles : all_tiles;
  static thread_local Scratch memory;
  std::uint8_t* const left = memory.get(static_cast<std::size_t>(at_once * row_tile + 2 * k_tiles * kTileOfBytes));
  std::uint8_t* const right = left + at_once * row_tile;
  for (std::int64_t first = row_begin; first < row_end; first += at_once * kAmxRows) {
    const std::int64_t last = row_end - first < at_once * kAmxRows ? row_end : first + at_once * kAmxRows;
    for (std::int64_t row = first; row < last; row += kAmxRows) {
      std::uint8_t* const to = left + (row - first) / kAmxRows * row_tile;
      split_integers(task.q, stride, row, last, k_tiles, to);
      if (parts == 2) split_integers(task.q_rest, stride, row, last, k_tiles, to + row_tile / 2);
    }
    for (std::int64_t column = column_begin; column < column_end; column += 32) {
      const std::int64_t until = column_end - column < 32 ? column_end : column + 32;
      const bool two = until - column > 16;
      for (std::int64_t v = 0; v < (two ? 2 : 1); ++v) {
        tile_weights(
            task.weights, task.size_k, column + 16 * v, until, k_tiles, right + v * k_tiles * kTileOfBytes);
      }
      tiles_and_memory();
      std::int64_t configured = 0;
      for (std::int64_t row = first; row < last; row += kAmxRows) {
        const std::int64_t n_rows = last - row < kAmxRows ? last - row : kAmxRows;
        if (n_rows != configured) {
          TileConfig config;
          for (int tile = 0; tile < 6; ++tile) config.set(tile, n_rows, 64);
          for (int tile = 6; tile < 8; ++tile) config.set(tile, kAmxRows, 64);
          load_config(config);
          configured = n_rows;
        }
        IntegerSums sums, rests;
        const std::uint8_t* const from = left + (row - first) / kAmxRows * row_tile;
        sum_integers(from, right, k_tiles * kTileOfBytes, k_tiles, two, sums);
        if (parts == 2) sum_integers(from + row_tile / 2, right, k_tiles * kTileOfBytes, k_tiles, two, rests);
        finish_integers(task, sums, parts == 2 ? &rests : nullptr, row, row + n_rows, column, until);
      }
    }
  }
  _tile_release();
  tiles_and_memory();
}

}  // namespace
}  // namespace g2lstm
