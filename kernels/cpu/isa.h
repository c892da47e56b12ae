// The kernels of one instruction set as a table of functions; included once by each isa_*.cpp.
#pragma once

#include "attention.h"
#include "elementwise.h"
#include "integers.h"
#include "step.h"

namespace g2lstm {
namespace {

template <class F>
void words(
    const Noise& noise, std::int64_t t, std::int64_t h_size, std::int64_t* out, std::int64_t word_stride,
    std::int64_t row_begin, std::int64_t row_end) {
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t unit = 0; unit < h_size; unit += kLanes<F>) {
      const Words<Word<F>> found = words_at<F>(noise, unit, row, t);
      for (int word = 0; word < 4; ++word) {
        for (int lane = 0; lane < kLanes<F> && unit + lane < h_size; ++lane) {
          out[word * word_stride + row * h_size + unit + lane] = word_of_lane(found.w[word], lane);
        }
      }
    }
  }
}

template <class F>
constexpr Core<F> make_core(const char* name) {
  return {
      name,
      kLanes<F>,
      kTileRows,
      pack<F>,
      pack_left<F>,
      multiply_packed<F>,
      forward<F>,
      backward<F>,
      attend<F>,
      attend_backward<F>,
      output<F>,
      input_gradient<F>,
      dropout<F>,
      cross_entropy<F>,
      cross_entropy_backward<F>,
      quantize<F>,
      multiply_integers<F>,
      words<F>};
}

}  // namespace
}  // namespace g2lstm
