// One step of beam search on the CPU: no noise, no dropout, no gradients.
#include <torch/library.h>

#include "tensors.h"

namespace g2lstm {
namespace {

void check_memory(
    const Tensor& x, const Tensor& h, const Tensor& keys, const OptionalTensor& values, const OptionalTensor& padding,
    const OptionalTensor& source_rows, const OptionalTensor& w_out) {
  TORCH_CHECK_VALUE(values.has_value() && w_out.has_value(), "attention needs keys, values and w_out, got None");
  TORCH_CHECK_VALUE(
      keys.dim() == 3 && keys.size(2) == h.size(2), "keys must be (B', S, H) with H = ", h.size(2), ", got ",
      keys.sizes());
  check_shape("values", *values, keys.sizes());
  for (const Tensor& tensor : {keys, *values, *w_out}) check_like("the attention", tensor, x);
  TORCH_CHECK_VALUE(
      w_out->dim() == 2 && w_out->size(0) == h.size(2) && w_out->size(1) >= h.size(2), "w_out must be (H, E + H), got ",
      w_out->sizes());
  if (padding.has_value()) {
    check_shape("source_padding", *padding, {keys.size(0), keys.size(1)});
    TORCH_CHECK_VALUE(
        padding->scalar_type() == at::kBool, "source_padding must be bool, got ", padding->scalar_type());
  }
  if (!source_rows.has_value()) {
    TORCH_CHECK_VALUE(
        keys.size(0) == x.size(0), "keys must have ", x.size(0), " rows, or source_rows say whose they are, got ",
        keys.size(0));
    return;
  }
  check_rows(source_rows, x.size(0));
  TORCH_CHECK_VALUE(
      source_rows->min().item<std::int64_t>() >= 0 && source_rows->max().item<std::int64_t>() < keys.size(0),
      "source_rows must be between 0 and ", keys.size(0) - 1);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> decoder_step(
    const Tensor& x_given, const Tensor& h_given, const Tensor& c_given, const Tensor& feed_given,
    at::TensorList w_ih, at::TensorList w_hh, at::TensorList bias, const OptionalTensor& keys_given,
    const OptionalTensor& values_given, const OptionalTensor& padding_given, const OptionalTensor& rows_given,
    const OptionalTensor& w_out, double temperature, bool hard) {
  const GateOptions options(temperature, 0.0, "step", hard);
  check_supported(x_given);
  TORCH_CHECK_VALUE(
      x_given.dim() == 2 && x_given.size(0) > 0, "x must be (B, I) with at least one row, got ", x_given.sizes());
  TORCH_CHECK_VALUE(h_given.dim() == 3, "h must be (L, B, H), got ", h_given.dim(), " dimensions");
  const std::int64_t layers = h_given.size(0), rows = x_given.size(0), units = h_given.size(2);
  TORCH_CHECK_VALUE(
      static_cast<std::int64_t>(w_ih.size()) == layers && w_hh.size() == w_ih.size() &&
          (bias.empty() || bias.size() == w_ih.size()),
      "w_ih, w_hh and bias must hold one tensor for each of ", layers, " cells, got ", w_ih.size(), ", ", w_hh.size(),
      " and ", bias.size());
  check_shape("h", h_given, {layers, rows, units});
  check_shape("c", c_given, {layers, rows, units});
  check_shape("feed", feed_given, {rows, units});
  for (const Tensor& tensor : {h_given, c_given, feed_given}) check_like("a state", tensor, x_given);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    check_shape("w_ih", w_ih[layer], {4 * units, units + (layer == 0 ? x_given.size(1) : 0)});
    check_shape("w_hh", w_hh[layer], {4 * units, units});
    check_like("w_ih", w_ih[layer], x_given);
    check_like("w_hh", w_hh[layer], x_given);
    if (!bias.empty()) check_shape("bias", bias[layer], {4 * units});
  }
  if (keys_given.has_value()) {
    check_memory(x_given, h_given, *keys_given, values_given, padding_given, rows_given, w_out);
  }

  const auto dtype = state_dtype(x_given), given = x_given.scalar_type();
  const Tensor h = h_given.to(dtype), c = c_given.to(dtype).contiguous();
  Tensor h_next = at::empty({layers, rows, units}, c.options()), c_next = at::empty_like(h_next);
  Tensor input = at::cat({x_given, feed_given}, 1).to(dtype);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const Tensor w = w_ih[layer].to(dtype).t();
    Tensor a = bias.empty() ? at::mm(input, w) : at::addmm(bias[layer].to(dtype), input, w);
    a.addmm_(h[layer], w_hh[layer].to(dtype).t());
    input = h_next[layer];
    AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::decoder_step", [&] {
      ForwardStep<scalar_t> step;
      step.a = a.mutable_data_ptr<scalar_t>();
      step.c = c.const_data_ptr<scalar_t>() + layer * rows * units;
      step.c_next = c_next.mutable_data_ptr<scalar_t>() + layer * rows * units;
      step.h_next = input.mutable_data_ptr<scalar_t>();
      step.h_size = units;
      step.gates = options.spec<scalar_t>();
      split(core<scalar_t>().blocks({units, 4}), rows, [&](auto... range) { core<scalar_t>().forward(step, range...); });
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

}  // namespace

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) { m.impl("decoder_step", decoder_step); }

}  // namespace g2lstm
