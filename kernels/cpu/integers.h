// Rows to integers and sums of integers back, for products with integer weights.
#pragma once

#include "core.h"
#include "vec.h"

namespace g2lstm {
namespace {

template <class F>
struct IntegersOf;
template <>
struct IntegersOf<float> {
  using type = VecI;
};
template <>
struct IntegersOf<double> {
  using type = VecL;
};

// Whole numbers from -127 to 127 as bytes.
template <class F>
G2LSTM_INLINE void store_bytes(std::int8_t* to, Vec<F> whole, int width) {
  typedef std::int8_t Bytes __attribute__((vector_size(kLanes<F>)));
  const auto integers = __builtin_convertvector(whole, typename IntegersOf<F>::type);
  const Bytes bytes = __builtin_convertvector(integers, Bytes);
  std::memcpy(to, &bytes, static_cast<std::size_t>(width));
}

template <class F>
void quantize(const Quantize<F>& task, std::int64_t row_begin, std::int64_t row_end) {
  using V = Vec<F>;
  const std::int64_t whole = task.size - task.size % kLanes<F>;
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const F* const x = task.x + row * task.stride;
    std::int8_t* const q = task.q + row * task.size;
    std::int8_t* const q_rest = task.q_rest == nullptr ? nullptr : task.q_rest + row * task.size;
    V high{}, odd{};
    for (std::int64_t k = 0; k < task.size; k += kLanes<F>) {
      const V value = load(x + k, k < whole ? kLanes<F> : static_cast<int>(task.size - k));
      const V size = value < 0 ? -value : value;
      high = size > high ? size : high;
      odd += value * 0;  // NaN of infinities and NaN
    }
    F highest = 0, probe = 0;
    for (int lane = 0; lane < kLanes<F>; ++lane) {
      highest = high[lane] > highest ? high[lane] : highest;
      probe += odd[lane];
    }
    task.scales[row] = highest > 0 ? highest / 127 + probe : 1 + probe;
    const F inverse = highest > 0 ? 127 / highest : 0;
    // not finite, or too small to be told from 0
    if (probe != probe || !(inverse < static_cast<F>(HUGE_VAL))) {
      std::memset(q, 0, static_cast<std::size_t>(task.size));
      if (q_rest != nullptr) std::memset(q_rest, 0, static_cast<std::size_t>(task.size));
      continue;
    }
    const F magic = static_cast<F>(sizeof(F) == 4 ? 0x1.8p23 : 0x1.8p52);  // adding it rounds to an integer
    for (std::int64_t k = 0; k < task.size; k += kLanes<F>) {
      const int width = k < whole ? kLanes<F> : static_cast<int>(task.size - k);
      const V scaled = load(x + k, width) * inverse;
      const V rounded = (scaled + magic) - magic;
      store_bytes<F>(q + k, rounded, width);
      if (q_rest != nullptr) store_bytes<F>(q_rest + k, ((scaled - rounded) * F(kRest) + magic) - magic, width);
    }
  }
}

template <class F>
void rescale(const Rescale<F>& task, std::int64_t row_begin, std::int64_t row_end) {
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const std::int32_t* const sums = task.sums + row * task.size;
    const std::int32_t* const sums_rest = task.sums_rest == nullptr ? nullptr : task.sums_rest + row * task.size;
    const F* const start = task.start == nullptr ? nullptr : task.start + row * task.start_stride;
    F* const out = task.out + row * task.stride;
    const F row_scale = task.row_scales[row];
    for (std::int64_t n = 0; n < task.size; n += kLanes<F>) {
      typedef std::int32_t Sums __attribute__((vector_size(kLanes<F> * 4)));
      const int width = task.size - n < kLanes<F> ? static_cast<int>(task.size - n) : kLanes<F>;
      Sums some{};
      std::memcpy(&some, sums + n, static_cast<std::size_t>(width) * 4);
      Vec<F> sum = __builtin_convertvector(some, Vec<F>);
      if (sums_rest != nullptr) {
        std::memcpy(&some, sums_rest + n, static_cast<std::size_t>(width) * 4);
        sum += __builtin_convertvector(some, Vec<F>) * F(1.0 / kRest);
      }
      Vec<F> y = sum * row_scale * load(task.scales + n, width);
      if (start != nullptr) y += load(start + n, width);
      store(out + n, y, width);
    }
  }
}

}  // namespace
}  // namespace g2lstm
