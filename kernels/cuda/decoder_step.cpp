// One step of beam search on CUDA: no noise, no dropout, no gradients.
#include "../binding/step.h"
#include "operators.h"

namespace g2lstm::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> decoder_step(
    const Tensor& x, const Tensor& h, const Tensor& c_given, const Tensor& feed, at::TensorList w_ih,
    at::TensorList w_hh, at::TensorList bias, const OptionalTensor& keys_given, const OptionalTensor& values_given,
    const OptionalTensor& padding_given, const OptionalTensor& source_rows_given, const OptionalTensor& w_out,
    double temperature, bool hard) {
  const GateOptions gates(temperature, 0.0, "step", hard);
  DecoderStepSizes size(x, h, c_given, feed, w_ih, w_hh, bias);
  const bool attends = keys_given.has_value();
  if (attends) {
    size.check_memory(x, keys_given, values_given, padding_given, w_out);
    size.check_source_rows(x, source_rows_given);
  }
  const Context context(x);
  const auto dtype = x.scalar_type();
  const Tensor c = c_given.to(state_dtype(x)).contiguous();
  const Tensor h_next = at::empty({size.layers, size.rows, size.units}, x.options());
  const Tensor c_next = at::empty(h_next.sizes(), c.options());
  Tensor input = at::cat({x, feed}, 1);
  Tensor a = at::empty({size.rows, 4 * size.units}, x.options());
  for (std::int64_t layer = 0; layer < size.layers; ++layer) {
    const OptionalTensor layer_bias = bias.empty() ? std::nullopt : OptionalTensor(bias[layer].contiguous());
    product(a, layer_bias, input, w_ih[layer].t());
    a.addmm_(h[layer], w_hh[layer].t());
    input = h_next[layer];
    for_type(dtype, [&](auto type) {
      using T = decltype(type);
      ForwardStep<T> step;
      step.gates = gates.spec<State<T>>();
      step.a = data<T>(a);
      step.c = data<State<T>>(c[layer]);
      step.n_rows = size.rows;
      step.h_size = size.units;
      step.c_next = mutable_data<State<T>>(c_next[layer]);
      step.h_next = mutable_data<T>(input);
      launch(step, context.stream);
    });
  }
  if (!attends) return {input.clone(), h_next, c_next.to(dtype), at::empty({size.rows, 0}, x.options())};

  const Tensor keys = keys_given->contiguous(), values = values_given->contiguous();
  OptionalTensor padding;
  if (padding_given.has_value()) padding = padding_given->contiguous();
  const OptionalTensor source_rows = to_device(source_rows_given, x.device());
  const Tensor weights = at::empty({size.rows, size.source}, c.options());
  Tensor out = at::empty({size.rows, size.units}, x.options());
  at::mm_out(out, input, w_out->narrow(1, w_out->size(1) - size.units, size.units).t());
  for_type(dtype, [&](auto type) {
    using T = decltype(type);
    AttentionForward<T> step;
    step.h = data<T>(input);
    step.keys = data<T>(keys);
    step.values = data<T>(values);
    step.padding = data_or_null<bool>(padding);
    step.source_rows = data_or_null<std::int64_t>(source_rows);
    step.n_sources = size.source_rows;
    step.pre = data<T>(out);
    step.weights = mutable_data<State<T>>(weights);
    step.out = mutable_data<T>(out);
    step.n_rows = size.rows;
    step.s_size = size.source;
    step.h_size = size.units;
    launch(step, context.stream);
  });
  return {out, h_next, c_next.to(dtype), weights.to(dtype)};
}

}  // namespace

void implement_decoder_step(torch::Library& library) { library.impl("decoder_step", decoder_step); }

}  // namespace g2lstm::cuda
