// What one block of threads does for one batch row's attention. Free of CUDA's headers: the host can run it too.
//
// Block is what a backend brings: kLanes, the threads of a warp; thread() and threads(), a thread's place and their
// number, a multiple of kLanes; sync(), which all threads reach together; sum_lanes(x) and max_lanes(x) over the
// threads of a warp, which reach them together. All threads share `scratch`, one number for each warp.
#pragma once

#include "cells.h"

namespace g2lstm::cuda {

template <class Block, class S>
G2LSTM_DEVICE S block_sum(const Block& block, S value, S* scratch) {
  value = block.sum_lanes(value);
  if (block.thread() % Block::kLanes == 0) scratch[block.thread() / Block::kLanes] = value;
  block.sync();
  S sum = 0;
  for (int warp = 0; warp < block.threads() / Block::kLanes; ++warp) sum += scratch[warp];
  block.sync();
  return sum;
}

template <class Block, class S>
G2LSTM_DEVICE S block_max(const Block& block, S value, S* scratch) {
  value = block.max_lanes(value);
  if (block.thread() % Block::kLanes == 0) scratch[block.thread() / Block::kLanes] = value;
  block.sync();
  S most = scratch[0];
  for (int warp = 1; warp < block.threads() / Block::kLanes; ++warp) most = most < scratch[warp] ? scratch[warp] : most;
  block.sync();
  return most;
}

// out[s] = vector (H) times row s of matrix (S, H), by as many positions at a time as there are warps; where
// `padding` is true, -infinity.
template <class Block, class T, class S>
G2LSTM_DEVICE void dot_rows(
    const Block& block, const T* vector, const T* matrix, const bool* padding, std::int64_t s_size,
    std::int64_t h_size, S* out) {
  const std::int64_t warps = block.threads() / Block::kLanes;
  const int lane = block.thread() % Block::kLanes;
  for (std::int64_t s = block.thread() / Block::kLanes; s < s_size; s += warps) {
    const bool padded = padding != nullptr && padding[s];
    S sum = 0;
    for (std::int64_t unit = lane; unit < h_size && !padded; unit += Block::kLanes) {
      sum += read(vector + unit) * read(matrix + offset(s, unit, h_size));
    }
    sum = block.sum_lanes(sum);
    if (lane == 0) out[s] = padded ? -static_cast<S>(HUGE_VAL) : sum;
  }
}

// The sum over s of weights[s] times column `unit` of matrix (S, H).
template <class T, class S>
G2LSTM_DEVICE S sum_rows(
    const S* weights, const T* matrix, std::int64_t s_size, std::int64_t h_size, std::int64_t unit) {
  S sum = 0;
  for (std::int64_t s = 0; s < s_size; ++s) sum += weights[s] * read(matrix + offset(s, unit, h_size));
  return sum;
}

template <class Block, class T>
G2LSTM_DEVICE void fill_with_nan(const Block& block, T* out, std::int64_t size) {
  for (std::int64_t at = block.thread(); at < size; at += block.threads()) {
    write(out + at, static_cast<State<T>>(HUGE_VAL) - static_cast<State<T>>(HUGE_VAL));
  }
}

template <class Block, class T>
G2LSTM_DEVICE void run_row(
    const AttentionForward<T>& step, std::int64_t row, const Block& block, State<T>* scratch) {
  using S = State<T>;
  const std::int64_t s_size = step.s_size, h_size = step.h_size;
  const std::int64_t source = step.source_rows == nullptr ? row : step.source_rows[row];
  if (step.source_rows != nullptr && (source < 0 || source >= step.n_sources)) {
    // No such row: the host has not looked at numbers that stand on the device.
    fill_with_nan(block, step.weights + row * s_size, s_size);
    fill_with_nan(block, step.out + row * h_size, h_size);
    return;
  }
  const T* const keys = step.keys + source * s_size * h_size;
  const T* const values = step.values + source * s_size * h_size;
  const bool* const padding = step.padding == nullptr ? nullptr : step.padding + source * s_size;
  S* const weights = step.weights + row * s_size;

  dot_rows(block, step.h + row * h_size, keys, padding, s_size, h_size, weights);
  block.sync();
  S most = -static_cast<S>(HUGE_VAL);
  for (std::int64_t s = block.thread(); s < s_size; s += block.threads()) most = most < weights[s] ? weights[s] : most;
  most = block_max(block, most, scratch);
  S sum = 0;
  for (std::int64_t s = block.thread(); s < s_size; s += block.threads()) {
    weights[s] = std::exp(weights[s] - most);
    sum += weights[s];
  }
  sum = block_sum(block, sum, scratch);
  for (std::int64_t s = block.thread(); s < s_size; s += block.threads()) weights[s] /= sum;
  block.sync();

  for (std::int64_t unit = block.thread(); unit < h_size; unit += block.threads()) {
    const std::int64_t at = offset(row, unit, h_size);
    write(step.out + at, std::tanh(read(step.pre + at) + sum_rows(weights, values, s_size, h_size, unit)));
    const S output = read(step.out + at);  // dropout applies to the output as it is kept in memory
    if (step.undropped != nullptr) write(step.undropped + at, output);
    if (step.dropout != nullptr) write(step.out + at, output * factor(step.dropout, at));
    if (step.feed.data != nullptr) {
      write(step.feed.data + offset(row, unit, step.feed.stride), output * factor(step.dropout, at));
    }
  }
}

template <class Block, class T>
G2LSTM_DEVICE void run_row(
    const AttentionBackward<T>& step, std::int64_t row, const Block& block, State<T>* scratch) {
  using S = State<T>;
  const std::int64_t s_size = step.s_size, h_size = step.h_size;
  const T* const keys = step.keys + row * s_size * h_size;
  const T* const values = step.values + row * s_size * h_size;
  const S* const weights = step.weights + row * s_size;
  S* const grad_scores = step.grad_scores + row * s_size;

  for (std::int64_t unit = block.thread(); unit < h_size; unit += block.threads()) {
    const std::int64_t at = offset(row, unit, h_size);
    S grad = 0;
    if (step.grad_out != nullptr) grad += read(step.grad_out + at);
    if (step.grad_feed.data != nullptr) grad += read(step.grad_feed.data + offset(row, unit, step.grad_feed.stride));
    const S output = read(step.undropped + at);
    write(step.grad_pre + at, grad * factor(step.dropout, at) * (1 - output * output));
  }
  block.sync();

  // The scores' gradients hold those of the weights first.
  dot_rows(block, step.grad_pre + row * h_size, values, nullptr, s_size, h_size, grad_scores);
  block.sync();
  S mean = 0;
  for (std::int64_t s = block.thread(); s < s_size; s += block.threads()) {
    if (step.grad_weights != nullptr) grad_scores[s] += step.grad_weights[row * s_size + s];
    mean += weights[s] * grad_scores[s];
  }
  mean = block_sum(block, mean, scratch);
  for (std::int64_t s = block.thread(); s < s_size; s += block.threads()) {
    grad_scores[s] = weights[s] * (grad_scores[s] - mean);
  }
  block.sync();

  for (std::int64_t unit = block.thread(); unit < h_size; unit += block.threads()) {
    write(step.grad_h + offset(row, unit, h_size), sum_rows(grad_scores, keys, s_size, h_size, unit));
  }
}

}  // namespace g2lstm::cuda
