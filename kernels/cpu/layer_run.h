// The steps of a layer, whatever multiplies its recurrent weights.
#pragma once

#include "tensors.h"

namespace g2lstm {

// One more than the last row that is active at each step.
inline std::vector<std::int64_t> active_ends(const OptionalTensor& lengths, std::int64_t n_steps, std::int64_t n_rows) {
  std::vector<std::int64_t> ends(n_steps, lengths.has_value() ? 0 : n_rows);
  if (!lengths.has_value()) return ends;
  const auto* length = lengths->const_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < n_rows; ++row) {
    for (std::int64_t t = 0; t < length[row]; ++t) ends[t] = row + 1;
  }
  return ends;
}

// lengths where some sequence is shorter than T, else none
inline OptionalTensor ragged(const OptionalTensor& lengths, std::int64_t n_steps) {
  if (!lengths.has_value() || lengths->min().item<std::int64_t>() == n_steps) return std::nullopt;
  return lengths->contiguous();
}

// Runs the steps from the inputs' share of the pre-activations in `gates`, and returns h_n.
//
// recur(step) adds the recurrent product: it sets step.product, or adds to the first step.product_end rows of step.a.
template <class F, class Recur>
Tensor run_forward(
    const LayerShape& size, const Tensor& h_0, const Tensor& c_0, const OptionalTensor& lengths,
    const GateSpec<F>& spec, const Noise& noise, bool reverse, const Recur& recur, const Tensor& gates,
    const Tensor& outputs, const Tensor& cells, const Tensor& z) {
  const Columns columns{size.units, 4};
  const std::int64_t state_size = size.rows * size.units;
  const auto ends = active_ends(lengths, size.steps, size.rows);
  Tensor states[2];
  if (lengths.has_value()) {
    for (Tensor& state : states) state = at::empty_like(h_0);
  }
  F* const out = outputs.mutable_data_ptr<F>();
  F* const cell = cells.mutable_data_ptr<F>();
  const F* h = h_0.const_data_ptr<F>();
  const F* c = c_0.const_data_ptr<F>();
  for (std::int64_t i = 0; i < size.steps; ++i) {
    const std::int64_t t = reverse ? size.steps - 1 - i : i;
    ForwardStep<F> step;
    step.a = gates.mutable_data_ptr<F>() + 4 * t * state_size;
    step.c = c;
    step.c_next = cell + t * state_size;
    step.h_next = out + t * state_size;
    step.h = h;
    step.h_state = lengths.has_value() ? states[i % 2].mutable_data_ptr<F>() : nullptr;
    step.z = z.numel() > 0 ? z.mutable_data_ptr<F>() + 2 * t * state_size : nullptr;
    step.h_size = size.units;
    step.t = t;
    step.product_end = ends[t];
    step.gates = spec;
    step.noise = noise;
    step.activity.lengths = data_or_null<std::int64_t>(lengths);
    recur(step);
    split(core<F>().blocks(columns), size.rows, [&](auto... range) { core<F>().forward(step, range...); });
    h = lengths.has_value() ? step.h_state : step.h_next;
    c = step.c_next;
  }
  const std::int64_t last = reverse ? 0 : size.steps - 1;
  return lengths.has_value() ? states[(size.steps - 1) % 2] : outputs[last].clone();
}

}  // namespace g2lstm
