// The layer on the CPU. Half types are computed in float32 and rounded at the end.
#include <torch/library.h>

#include "layer_run.h"
#include "matrix.h"

namespace g2lstm {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer(
    const Tensor& x_given, const Tensor& h_0_given, const Tensor& c_0_given, const Tensor& w_ih_given,
    const Tensor& w_hh_given, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
    const OptionalTensor& lengths_given, const OptionalTensor& seed, const OptionalTensor& rows_given,
    std::int64_t stream, double temperature, double noise_prob, c10::string_view noise_sharing, bool hard,
    bool need_gates) {
  const GateOptions options(temperature, noise_prob, noise_sharing, hard);
  const LayerSizes size(x_given, h_0_given, c_0_given, w_ih_given, w_hh_given, b_ih, b_hh);
  check_lengths(lengths_given, size.steps, size.rows);
  check_seed(seed);
  check_rows(rows_given, size.rows);
  const auto dtype = state_dtype(x_given);
  const auto as_state = [&](const Tensor& tensor) { return tensor.to(dtype).contiguous(); };
  const Tensor x = as_state(x_given), h_0 = as_state(h_0_given), c_0 = as_state(c_0_given);
  const Tensor w_ih = w_ih_given.to(dtype), w_hh = w_hh_given.to(dtype);
  const OptionalTensor lengths = ragged(lengths_given, size.steps), rows = contiguous(rows_given);

  const std::int64_t n_cells = size.steps * size.rows;
  Tensor gates = at::empty({size.steps, size.rows, 4 * size.units}, x.options());
  Tensor flat = gates.view({n_cells, 4 * size.units});
  Tensor bias;
  for (const OptionalTensor& part : {b_ih, b_hh}) {
    if (part.has_value()) bias = bias.defined() ? bias + part->to(dtype) : part->to(dtype);
  }
  matrix_product_out(
      flat, x.view({n_cells, size.inputs}), w_ih.t(),
      bias.defined() ? OptionalTensor(bias.contiguous()) : std::nullopt);
  Tensor outputs = at::empty({size.steps, size.rows, size.units}, x.options());
  Tensor cells = at::empty_like(outputs);
  Tensor z = at::empty({need_gates ? size.steps : 0, size.rows, 2 * size.units}, x.options());
  Tensor h_n;
  const Noise noise = make_noise(options, seed, rows, stream);
  const bool reverse = stream % 2 == 1;
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::layer", [&] {
    const auto run = [&](const auto& recur) {
      return run_forward<scalar_t>(
          size, h_0, c_0, lengths, options.spec<scalar_t>(), noise, reverse, recur, gates, outputs, cells, z);
    };
    if (size.steps == 1) {  // packed weights would serve one product alone, and take longer to make
      h_n = run([&](ForwardStep<scalar_t>&) { flat.addmm_(h_0, w_hh.t()); });
      return;
    }
    const PackedWeights<scalar_t> packed({w_hh}, {size.units, 4}, size.rows, /*transposed=*/true);
    h_n = run([&](ForwardStep<scalar_t>& step) {
      step.product = packed.product({{step.h, size.units, size.units}}, std::min(size.rows, step.product_end));
    });
  });
  const auto given = x_given.scalar_type();
  return {
      outputs.to(given), h_n.to(given), cells[reverse ? 0 : size.steps - 1].to(given, false, true), z, gates, cells};
}

template <class F>
void run_backward(
    const LayerSizes& size, const Tensor& grad_outputs, const Tensor& grad_h, const Tensor& grad_c, const Tensor& c_0,
    const Tensor& w_hh, const Tensor& gates, const Tensor& cells, const OptionalTensor& lengths,
    const GateSpec<F>& spec, bool reverse, const Tensor& grad_a, const Tensor& grad_bias) {
  const Columns columns{size.units, 1};
  const bool sums = splits_blocks_alone(core<F>().blocks(columns), size.rows);
  PackedWeights<F> packed;  // a single step has no later one
  if (size.steps > 1) packed = PackedWeights<F>({w_hh}, columns, size.rows);
  const std::int64_t state_size = size.rows * size.units;
  const auto ends = active_ends(lengths, size.steps, size.rows);
  const F* const cell = cells.const_data_ptr<F>();
  F* const grad = grad_a.mutable_data_ptr<F>();
  for (std::int64_t i = size.steps - 1; i >= 0; --i) {
    const std::int64_t t = reverse ? size.steps - 1 - i : i;
    const std::int64_t next = reverse ? t - 1 : t + 1, previous = reverse ? t + 1 : t - 1;
    BackwardStep<F> step;
    if (i < size.steps - 1) {
      const Operand<F> later{grad + 4 * next * state_size, 4 * size.units, 4 * size.units};
      step.product = packed.product({later}, ends[next]);
      step.product_end = ends[next];
    }
    step.grad_h = grad_h.mutable_data_ptr<F>();
    step.grad_out = grad_outputs.defined() ? grad_outputs.const_data_ptr<F>() + t * state_size : nullptr;
    step.grad_c = grad_c.mutable_data_ptr<F>();
    step.gates = gates.const_data_ptr<F>() + 4 * t * state_size;
    step.c = i > 0 ? cell + previous * state_size : c_0.const_data_ptr<F>();
    step.c_next = cell + t * state_size;
    step.grad_a = grad + 4 * t * state_size;
    step.grad_bias = sums ? grad_bias.mutable_data_ptr<F>() : nullptr;
    step.h_size = size.units;
    step.t = t;
    step.spec = spec;
    step.activity.lengths = data_or_null<std::int64_t>(lengths);
    split(core<F>().blocks(columns), size.rows, [&](auto... range) { core<F>().backward(step, range...); });
  }
  if (!sums) grad_bias.copy_(grad_a.view({-1, 4 * size.units}).sum(0));
}

