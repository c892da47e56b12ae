// The layer on CUDA: one product for all inputs, then either a recurrent product and the step's kernel at each step, or
// all steps in one launch of the sequence's kernel, or in one for each part of the batch that fits the device.
#include <cstdlib>
#include <cstring>

#include "operators.h"
#include "sequence_plan.h"

namespace g2lstm::cuda {
namespace {

// What forward and backward share: sizes, order in time, and where sequences end.
struct LayerRun {
  LayerSizes size;
  GateSource source;
  bool reverse;
  OptionalTensor lengths;  // on the device, where some sequence is shorter than T; else none

  LayerRun(
      const LayerSizes& size, const GateOptions& options, const OptionalTensor& seed, std::int64_t stream,
      const OptionalTensor& rows, const OptionalTensor& given_lengths, const at::Device& device)
      : size(size), source(options, seed, stream, rows, device), reverse(stream % 2 == 1) {
    if (given_lengths.has_value() && given_lengths->min().item<std::int64_t>() < size.steps) {
      lengths = to_device(given_lengths, device);
    }
  }

  // The time of the i-th step to be computed.
  std::int64_t time(std::int64_t i) const { return reverse ? size.steps - 1 - i : i; }

  // What a step reads, wherever it stands in time.
  template <class T>
  void fill(CellStep<T>& step) const {
    source.fill(step);
    step.n_rows = size.rows;
    step.h_size = size.units;
    step.lengths = data_or_null<std::int64_t>(lengths);
  }

  template <class T>
  void fill(CellStep<T>& step, std::int64_t i, const Tensor& a, const Tensor& c_0, const Tensor& cells) const {
    fill(step);
    step.t = time(i);
    step.a = data_at<T>(a, step.t);
    step.c = i > 0 ? data_at<State<T>>(cells, time(i - 1)) : data<State<T>>(c_0);
  }

  template <class T>
  void fill(
      Sequence<T>& sequence, const Tensor& a, const Tensor& c_0, const Tensor& w_hh, const Tensor& arrived) const {
    fill(sequence.cell);
    sequence.cell.a = data<T>(a);
    sequence.cell.c = data<State<T>>(c_0);
    sequence.w_hh = data<T>(w_hh);
    sequence.n_steps = size.steps;
    sequence.reverse = reverse;
    sequence.arrived = static_cast<unsigned*>(arrived.mutable_data_ptr());
  }
};

// Whether all steps are one launch. G2LSTM_CUDA_LAYER in the environment asks for it, `persistent`, where that fits the
// device, or for a launch for every step, `steps`. Which of the two is faster at which size is not known before they
// have been measured: `auto`, the default, is `steps`.
template <class T>
bool is_persistent(std::int64_t n_steps, std::int64_t n_rows, std::int64_t h_size) {
  const char* const given = std::getenv("G2LSTM_CUDA_LAYER");
  const auto is = [&](const char* name) { return std::strcmp(given, name) == 0; };
  if (given == nullptr || is("") || is("auto") || is("steps")) return false;
  TORCH_CHECK_VALUE(is("persistent"), "G2LSTM_CUDA_LAYER must be auto, steps or persistent, got ", given);
  return fits_persistent<T>(n_steps, n_rows, h_size);
}

// Which of the two would run on the current device.
std::string cuda_layer(at::ScalarType dtype, std::int64_t n_steps, std::int64_t n_rows, std::int64_t hidden_size) {
  bool persistent = false;
  for_type(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, double>) persistent = is_persistent<T>(n_steps, n_rows, hidden_size);
  });
  return persistent ? "persistent" : "steps";
}

// Contiguous, from a multiple of 16 bytes on.
Tensor aligned(const Tensor& given) {
  const Tensor tensor = given.contiguous();
  return reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) % 16 == 0 ? tensor : tensor.clone();
}

Tensor no_arrivals(const LayerRun& run, const Tensor& like) {
  return at::zeros({counter_numbers(run.size.rows)}, like.options().dtype(at::kInt));
}

// The h after each row's last step.
Tensor last_hidden(const LayerRun& run, const Tensor& outputs) {
  if (run.reverse || !run.lengths.has_value()) return outputs[run.time(run.size.steps - 1)].clone();
  return outputs.index({*run.lengths - 1, at::arange(run.size.rows, run.lengths->options())});
}

// As step_by_step, below; nothing is computed, and none returned, where the device refuses.
template <class T>
OptionalTensor run_persistent(
    const LayerRun& run, const Tensor& h_0_given, const Tensor& c_0, const Tensor& w_hh_given, const Tensor& a,
    const Tensor& outputs, const Tensor& cells, const Tensor& z, StreamHandle stream) {
  const Tensor h_0 = aligned(h_0_given), w_hh = aligned(w_hh_given), arrived = no_arrivals(run, a);
  ForwardSequence<T> sequence;
  run.fill(sequence, a, c_0, w_hh, arrived);
  sequence.h_0 = data<T>(h_0);
  sequence.a = mutable_data<T>(a);
  sequence.outputs = mutable_data<T>(outputs);
  sequence.cells = mutable_data<State<T>>(cells);
  if (z.numel() > 0) sequence.z = mutable_data<State<T>>(z);
  if (!launch(sequence, stream)) return std::nullopt;
  return last_hidden(run, outputs);
}

