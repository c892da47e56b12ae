// One unit's arithmetic, as common/cell.h and common/philox.h ask for it: what each thread of a device computes.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/cell.h"

namespace g2lstm::cuda {

template <class F>
struct ScalarMath {
  using Scalar = F;
  using Value = F;
  using Word = std::uint64_t;

  static G2LSTM_HOST_DEVICE Word multiply_wide(Word a, std::uint32_t b) {
    return static_cast<Word>(static_cast<std::uint32_t>(a)) * b;
  }
  static G2LSTM_HOST_DEVICE F sigmoid(F x) { return 1 / (1 + std::exp(-x)); }
  static G2LSTM_HOST_DEVICE F tanh(F x) { return std::tanh(x); }
  static G2LSTM_HOST_DEVICE F log(F x) { return std::log(x); }
  static G2LSTM_HOST_DEVICE F one_where_not_negative(F x) { return x >= 0 ? F(1) : F(0); }
  static G2LSTM_HOST_DEVICE F uniform(Word w) {
    return static_cast<F>(static_cast<std::uint32_t>(w) >> 8) * static_cast<F>(1.0 / 16777216.0);
  }
  static G2LSTM_HOST_DEVICE F where_below(Word w, std::uint64_t bound, F value) {
    return static_cast<std::uint32_t>(w) < bound ? value : F(0);
  }
};

// The random words of one unit; row is its place in the batch, rows its number there or null.
G2LSTM_HOST_DEVICE Words<std::uint64_t> words_at(
    const NoiseSpec& noise, const std::int64_t* rows, std::int64_t row, std::int64_t unit, std::int64_t t) {
  const std::int64_t number = rows == nullptr ? row : rows[row];
  const Words<std::uint64_t> counter{
      {static_cast<std::uint64_t>(unit), static_cast<std::uint64_t>(number), static_cast<std::uint64_t>(t),
       noise.stream}};
  return philox4x32<ScalarMath<float>>(counter, noise.seed);
}

}  // namespace g2lstm::cuda
