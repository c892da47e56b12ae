// One time step, forward and backward, for a range of units and rows: the product, then the cells.
#pragma once

#include "product.h"

namespace g2lstm {
namespace {

template <class F>
using Word = typename WordOf<F>::type;

template <class F>
G2LSTM_INLINE Words<Word<F>> words_at(const Noise& noise, std::int64_t unit, std::int64_t row, std::int64_t t) {
  const std::int64_t number = noise.rows == nullptr ? row : noise.rows[row];
  const Words<Word<F>> counter{
      {count_units<Word<F>>(static_cast<std::uint64_t>(unit)), fill<Word<F>>(static_cast<std::uint64_t>(number)),
       fill<Word<F>>(static_cast<std::uint64_t>(t)), fill<Word<F>>(noise.stream)}};
  return philox4x32<VecMath<F>>(counter, noise.seed);
}

template <class F>
G2LSTM_INLINE void load_gates(const F* from, std::int64_t h_size, int width, Gates<Vec<F>>& gates) {
  gates.i = load(from, width);
  gates.f = load(from + h_size, width);
  gates.g = load(from + 2 * h_size, width);
  gates.o = load(from + 3 * h_size, width);
}

template <class F>
G2LSTM_INLINE void store_gates(F* to, std::int64_t h_size, int width, const Gates<Vec<F>>& gates) {
  store(to, gates.i, width);
  store(to + h_size, gates.f, width);
  store(to + 2 * h_size, gates.g, width);
  store(to + 3 * h_size, gates.o, width);
}

template <class F>
G2LSTM_INLINE void cell_forward(const ForwardStep<F>& step, std::int64_t row, std::int64_t unit, int width) {
  using V = Vec<F>;
  const std::int64_t at = row * step.h_size + unit;
  const V c = load(step.c + at, width);
  if (!step.activity.active(row, step.t)) {
    const V h = load(step.h + at, width);
    store(step.c_next + at, c, width);
    store(step.h_state + at, h, width);
    store(step.h_next + at, V{}, width);
    if (step.dropout != nullptr) store(step.dropped + at, V{}, width);
    if (step.z != nullptr) {
      store(step.z + 2 * row * step.h_size + unit, V{}, width);
      store(step.z + (2 * row + 1) * step.h_size + unit, V{}, width);
    }
    return;
  }
  F* const a_at = step.a + 4 * row * step.h_size + unit;
  Gates<V> a;
  load_gates(a_at, step.h_size, width, a);
  if (step.z != nullptr) {
    const F huge = static_cast<F>(HUGE_VAL);
    const V z_i = step.gates.hard ? one_where_not_negative(a.i) * 2 - 1 : a.i * step.gates.inverse_temperature;
    const V z_f = step.gates.hard ? one_where_not_negative(a.f) * 2 - 1 : a.f * step.gates.inverse_temperature;
    const F scale = step.gates.hard ? huge : F(1);
    store(step.z + 2 * row * step.h_size + unit, z_i * scale, width);
    store(step.z + (2 * row + 1) * step.h_size + unit, z_f * scale, width);
  }
  if (step.noise.threshold > 0) {
    const Words<Word<F>> u = words_at<F>(step.noise, unit, row, step.noise.share_uniform ? 0 : step.t);
    if (step.noise.share_mask && !step.noise.share_uniform && step.t != 0) {
      add_noise<VecMath<F>>(a, u, words_at<F>(step.noise, unit, row, 0), step.noise.threshold);
    } else {
      add_noise<VecMath<F>>(a, u, u, step.noise.threshold);
    }
  }
  const Gates<V> gates = activate<VecMath<F>>(a, step.gates);
  const State<V> next = next_state<VecMath<F>>(gates, c);
  store_gates(a_at, step.h_size, width, gates);
  store(step.c_next + at, next.c, width);
  store(step.h_next + at, next.h, width);
  if (step.activity.lengths != nullptr) store(step.h_state + at, next.h, width);
  if (step.dropout != nullptr) store(step.dropped + at, next.h * load(step.dropout + at, width), width);
}

template <class F>
void forward(
    const ForwardStep<F>& step, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
    std::int64_t row_end) {
  const Columns columns{step.h_size, 4};
  const std::int64_t stride = 4 * step.h_size;
  const std::int64_t product_end = row_end < step.product_end ? row_end : step.product_end;
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    if (step.start_with_bias) {
      multiply_block(step.product, columns, block, step.a, stride, step.bias, 0, row_begin, product_end);
    } else if (step.product.count > 0) {
      multiply_block(step.product, columns, block, step.a, stride, step.a, stride, row_begin, product_end);
    }
    const VectorColumns units = vector_columns<F>({step.h_size, 1}, block / 2, static_cast<int>(block % 2));
    if (units.width == kLanes<F>) {
      for (std::int64_t row = row_begin; row < row_end; ++row) cell_forward(step, row, units.begin, kLanes<F>);
    } else {
      for (std::int64_t row = row_begin; row < row_end; ++row) cell_forward(step, row, units.begin, units.width);
    }
  }
}

template <class F>
G2LSTM_INLINE void cell_backward(
    const BackwardStep<F>& step, std::int64_t row, std::int64_t unit, int width, Gates<Vec<F>>& sums) {
  using V = Vec<F>;
  const std::int64_t at = row * step.h_size + unit;
  F* const grad_a = step.grad_a + 4 * row * step.h_size + unit;
  if (!step.activity.active(row, step.t)) {
    store_gates<F>(grad_a, step.h_size, width, {V{}, V{}, V{}, V{}});
    return;
  }
  Gates<V> gates;
  load_gates(step.gates + 4 * row * step.h_size + unit, step.h_size, width, gates);
  State<V> grad{load(step.grad_h + at, width), load(step.grad_c + at, width)};
  if (step.grad_out != nullptr) grad.h += load(step.grad_out + at, width);
  const StepGradient<V> out =
      step_gradient<VecMath<F>>(gates, load(step.c + at, width), load(step.c_next + at, width), grad, step.spec);
  store_gates(grad_a, step.h_size, width, out.a);
  sums.i += out.a.i;
  sums.f += out.a.f;
  sums.g += out.a.g;
  sums.o += out.a.o;
  store(step.grad_c + at, out.c, width);
  store(step.grad_h + at, V{}, width);
}

template <class F>
void backward(
    const BackwardStep<F>& step, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
    std::int64_t row_end) {
  const Columns columns{step.h_size, 1};
  const std::int64_t product_end = row_end < step.product_end ? row_end : step.product_end;
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    if (step.product.count > 0) {
      multiply_block(
          step.product, columns, block, step.grad_h, step.h_size, step.grad_h, step.h_size, row_begin, product_end);
    }
    for (int v = 0; v < 2; ++v) {
      const VectorColumns units = vector_columns<F>(columns, block, v);
      if (units.width == 0) continue;
      F* const bias = step.grad_bias == nullptr ? nullptr : step.grad_bias + units.begin;
      Gates<Vec<F>> sums{};
      if (bias != nullptr) load_gates(bias, step.h_size, units.width, sums);
      if (units.width == kLanes<F>) {
        for (std::int64_t row = row_begin; row < row_end; ++row) {
          cell_backward(step, row, units.begin, kLanes<F>, sums);
        }
      } else {
        for (std::int64_t row = row_begin; row < row_end; ++row) {
          cell_backward(step, row, units.begin, units.width, sums);
        }
      }
      if (bias != nullptr) store_gates(bias, step.h_size, units.width, sums);
    }
  }
}

}  // namespace
}  // namespace g2lstm
