// A decoder's step, whatever multiplies its cells' weights.
#pragma once

#include "../binding/step.h"
#include "tensors.h"

namespace g2lstm {

// product(layer, input, h) returns the cell's pre-activations (B, 4H), in the state's dtype as input and h are.
template <class Product>
std::tuple<Tensor, Tensor, Tensor, Tensor> run_decoder_step(
    const DecoderStepShape& size, const Tensor& x_given, const Tensor& h_given, const Tensor& c_given,
    const Tensor& feed_given, const Product& product, const OptionalTensor& keys_given,
    const OptionalTensor& values_given, const OptionalTensor& padding_given, const OptionalTensor& rows_given,
    const OptionalTensor& w_out, double temperature, bool hard) {
  const GateOptions options(temperature, 0.0, "step", hard);
  if (keys_given.has_value()) size.check_source_rows(x_given, rows_given);
  const std::int64_t layers = size.layers, rows = size.rows, units = size.units;
  const auto dtype = state_dtype(x_given), given = x_given.scalar_type();
  const Tensor h = h_given.to(dtype), c = c_given.to(dtype).contiguous();
  Tensor h_next = at::empty({layers, rows, units}, c.options()), c_next = at::empty_like(h_next);
  Tensor input = at::cat({x_given, feed_given}, 1).to(dtype);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    Tensor a = product(layer, input, h[layer]);
    input = h_next[layer];
    AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::decoder_step", [&] {
      ForwardStep<scalar_t> step;
      step.a = a.mutable_data_ptr<scalar_t>();
      step.c = c.const_data_ptr<scalar_t>() + layer * rows * units;
      step.c_next = c_next.mutable_data_ptr<scalar_t>() + layer * rows * units;
      step.h_next = input.mutable_data_ptr<scalar_t>();
      step.h_size = units;
      step.gates = options.spec<scalar_t>();
      split(core<scalar_t>().blocks({units, 4}), rows, [&](auto... range) {
        core<scalar_t>().forward(step, range...);
      });
    });
  }
  if (!keys_given.has_value()) {
    return {input.to(given, false, true), h_next.to(given), c_next.to(given), at::empty({rows, 0}, x_given.options())};
  }

  const Tensor keys = keys_given->to(dtype).contiguous(), values = values_given->to(dtype).contiguous();
  const OptionalTensor padding = contiguous(padding_given), source_rows = contiguous(rows_given);
  Tensor out = at::empty({rows, units}, c.options());
  Tensor weights = at::empty({rows, keys.size(1)}, c.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::decoder_step", [&] {
    AttentionForward<scalar_t> step;
    step.keys = keys.const_data_ptr<scalar_t>();
    step.values = values.const_data_ptr<scalar_t>();
    step.padding = padding.has_value() ? padding->const_data_ptr<bool>() : nullptr;
    step.rows = data_or_null<std::int64_t>(source_rows);
    step.source_size = keys.size(1);
    step.h_size = units;
    step.h = input.const_data_ptr<scalar_t>();
    step.weights = weights.mutable_data_ptr<scalar_t>();
    step.context = out.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows, 1, [&](auto begin, auto end) { core<scalar_t>().attend(step, begin, end); });
  });
  out.addmm_(input, w_out->to(dtype).narrow(1, w_out->size(1) - units, units).t()).tanh_();
  return {out.to(given), h_next.to(given), c_next.to(given), weights.to(given)};
}

}  // namespace g2lstm
