// Attention, output and their gradients of one decoder step, for a range of rows.
#pragma once

#include "product.h"

namespace g2lstm {
namespace {

template <class F>
G2LSTM_INLINE F sum_of_lanes(Vec<F> v) {
  F lanes[kLanes<F>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes<F> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// Lanes that a vector beginning at `at` of `size` elements holds.
template <class F>
G2LSTM_INLINE int lanes_at(std::int64_t at, std::int64_t size) {
  return size - at >= kLanes<F> ? kLanes<F> : static_cast<int>(size - at);
}

// out[s] = sum over units of vector (H) times matrix (S, H)
template <class F>
void dot_rows(const F* vector, const F* matrix, std::int64_t rows, std::int64_t size, F* out) {
  constexpr int kRows = 4;
  std::int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    Vec<F> sums[kRows] = {};
    for (std::int64_t k = 0; k < size; k += kLanes<F>) {
      const int width = lanes_at<F>(k, size);
      const Vec<F> left = load(vector + k, width);
      for (int r = 0; r < kRows; ++r) sums[r] += left * load(matrix + (row + r) * size + k, width);
    }
    for (int r = 0; r < kRows; ++r) out[row + r] = sum_of_lanes<F>(sums[r]);
  }
  for (; row < rows; ++row) {
    Vec<F> sum{};
    for (std::int64_t k = 0; k < size; k += kLanes<F>) {
      const int width = lanes_at<F>(k, size);
      sum += load(vector + k, width) * load(matrix + row * size + k, width);
    }
    out[row] = sum_of_lanes<F>(sum);
  }
}

// out (H) = start (H, or 0) + sum over s of weights[s] times matrix (S, H)
template <class F>
void sum_rows(const F* weights, const F* matrix, std::int64_t rows, std::int64_t size, const F* start, F* out) {
  constexpr int kVectors = 4;
  constexpr std::int64_t kRun = kVectors * kLanes<F>;
  std::int64_t k = 0;
  for (; k + kRun <= size; k += kRun) {
    Vec<F> sums[kVectors] = {};
    for (int v = 0; v < kVectors && start != nullptr; ++v) sums[v] = load(start + k + v * kLanes<F>);
    for (std::int64_t row = 0; row < rows; ++row) {
      const F weight = weights[row];
      for (int v = 0; v < kVectors; ++v) sums[v] += weight * load(matrix + row * size + k + v * kLanes<F>);
    }
    for (int v = 0; v < kVectors; ++v) store(out + k + v * kLanes<F>, sums[v]);
  }
  for (; k < size; k += kLanes<F>) {
    const int width = lanes_at<F>(k, size);
    Vec<F> sum = start == nullptr ? Vec<F>{} : load(start + k, width);
    for (std::int64_t row = 0; row < rows; ++row) sum += weights[row] * load(matrix + row * size + k, width);
    store(out + k, sum, width);
  }
}

// Scores to weights in place; padding gets 0, and where all is padding NaN.
template <class F>
void softmax(F* scores, const bool* padding, std::int64_t size) {
  const auto padded = [&](std::int64_t s) { return padding != nullptr && padding[s]; };
  F highest = static_cast<F>(-HUGE_VAL);
  for (std::int64_t s = 0; s < size; ++s) {
    if (!padded(s) && scores[s] > highest) highest = scores[s];
  }
  F sum = 0;
  for (std::int64_t s = 0; s < size; ++s) {
    scores[s] = padded(s) ? F(0) : std::exp(scores[s] - highest);
    sum += scores[s];
  }
  for (std::int64_t s = 0; s < size; ++s) scores[s] /= sum;
}

template <class F>
void attend(const AttentionForward<F>& step, std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t s_size = step.source_size, h_size = step.h_size;
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const std::int64_t source_row = step.rows == nullptr ? row : step.rows[row];
    F* const weights = step.weights + row * s_size;
    dot_rows(step.h + row * h_size, step.keys + source_row * s_size * h_size, s_size, h_size, weights);
    softmax(weights, step.padding == nullptr ? nullptr : step.padding + source_row * s_size, s_size);
    sum_rows<F>(
        weights, step.values + source_row * s_size * h_size, s_size, h_size, nullptr, step.context + row * h_size);
  }
}

template <class F>
void attend_backward(const AttentionBackward<F>& step, std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t s_size = step.source_size, h_size = step.h_size;
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const std::int64_t at = row * s_size;
    F* const grad = step.grad_scores + at;
    const F* const weights = step.weights + at;
    dot_rows(step.grad_context + row * h_size, step.values + at * h_size, s_size, h_size, grad);
    F mean = 0;
    for (std::int64_t s = 0; s < s_size; ++s) {
      if (step.grad_weights != nullptr) grad[s] += step.grad_weights[at + s];
      mean += weights[s] * grad[s];
    }
    for (std::int64_t s = 0; s < s_size; ++s) grad[s] = weights[s] * (grad[s] - mean);
    sum_rows<F>(grad, step.keys + at * h_size, s_size, h_size, step.grad_h + row * h_size, step.grad_h + row * h_size);
  }
}

template <class F>
void output(
    const OutputForward<F>& step, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
    std::int64_t row_end) {
  const Columns columns{step.h_size, 1};
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    multiply_block(
        step.product, columns, block, step.undropped, step.h_size, step.undropped, step.h_size, row_begin, row_end);
    for (int v = 0; v < 2; ++v) {
      const VectorColumns place = vector_columns<F>(columns, block, v);
      for (std::int64_t row = row_begin; row < row_end && place.width > 0; ++row) {
        const std::int64_t at = row * step.h_size + place.begin;
        const Vec<F> y = tanh(load(step.undropped + at, place.width));
        store(step.undropped + at, y, place.width);
        if (step.dropout != nullptr) store(step.out + at, y * load(step.dropout + at, place.width), place.width);
      }
    }
  }
}

template <class F>
void input_gradient(
    const InputGradient<F>& step, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
    std::int64_t row_end) {
  const Columns columns{step.h_size, 1};
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    multiply_block(
        step.product, columns, block, step.grad, step.h_size, step.grad_out, step.h_size, row_begin, row_end);
    if (step.dropout == nullptr && step.undropped == nullptr) continue;
    for (int v = 0; v < 2; ++v) {
      const VectorColumns place = vector_columns<F>(columns, block, v);
      for (std::int64_t row = row_begin; row < row_end && place.width > 0; ++row) {
        const std::int64_t at = row * step.h_size + place.begin;
        Vec<F> grad = load(step.grad + at, place.width);
        if (step.dropout != nullptr) grad *= load(step.dropout + at, place.width);
        if (step.undropped != nullptr) {
          const Vec<F> y = load(step.undropped + at, place.width);
          grad *= 1 - y * y;
        }
        store(step.grad + at, grad, place.width);
      }
    }
  }
}

}  // namespace
}  // namespace g2lstm
