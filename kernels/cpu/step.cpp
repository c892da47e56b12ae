// The step and the noise's random words on the CPU.
#include <torch/library.h>

#include "../binding/step.h"
#include "tensors.h"

namespace g2lstm {
namespace {

Tensor noise_words(
    const Tensor& seed, std::int64_t n_steps, std::int64_t n_rows, std::int64_t hidden_size, std::int64_t stream,
    const OptionalTensor& rows_given, at::ScalarType dtype) {
  check_seed(seed);
  check_rows(rows_given, n_rows);
  TORCH_CHECK_VALUE(
      n_steps >= 0 && n_rows >= 0 && hidden_size >= 0, "sizes must be >= 0, got ", n_steps, ", ", n_rows, ", ",
      hidden_size);
  const OptionalTensor rows = contiguous(rows_given);
  Noise noise;
  noise.seed = static_cast<std::uint64_t>(seed.item<std::int64_t>());
  noise.stream = static_cast<std::uint32_t>(stream);
  noise.rows = data_or_null<std::int64_t>(rows);
  Tensor words = at::empty({4, n_steps, n_rows, hidden_size}, at::TensorOptions(at::kLong));
  auto* const out = words.mutable_data_ptr<std::int64_t>();
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::noise_words", [&] {
    at::parallel_for(0, n_steps * n_rows, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t at = begin; at < end; ++at) {
        const std::int64_t t = at / n_rows, row = at % n_rows;
        core<scalar_t>().words(
            noise, t, hidden_size, out + t * n_rows * hidden_size, n_steps * n_rows * hidden_size, row, row + 1);
      }
    });
  });
  return words;
}

std::tuple<Tensor, Tensor, Tensor> step(
    const Tensor& a, const Tensor& c_given, const OptionalTensor& seed, const OptionalTensor& rows_given,
    std::int64_t t, std::int64_t stream, double temperature, double noise_prob, c10::string_view noise_sharing,
    bool hard) {
  const GateOptions options(temperature, noise_prob, noise_sharing, hard);
  const StepSizes size(a, c_given);
  check_seed(seed);
  check_rows(rows_given, size.rows);
  if (noise_prob > 0) check_number("step", t);
  const auto dtype = state_dtype(a);
  const std::int64_t h_size = size.units;
  const OptionalTensor rows = contiguous(rows_given);
  const Tensor c = c_given.to(dtype).contiguous();
  Tensor gates = at::empty(a.sizes(), c.options());
  gates.copy_(a);
  Tensor h = at::empty(c.sizes(), c.options()), c_next = at::empty_like(h);
  const Noise noise = make_noise(options, seed, rows, stream);
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::step", [&] {
    ForwardStep<scalar_t> step;
    step.a = gates.mutable_data_ptr<scalar_t>();
    step.c = c.const_data_ptr<scalar_t>();
    step.c_next = c_next.mutable_data_ptr<scalar_t>();
    step.h_next = h.mutable_data_ptr<scalar_t>();
    step.h_size = h_size;
    step.t = t;
    step.gates = options.spec<scalar_t>();
    step.noise = noise;
    split(core<scalar_t>().blocks({h_size, 4}), size.rows, [&](auto... range) {
      core<scalar_t>().forward(step, range...);
    });
  });
  return {h.to(a.scalar_type()), c_next.to(c_given.scalar_type()), gates};
}

std::tuple<Tensor, Tensor> step_backward(
    const Tensor& grad_h_given, const Tensor& grad_c_given, const Tensor& gates_given, const Tensor& c_given,
    const Tensor& c_next_given, const OptionalTensor&, const OptionalTensor&, std::int64_t t, std::int64_t,
    double temperature, double noise_prob, c10::string_view noise_sharing, bool hard) {
  const GateOptions options(temperature, noise_prob, noise_sharing, hard);
  check_supported(gates_given);
  TORCH_CHECK_VALUE(gates_given.dim() == 2, "gates must be (B, 4H), got ", gates_given.sizes());
  check_shape("c", c_given, {gates_given.size(0), gates_given.size(1) / 4});
  check_shape("c_next", c_next_given, c_given.sizes());
  check_shape("grad_h", grad_h_given, c_given.sizes());
  check_shape("grad_c", grad_c_given, c_given.sizes());
  const auto dtype = state_dtype(gates_given);
  const Tensor gates = gates_given.to(dtype).contiguous(), c = c_given.to(dtype).contiguous(),
               c_next = c_next_given.to(dtype).contiguous();
  Tensor grad_h = at::empty_like(c).copy_(grad_h_given), grad_c = at::empty_like(c).copy_(grad_c_given);
  Tensor grad_a = at::empty_like(gates);
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::step_backward", [&] {
    BackwardStep<scalar_t> step;
    step.grad_h = grad_h.mutable_data_ptr<scalar_t>();
    step.grad_c = grad_c.mutable_data_ptr<scalar_t>();
    step.gates = gates.const_data_ptr<scalar_t>();
    step.c = c.const_data_ptr<scalar_t>();
    step.c_next = c_next.const_data_ptr<scalar_t>();
    step.grad_a = grad_a.mutable_data_ptr<scalar_t>();
    step.h_size = c.size(1);
    step.t = t;
    step.spec = options.spec<scalar_t>();
    split(core<scalar_t>().blocks({c.size(1), 1}), c.size(0), [&](auto... range) {
      core<scalar_t>().backward(step, range...);
    });
  });
  return {grad_a.to(grad_h_given.scalar_type()), grad_c.to(c_given.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(g2lstm, m) {
  m.def("cpu_capability() -> str", [] { return std::string(core<float>().name); });
}

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) {
  m.impl("noise_words", noise_words);
  m.impl("step", step);
  m.impl("step_backward", step_backward);
}

}  // namespace g2lstm