// a: the inputs' part of the pre-activations, to which each step adds its own. Returns h_n. Right for every size.
template <class T>
Tensor step_by_step(
    const LayerRun& run, const Tensor& h_0, const Tensor& c_0, const Tensor& w_hh, const Tensor& a,
    const Tensor& outputs, const Tensor& cells, const Tensor& z, StreamHandle stream) {
  const Tensor w = w_hh.t();
  Tensor h = run.lengths.has_value() ? h_0.clone() : h_0;  // with lengths each step changes it in place
  for (std::int64_t i = 0; i < run.size.steps; ++i) {
    const std::int64_t t = run.time(i);
    a[t].addmm_(h, w);
    ForwardStep<T> step;
    run.fill(step, i, a, c_0, cells);
    step.c_next = mutable_data_at<State<T>>(cells, t);
    step.h_next = mutable_data_at<T>(outputs, t);
    if (run.lengths.has_value()) step.h_state = {mutable_data<T>(h), run.size.units};
    if (z.numel() > 0) step.z = mutable_data_at<State<T>>(z, t);
    launch(step, stream);
    if (!run.lengths.has_value()) h = outputs[t];
  }
  return run.lengths.has_value() ? h : h.clone();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer(
    const Tensor& x_given, const Tensor& h_0_given, const Tensor& c_0_given, const Tensor& w_ih, const Tensor& w_hh,
    const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& lengths, const OptionalTensor& seed,
    const OptionalTensor& rows, std::int64_t stream, double temperature, double noise_prob,
    c10::string_view noise_sharing, bool hard, bool need_gates) {
  const GateOptions options(temperature, noise_prob, noise_sharing, hard);
  const LayerSizes size(x_given, h_0_given, c_0_given, w_ih, w_hh, b_ih, b_hh);
  check_lengths(lengths, size.steps, size.rows);
  check_seed(seed);
  check_rows(rows, size.rows);
  const Context context(x_given);
  const LayerRun run(size, options, seed, stream, rows, lengths, x_given.device());
  const auto dtype = x_given.scalar_type(), state = state_dtype(x_given);
  const Tensor x = x_given.contiguous(), h_0 = h_0_given.contiguous(), c_0 = c_0_given.to(state).contiguous();
  OptionalTensor bias;
  for (const OptionalTensor& part : {b_ih, b_hh}) {
    if (part.has_value()) bias = bias.has_value() ? *bias + part->to(state) : part->to(state);
  }
  if (bias.has_value()) bias = bias->to(dtype).contiguous();

  const Tensor a = at::empty({size.steps, size.rows, 4 * size.units}, x.options());
  Tensor a_flat = flat(a);
  product(a_flat, bias, flat(x), w_ih.t());
  const Tensor outputs = at::empty({size.steps, size.rows, size.units}, x.options());
  const Tensor cells = at::empty(outputs.sizes(), c_0.options());
  const Tensor z = at::empty({need_gates ? size.steps : 0, size.rows, 2 * size.units}, c_0.options());
  OptionalTensor h_n;
  for_type(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, double>) {
      if (is_persistent<T>(size.steps, size.rows, size.units)) {
        h_n = run_persistent<T>(run, h_0, c_0, w_hh, a, outputs, cells, z, context.stream);
      }
    }
    if (!h_n) h_n = step_by_step<T>(run, h_0, c_0, w_hh, a, outputs, cells, z, context.stream);
  });
  const Tensor c_n = cells[run.time(size.steps - 1)].to(dtype, /*non_blocking=*/false, /*copy=*/true);
  return {outputs, *h_n, c_n, z, a, cells};
}

// grad_h and grad_c: of h_n and c_n on entry; of h_0 and c_0 on return.
template <class T>
void back_step_by_step(
    const LayerRun& run, const OptionalTensor& grad_outputs, Tensor& grad_h, const Tensor& grad_c, const Tensor& c_0,
    const Tensor& w_hh, const Tensor& a, const Tensor& cells, const Tensor& grad_a, StreamHandle stream) {
  for (std::int64_t i = run.size.steps - 1; i >= 0; --i) {
    const std::int64_t t = run.time(i);
    BackwardStep<T> step;
    run.fill(step, i, a, c_0, cells);
    step.c_next = data_at<State<T>>(cells, t);
    step.grad_h = {mutable_data<T>(grad_h), run.size.units};
    if (grad_outputs.has_value()) step.grad_above = {data_at<T>(*grad_outputs, t), run.size.units};
    step.grad_c = mutable_data<State<T>>(grad_c);
    step.grad_a = mutable_data_at<T>(grad_a, t);
    launch(step, stream);
    // With lengths, grad_h is 0 where the step was active, and what it was elsewhere.
    const Tensor grad = grad_a[t];
    if (run.lengths.has_value()) {
      grad_h.addmm_(grad, w_hh);
    } else {
      at::mm_out(grad_h, grad, w_hh);
    }
  }
}