// grad_w_hh: the sum over time of grad_a^T h, in one product where the outputs are the steps' h, and one for h_0.
Tensor recurrent_weight_gradient(
    const LayerSizes& size, const Tensor& grad_a, const Tensor& outputs, const Tensor& h_0,
    const OptionalTensor& lengths, bool reverse) {
  const std::int64_t steps = size.steps - 1;
  const auto flat = [](const Tensor& tensor) { return tensor.flatten(0, 1); };
  Tensor grad;
  if (steps > 0) {
    grad = matrix_product(
        flat(grad_a.narrow(0, reverse ? 0 : 1, steps)).t(), flat(outputs.narrow(0, reverse ? 1 : 0, steps)));
  } else {
    grad = at::zeros({4 * size.units, size.units}, grad_a.options());
  }
  if (is_zero(h_0)) return grad;
  Tensor first = grad_a[reverse ? steps : 0];
  if (reverse && lengths.has_value()) {
    first = grad_a.index({*lengths - 1, at::arange(size.rows, lengths->options())});
  }
  return grad.addmm_(first.t(), h_0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward(
    const OptionalTensor& grad_outputs, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const Tensor& x_given, const Tensor& h_0_given, const Tensor& c_0_given, const Tensor& w_ih_given,
    const Tensor& w_hh_given, const Tensor& outputs, const Tensor& gates, const Tensor& cells,
    const OptionalTensor& lengths_given, const OptionalTensor&, const OptionalTensor&, std::int64_t stream,
    double temperature, double noise_prob, c10::string_view noise_sharing, bool hard, bool need_x) {
  const GateOptions options(temperature, noise_prob, noise_sharing, hard);
  const LayerSizes size(x_given, h_0_given, c_0_given, w_ih_given, w_hh_given, std::nullopt, std::nullopt);
  const auto dtype = state_dtype(x_given), given = x_given.scalar_type();
  check_shape("outputs", outputs, {size.steps, size.rows, size.units});
  if (grad_outputs.has_value()) check_shape("grad_outputs", *grad_outputs, outputs.sizes());
  check_saved("cells", cells, {size.steps, size.rows, size.units}, dtype);
  check_saved("gates", gates, {size.steps, size.rows, 4 * size.units}, dtype);
  check_lengths(lengths_given, size.steps, size.rows);
  const auto as_state = [&](const Tensor& tensor) { return tensor.to(dtype).contiguous(); };
  const Tensor x = as_state(x_given), h_0 = as_state(h_0_given), c_0 = as_state(c_0_given);
  const Tensor w_ih = w_ih_given.to(dtype), w_hh = w_hh_given.to(dtype);
  const OptionalTensor lengths = ragged(lengths_given, size.steps);
  const bool reverse = stream % 2 == 1;
  const auto own = [&](const OptionalTensor& grad) {
    return grad.has_value() ? at::empty_like(c_0).copy_(*grad) : at::zeros_like(c_0);
  };
  Tensor grad_h = own(grad_h_n), grad_c = own(grad_c_n);
  const Tensor grad_out = grad_outputs.has_value() ? as_state(*grad_outputs) : Tensor();
  Tensor grad_a = at::empty({size.steps, size.rows, 4 * size.units}, x.options());
  const Tensor grad_bias = at::zeros({4 * size.units}, x.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::layer_backward", [&] {
    run_backward<scalar_t>(
        size, grad_out, grad_h, grad_c, c_0, w_hh, gates, cells, lengths, options.spec<scalar_t>(), reverse, grad_a,
        grad_bias);
  });
  const Tensor flat = grad_a.view({-1, 4 * size.units});
  grad_h.addmm_(grad_a[reverse ? size.steps - 1 : 0], w_hh);
  const Tensor grad_x = need_x ? matrix_product(flat, w_ih).view(x.sizes()).to(given)
                               : at::empty({0, size.rows, size.inputs}, x_given.options());
  const Tensor grad_w_hh =
      recurrent_weight_gradient(size, grad_a, outputs.to(dtype), h_0, lengths, reverse).to(given);
  return {
      grad_x, grad_h.to(given), grad_c.to(c_0_given.scalar_type()),
      matrix_product(flat.t(), x.view({flat.size(0), size.inputs})).to(given), grad_w_hh, grad_bias.to(given)};
}

}  // namespace

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) {
  m.impl("layer", layer);
  m.impl("layer_backward", layer_backward);
}

}  // namespace g2lstm
