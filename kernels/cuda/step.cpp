// The step and the noise's random words on CUDA.
#include "../binding/step.h"
#include "operators.h"

namespace g2lstm::cuda {
namespace {

// For tests: called where the seed is on the device, and waits for it.
Tensor noise_words(
    const Tensor& seed, std::int64_t n_steps, std::int64_t n_rows, std::int64_t hidden_size, std::int64_t stream,
    const OptionalTensor& rows, at::ScalarType) {
  const at::Device device = seed.device();
  OptionalTensor host_rows;
  if (rows.has_value()) {
    TORCH_CHECK_VALUE(
        rows->is_cpu() || rows->device() == device, "rows must be on the CPU or on ", device, " as the seed, got ",
        rows->device());
    host_rows = rows->cpu();
  }
  check_seed(seed.cpu());
  check_rows(host_rows, n_rows);
  TORCH_CHECK_VALUE(
      n_steps >= 0 && n_rows >= 0 && hidden_size >= 0, "sizes must be >= 0, got ", n_steps, ", ", n_rows, ", ",
      hidden_size);
  Tensor out = at::empty({4, n_steps, n_rows, hidden_size}, at::TensorOptions(at::kLong).device(device));
  if (out.numel() == 0) return out;
  const Context context(out);
  const OptionalTensor device_rows = to_device(host_rows, device);
  RandomWords words;
  words.noise.seed = static_cast<std::uint64_t>(seed.item<std::int64_t>());
  words.noise.stream = static_cast<std::uint32_t>(stream);
  words.rows = data_or_null<std::int64_t>(device_rows);
  words.out = mutable_data<std::int64_t>(out);
  words.n_steps = n_steps;
  words.n_rows = n_rows;
  words.h_size = hidden_size;
  launch(words, context.stream);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> step(
    const Tensor& a_given, const Tensor& c_given, const OptionalTensor& seed, const OptionalTensor& rows,
    std::int64_t t, std::int64_t stream, double temperature, double noise_prob, c10::string_view noise_sharing,
    bool hard) {
  const GateOptions options(temperature, noise_prob, noise_sharing, hard);
  const StepSizes size(a_given, c_given);
  check_seed(seed);
  check_rows(rows, size.rows);
  if (noise_prob > 0) check_number("step", t);
  const Context context(a_given);
  const GateSource source(options, seed, stream, rows, a_given.device());
  const Tensor a = a_given.clone(at::MemoryFormat::Contiguous);  // backward's, and no alias of what was given
  const Tensor c = c_given.to(state_dtype(a)).contiguous();
  const Tensor h = at::empty(c.sizes(), a.options()), c_next = at::empty_like(c);
  if (size.rows > 0) {
    for_type(a.scalar_type(), [&](auto type) {
      using T = decltype(type);
      ForwardStep<T> step;
      source.fill(step);
      step.a = data<T>(a);
      step.c = data<State<T>>(c);
      step.n_rows = size.rows;
      step.h_size = size.units;
      step.t = t;
      step.c_next = mutable_data<State<T>>(c_next);
      step.h_next = mutable_data<T>(h);
      launch(step, context.stream);
    });
  }
  return {h, c_next.to(c_given.scalar_type()), a};
}

std::tuple<Tensor, Tensor> step_backward(
    const Tensor& grad_h_given, const Tensor& grad_c_given, const Tensor& a_given, const Tensor& c_given,
    const Tensor& c_next_given, const OptionalTensor& seed, const OptionalTensor& rows, std::int64_t t,
    std::int64_t stream, double temperature, double noise_prob, c10::string_view noise_sharing, bool hard) {
  const GateOptions options(temperature, noise_prob, noise_sharing, hard);
  const StepSizes size(a_given, c_given);
  check_shape("c_next", c_next_given, c_given.sizes());
  check_shape("grad_h", grad_h_given, c_given.sizes());
  check_shape("grad_c", grad_c_given, c_given.sizes());
  check_seed(seed);
  check_rows(rows, size.rows);
  const Context context(a_given);
  const GateSource source(options, seed, stream, rows, a_given.device());
  const Tensor a = a_given.contiguous(), grad_h = grad_h_given.to(a.options()).contiguous();
  const auto dtype = state_dtype(a);
  const Tensor c = c_given.to(dtype).contiguous(), c_next = c_next_given.to(dtype).contiguous();
  const Tensor grad_c = at::empty_like(c).copy_(grad_c_given), grad_a = at::empty_like(a);
  if (size.rows > 0) {
    for_type(a.scalar_type(), [&](auto type) {
      using T = decltype(type);
      BackwardStep<T> step;
      source.fill(step);
      step.a = data<T>(a);
      step.c = data<State<T>>(c);
      step.n_rows = size.rows;
      step.h_size = size.units;
      step.t = t;
      step.c_next = data<State<T>>(c_next);
      step.grad_above = {data<T>(grad_h), size.units};
      step.grad_c = mutable_data<State<T>>(grad_c);
      step.grad_a = mutable_data<T>(grad_a);
      launch(step, context.stream);
    });
  }
  return {grad_a, grad_c.to(c_given.scalar_type())};
}

}  // namespace

void implement_step(torch::Library& library) {
  library.impl("noise_words", noise_words);
  library.impl("step", step);
  library.impl("step_backward", step_backward);
}

}  // namespace g2lstm::cuda