// As back_step_by_step; nothing is computed, and false returned, where the device refuses.
template <class T>
bool run_back_persistent(
    const LayerRun& run, const OptionalTensor& grad_outputs, const Tensor& grad_h, const Tensor& grad_c,
    const Tensor& c_0, const Tensor& w_hh_given, const Tensor& a, const Tensor& cells, const Tensor& grad_a,
    StreamHandle stream) {
  const Tensor w_hh = aligned(w_hh_given), arrived = no_arrivals(run, a);
  BackwardSequence<T> sequence;
  run.fill(sequence, a, c_0, w_hh, arrived);
  sequence.cells = data<State<T>>(cells);
  sequence.grad_outputs = data_or_null<T>(grad_outputs);
  sequence.grad_h = mutable_data<T>(grad_h);
  sequence.grad_c = mutable_data<State<T>>(grad_c);
  sequence.grad_a = mutable_data<T>(grad_a);
  return launch(sequence, stream);
}

// In the backward direction the outputs one step later are what a step got, and 0 where it got h_0.
Tensor recurrent_weight_gradient(const LayerRun& run, const Tensor& grad_a, const Tensor& outputs, const Tensor& h_0) {
  if (!run.reverse) return shifted_weight_gradient(grad_a, outputs, h_0);
  const std::int64_t last = run.size.steps - 1;
  Tensor first = grad_a[last];
  if (run.lengths.has_value()) {
    first = grad_a.index({*run.lengths - 1, at::arange(run.size.rows, run.lengths->options())});
  }
  if (last == 0) return at::mm(first.t(), h_0);
  return at::mm(flat(grad_a.narrow(0, 0, last)).t(), flat(outputs.narrow(0, 1, last))).addmm_(first.t(), h_0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward(
    const OptionalTensor& grad_outputs, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const Tensor& x_given, const Tensor& h_0_given, const Tensor& c_0_given, const Tensor& w_ih, const Tensor& w_hh,
    const Tensor& outputs_given, const Tensor& gates_given, const Tensor& cells_given, const OptionalTensor& lengths,
    const OptionalTensor& seed, const OptionalTensor& rows, std::int64_t stream, double temperature, double noise_prob,
    c10::string_view noise_sharing, bool hard, bool need_x) {
  const GateOptions options(temperature, noise_prob, noise_sharing, hard);
  const LayerSizes size(x_given, h_0_given, c_0_given, w_ih, w_hh, std::nullopt, std::nullopt);
  check_lengths(lengths, size.steps, size.rows);
  check_seed(seed);
  check_rows(rows, size.rows);
  const Context context(x_given);
  const LayerRun run(size, options, seed, stream, rows, lengths, x_given.device());
  const Tensor x = x_given.contiguous(), h_0 = h_0_given.contiguous();
  const Tensor c_0 = c_0_given.to(state_dtype(x)).contiguous();
  const Tensor outputs = kept("outputs", outputs_given, {size.steps, size.rows, size.units}, x.options());
  const Tensor a = kept("gates", gates_given, {size.steps, size.rows, 4 * size.units}, x.options());
  const Tensor cells = kept("cells", cells_given, outputs.sizes(), c_0.options());
  const auto own = [](const OptionalTensor& grad, const Tensor& like) {
    return grad.has_value() ? at::empty_like(like).copy_(*grad) : at::zeros_like(like);
  };
  Tensor grad_h = own(grad_h_n, h_0);
  const Tensor grad_c = own(grad_c_n, c_0);
  OptionalTensor grad_out;
  if (grad_outputs.has_value()) grad_out = grad_outputs->to(x.options()).contiguous();
  const Tensor grad_a = at::empty(a.sizes(), x.options());
  for_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, double>) {
      if (is_persistent<T>(size.steps, size.rows, size.units)) {
        if (run_back_persistent<T>(run, grad_out, grad_h, grad_c, c_0, w_hh, a, cells, grad_a, context.stream)) return;
      }
    }
    back_step_by_step<T>(run, grad_out, grad_h, grad_c, c_0, w_hh, a, cells, grad_a, context.stream);
  });
  const Tensor grad_flat = flat(grad_a);
  const Tensor grad_x =
      need_x ? at::mm(grad_flat, w_ih).view(x.sizes()) : at::empty({0, size.rows, size.inputs}, x.options());
  return {
      grad_x, grad_h, grad_c.to(c_0_given.scalar_type()), at::mm(grad_flat.t(), flat(x)),
      recurrent_weight_gradient(run, grad_a, outputs, h_0), grad_flat.sum(0)};
}

}  // namespace

void define_layer(torch::Library& library) {
  library.def("cuda_layer(ScalarType dtype, int n_steps, int n_rows, int hidden_size) -> str", cuda_layer);
}

void implement_layer(torch::Library& library) {
  library.impl("layer", layer);
  library.impl("layer_backward", layer_backward);
}

}  // namespace g2lstm::cuda
