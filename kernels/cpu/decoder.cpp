// The teacher-forced decoder on the CPU. Half types are computed in float32 and rounded at the end.
#include <torch/library.h>

#include "../binding/decoder.h"
#include "decoder_run.h"
#include "matrix.h"

namespace g2lstm {
namespace {

std::vector<Tensor> all_to(at::TensorList tensors, at::ScalarType dtype) {
  std::vector<Tensor> out;
  for (const Tensor& tensor : tensors) out.push_back(tensor.to(dtype).contiguous());
  return out;
}

OptionalTensor to_state(const OptionalTensor& tensor, at::ScalarType dtype) {
  return tensor.has_value() ? OptionalTensor(tensor->to(dtype).contiguous()) : std::nullopt;
}

// Rows of a (A, B, C) tensor as (A B, C).
Tensor flat(const Tensor& tensor) { return tensor.flatten(0, -2); }

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> decoder(
    const Tensor& x_given, const Tensor& h_0_given, const Tensor& c_0_given, const Tensor& feed_0_given,
    at::TensorList w_ih_given, at::TensorList w_hh_given, at::TensorList bias_given, const OptionalTensor& source_given,
    const OptionalTensor& padding_given, const OptionalTensor& w_query, const OptionalTensor& w_out,
    const OptionalTensor& dropout_given, const OptionalTensor& seed, const OptionalTensor& rows_given,
    double temperature, double noise_prob, c10::string_view noise_sharing, bool hard, bool need_gates) {
  DecoderRun run(GateOptions(temperature, noise_prob, noise_sharing, hard));
  DecoderSizes size(x_given, h_0_given, c_0_given, feed_0_given, w_ih_given, w_hh_given, bias_given);
  size.check_attention(x_given, source_given, padding_given, w_query, w_out);
  check_seed(seed);
  check_rows(rows_given, size.rows);
  size.check_dropout(x_given, dropout_given);
  const auto dtype = state_dtype(x_given), given = x_given.scalar_type();
  const Tensor x = x_given.to(dtype).contiguous();
  const auto options = x.options();
  const auto bias = all_to(bias_given, dtype);
  run.take(
      size, h_0_given, c_0_given, feed_0_given, all_to(w_ih_given, dtype), all_to(w_hh_given, dtype), bias,
      to_state(dropout_given, dtype), dtype);
  const OptionalTensor rows = contiguous(rows_given);
  run.noise = make_noise(run.options, seed, rows, 0);

  run.gates = at::empty({size.layers, size.steps, size.rows, 4 * size.units}, options);
  Tensor a_x = flat(run.gates[0]);
  const Tensor w_x = run.w_ih[0].narrow(1, 0, size.inputs).t();
  matrix_product_out(a_x, flat(x), w_x, bias.empty() ? std::nullopt : OptionalTensor(bias[0]));
  run.cells = at::empty({size.layers, size.steps, size.rows, size.units}, options);
  run.hiddens = at::empty_like(run.cells);
  run.outputs = at::empty({size.steps, size.rows, size.units}, options);
  run.z = at::empty({size.layers, need_gates ? size.steps : 0, size.rows, 2 * size.units}, options);
  run.attention = at::empty({size.steps, size.rows, size.source}, options);
  const bool attends = source_given.has_value();
  run.undropped = attends && dropout_given.has_value() ? at::empty_like(run.outputs) : at::empty({0}, options);
  run.keys = at::empty({0}, options), run.values = at::empty({0}, options);
  if (attends) {
    const Tensor states = source_given->to(dtype).transpose(0, 1).contiguous();
    const auto of_states = [&](const Tensor& weight) {
      return matrix_product(flat(states), weight).view({size.rows, size.source, size.units});
    };
    run.attend(
        of_states(w_query->to(dtype)), of_states(w_out->to(dtype).narrow(1, 0, size.source_units).t()), padding_given,
        w_out->to(dtype));
  }
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::decoder", [&] { run.forward<scalar_t>(); });
  const auto round = [&](const Tensor& tensor) { return tensor.to(given, false, true); };
  const std::int64_t last = size.steps - 1;
  const Tensor outputs = run.outputs.to(given);
  return {
      outputs,       round(run.hiddens.select(1, last)),
      round(run.cells.select(1, last)), round(run.outputs[last]),
      run.attention, run.z,
      run.gates,     run.cells,
      run.hiddens,   run.undropped,
      run.keys,      run.values};
}

// The gradient of a weight that multiplies what a step made for the next one: `first` and then `later` but its last.
Tensor shifted_weight_gradient(const Tensor& grad, const Tensor& first, const Tensor& later) {
  const std::int64_t steps = grad.size(0) - 1;
  Tensor out = steps > 0 ? matrix_product(flat(grad.narrow(0, 1, steps)).t(), flat(later.narrow(0, 0, steps)))
                         : at::zeros({grad.size(2), later.size(2)}, grad.options());
  return is_zero(first) ? out : out.addmm_(grad[0].t(), first);
}

std::tuple<
    Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor, Tensor,
    Tensor>
decoder_backward(
    const OptionalTensor& grad_outputs, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const OptionalTensor& grad_feed_n, const OptionalTensor& grad_attention, const Tensor& x_given,
    const Tensor& h_0_given, const Tensor& c_0_given, const Tensor& feed_0_given, at::TensorList w_ih_given,
    at::TensorList w_hh_given, const OptionalTensor& source_given, const OptionalTensor& padding_given,
    const OptionalTensor& w_query_given, const OptionalTensor& w_out_given, const OptionalTensor& dropout_given,
    const Tensor& outputs, const Tensor& attention, const Tensor& gates, const Tensor& cells, const Tensor& hiddens,
    const Tensor& undropped, const Tensor& keys, const Tensor& values, const OptionalTensor&, const OptionalTensor&,
    double temperature, double noise_prob, c10::string_view noise_sharing, bool hard) {
  DecoderRun run(GateOptions(temperature, noise_prob, noise_sharing, hard));
  DecoderSizes size(x_given, h_0_given, c_0_given, feed_0_given, w_ih_given, w_hh_given, {});
  size.check_attention(x_given, source_given, padding_given, w_query_given, w_out_given);
  size.check_dropout(x_given, dropout_given);
  if (grad_outputs.has_value()) check_shape("grad_outputs", *grad_outputs, outputs.sizes());
  if (grad_attention.has_value()) check_shape("grad_attention", *grad_attention, attention.sizes());
  const auto dtype = state_dtype(x_given), given = x_given.scalar_type();
  check_shape("outputs", outputs, {size.steps, size.rows, size.units});
  check_saved("attention", attention, {size.steps, size.rows, size.source}, dtype);
  check_saved("gates", gates, {size.layers, size.steps, size.rows, 4 * size.units}, dtype);
  check_saved("cells", cells, {size.layers, size.steps, size.rows, size.units}, dtype);
  check_saved("hiddens", hiddens, cells.sizes(), dtype);
  if (source_given.has_value()) {
    check_saved("keys", keys, {size.rows, size.source, size.units}, dtype);
    check_saved("values", values, keys.sizes(), dtype);
    if (dropout_given.has_value()) check_saved("undropped", undropped, outputs.sizes(), dtype);
  }
  const Tensor x = x_given.to(dtype).contiguous();
  const auto options = x.options();
  run.take(
      size, h_0_given, c_0_given, feed_0_given, all_to(w_ih_given, dtype), all_to(w_hh_given, dtype), {},
      to_state(dropout_given, dtype), dtype);
  run.gates = gates, run.cells = cells, run.hiddens = hiddens, run.attention = attention;
  run.outputs = outputs.to(dtype).contiguous();
  run.undropped = undropped;
  const bool attends = source_given.has_value();
  if (attends) run.attend(keys, values, padding_given, w_out_given->to(dtype));

  const auto own = [&](const OptionalTensor& grad, const Tensor& like) {
    return grad.has_value() ? at::empty_like(like).copy_(*grad) : at::zeros_like(like);
  };
  run.grad_h = own(grad_h_n, run.h_0);
  run.grad_c = own(grad_c_n, run.c_0);
  Tensor grad_out = to_state(grad_outputs, dtype).value_or(Tensor());
  if (grad_feed_n.has_value()) {
    grad_out = grad_out.defined() ? grad_out.clone() : at::zeros_like(run.outputs);
    grad_out[size.steps - 1].add_(*grad_feed_n);
  }
  run.grad_out = grad_out;
  run.grad_weights = to_state(grad_attention, dtype);
  run.grad_a = at::empty_like(gates);
  run.grad_bias = at::zeros({size.layers, 4 * size.units}, options);
  run.grad_context = at::empty_like(run.outputs);
  run.grad_scores = at::empty_like(attention);
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::decoder_backward", [&] { run.backward<scalar_t>(); });

  // What the steps share: one product over all of them for each weight.
  std::vector<Tensor> grad_w_ih, grad_w_hh, grad_bias;
  for (std::int64_t layer = 0; layer < size.layers; ++layer) {
    const Tensor grad_a = run.grad_a[layer];
    if (layer == 0) {
      grad_w_ih.push_back(at::cat(
          {matrix_product(flat(grad_a).t(), flat(x)), shifted_weight_gradient(grad_a, run.feed_0, run.outputs)}, 1));
    } else {
      Tensor inputs = hiddens[layer - 1];
      if (run.dropout.has_value()) inputs = inputs * run.dropout->select(1, layer - 1);
      grad_w_ih.push_back(matrix_product(flat(grad_a).t(), flat(inputs)));
    }
    grad_w_hh.push_back(shifted_weight_gradient(grad_a, run.h_0[layer], hiddens[layer]).to(given));
    grad_w_ih.back() = grad_w_ih.back().to(given);
    grad_bias.push_back(run.grad_bias[layer].to(given, false, true));
    run.grad_h[layer].addmm_(grad_a[0], run.w_hh[layer]);
  }
  const Tensor first = run.grad_a[0];
  const Tensor grad_x = matrix_product(flat(first), run.w_ih[0].narrow(1, 0, size.inputs)).view(x.sizes());
  const Tensor grad_feed = matrix_product(first[0], run.w_ih[0].narrow(1, size.inputs, size.units));

  const auto none = [&] { return at::empty({0}, options); };
  Tensor grad_source = none(), grad_w_query = none(), grad_w_out = none();
  if (attends) {
    const Tensor states = source_given->to(dtype).transpose(0, 1).contiguous();
    const Tensor w_query = w_query_given->to(dtype), w_out = w_out_given->to(dtype);
    const Tensor top = hiddens[size.layers - 1];
    const auto over_time = [](const Tensor& weights, const Tensor& vectors) {  // (T, B, S), (T, B, H) -> (B S, H)
      return flat(at::bmm(weights.permute({1, 2, 0}), vectors.transpose(0, 1)));
    };
    const Tensor grad_keys = over_time(run.grad_scores, top);
    const Tensor grad_values = over_time(attention, run.grad_context);
    const Tensor by_values = matrix_product(grad_values, w_out.narrow(1, 0, size.source_units));
    grad_source = matrix_product(grad_keys, w_query.t(), by_values)
                      .view(states.sizes())
                      .transpose(0, 1)
                      .to(given)
                      .contiguous();
    grad_w_query = matrix_product(flat(states).t(), grad_keys).to(given);
    const Tensor of_context = matrix_product(grad_values.t(), flat(states));
    grad_w_out = at::cat({of_context, matrix_product(flat(run.grad_context).t(), flat(top))}, 1).to(given);
  }
  return {
      grad_x.to(given), run.grad_h.to(given), run.grad_c.to(c_0_given.scalar_type()), grad_feed.to(given),
      grad_w_ih,        grad_w_hh,            grad_bias,                              grad_source,
      grad_w_query,     grad_w_out};
}

}  // namespace

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) {
  m.impl("decoder", decoder);
  m.impl("decoder_backward", decoder_backward);
}

}  // namespace g2lstm
