// Dropout and the cross-entropy's rows.
#pragma once

#include "core.h"
#include "vec.h"

namespace g2lstm {
namespace {

// Blocks of 64 elements: element e of block n is dropped by word e / 16 of counter 16 n + e % 16.
template <class F>
void dropout(const Dropout<F>& task, std::int64_t block_begin, std::int64_t block_end) {
  using Math = VecMath<F>;
  using Word = typename Math::Word;
  constexpr int kCounters = kDropoutBlock / 4;
  for (std::int64_t block = block_begin; block < block_end; ++block) {
    for (int first = 0; first < kCounters; first += kLanes<F>) {
      const std::uint64_t number = static_cast<std::uint64_t>(block) * kCounters + first;
      // The low word alone counts up within a block, which never crosses 2^32.
      const Words<Word> words = philox4x32<Math>(
          {{count_units<Word>(number & kLow), fill<Word>(number >> 32), fill<Word>(0), fill<Word>(kLow)}}, task.seed);
      for (int word = 0; word < 4; ++word) {
        const std::int64_t at = block * kDropoutBlock + word * kCounters + first;
        if (at >= task.size) break;
        const int width = task.size - at < kLanes<F> ? static_cast<int>(task.size - at) : kLanes<F>;
        const Vec<F> x = load(task.x + at, width);
        const Vec<F> dropped = Math::where_below(words.w[word], task.threshold, Vec<F>{} + 1);
        store(task.y + at, x * ((1 - dropped) * task.scale), width);
      }
    }
  }
}

template <class F>
void cross_entropy(const CrossEntropy<F>& task, std::int64_t row_begin, std::int64_t row_end) {
  using V = Vec<F>;
  const std::int64_t size = task.classes, whole = size - size % kLanes<F>;
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const F* const logits = task.logits + row * size;
    V high = V{} - static_cast<F>(HUGE_VAL);
    for (std::int64_t k = 0; k < whole; k += kLanes<F>) {
      const V x = load(logits + k);
      high = x > high ? x : high;
    }
    F highest = static_cast<F>(-HUGE_VAL);
    for (int lane = 0; lane < kLanes<F>; ++lane) highest = high[lane] > highest ? high[lane] : highest;
    for (std::int64_t k = whole; k < size; ++k) highest = logits[k] > highest ? logits[k] : highest;
    V exps{}, sums{};
    for (std::int64_t k = 0; k < whole; k += kLanes<F>) {
      const V x = load(logits + k);
      exps += exp(x - highest);
      sums += x - highest;
    }
    double normalizer = 0, sum = 0;
    for (int lane = 0; lane < kLanes<F>; ++lane) {
      normalizer += exps[lane];
      sum += sums[lane];
    }
    for (std::int64_t k = whole; k < size; ++k) {
      normalizer += std::exp(logits[k] - highest);
      sum += logits[k] - highest;
    }
    const double log_normalizer = std::log(normalizer);
    const std::int64_t target = task.targets[row];
    const bool counts = target != task.ignore_index;
    task.log_normalizer[row] = log_normalizer + highest;
    task.nll[row] = counts ? log_normalizer - (logits[target] - highest) : 0.0;
    task.smooth[row] = counts ? log_normalizer * static_cast<double>(size) - sum : 0.0;
  }
}

template <class F>
void cross_entropy_backward(const CrossEntropy<F>& task, std::int64_t row_begin, std::int64_t row_end) {
  using V = Vec<F>;
  const std::int64_t size = task.classes;
  const F scale = task.grad_nll + task.grad_smooth * static_cast<F>(size);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const F* const logits = task.logits + row * size;
    F* const grad = task.grad + row * size;
    const bool counts = task.targets[row] != task.ignore_index;
    // In two parts, since logits of some size leave few digits of F for what is behind their point.
    const F log_normalizer = static_cast<F>(task.log_normalizer[row]);
    const F rest = static_cast<F>(task.log_normalizer[row] - log_normalizer);
    for (std::int64_t k = 0; k < size; k += kLanes<F>) {
      const int width = size - k < kLanes<F> ? static_cast<int>(size - k) : kLanes<F>;
      V out{};
      if (counts) out = exp(load(logits + k, width) - log_normalizer - rest) * scale - task.grad_smooth;
      store(grad + k, out, width);
    }
    if (counts) grad[task.targets[row]] -= task.grad_nll;
  }
}

}  // namespace
}  // namespace g2lstm
