// The derivatives of the operators that are called step by step or for small layers, where Python's would take longer
// than the operators: these here, the others' in fairseq_g2lstm/operators.py. Of these dropout alone has second ones.
// And the refusal of forward-mode derivatives, which none of the operators has; calls of those that end in _backward,
// which are for these functions alone, lose them.
//
// A step's number is a SymInt, so that a compiled cell that is given it is not compiled anew for each.
//
// What has no gradient leaves a function's forward by a pointer, since an output that is marked as not differentiable
// stops compiled autograd.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <array>

#include "common.h"

namespace g2lstm {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using StepSignature = std::tuple<Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, c10::SymInt, std::int64_t, double,
    double, c10::string_view, bool);
using StepBackwardSignature = std::tuple<Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
    const OptionalTensor&, c10::SymInt, std::int64_t, double, double, c10::string_view, bool);
using LayerSignature = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, std::int64_t, double,
    double, c10::string_view, bool, bool);
using LayerBackwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&, const Tensor&,
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, std::int64_t, double, double, c10::string_view, bool, bool);
using DropoutSignature = Tensor(const Tensor&, const Tensor&, double);

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

const auto& step_operator() {
  static const auto found = find<StepSignature>("g2lstm::step");
  return found;
}

const auto& layer_operator() {
  static const auto found = find<LayerSignature>("g2lstm::layer");
  return found;
}

const auto& dropout_operator() {
  static const auto found = find<DropoutSignature>("g2lstm::dropout");
  return found;
}

// Forward-mode derivatives, which autograd would take for 0.
void refuse_tangent(const Tensor& tensor) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !tensor.defined() || !tensor._fw_grad(/*level=*/0).defined(),
      "g2lstm's compiled operators have no forward-mode derivatives: use fairseq_g2lstm.ops.use_reference() around the "
      "forward pass that needs them");
}
void refuse_tangent(const OptionalTensor& tensor) {
  if (tensor.has_value()) refuse_tangent(*tensor);
}
template <class... Tensors>
void refuse_tangents(const Tensors&... tensors) {
  (refuse_tangent(tensors), ...);
}

// A backward operator, past the refusal of second derivatives where none are asked for.
template <class Operator, class... Arguments>
auto call_backward(const Operator& backward_operator, const Arguments&... arguments) {
  if (at::GradMode::is_enabled()) return backward_operator.call(arguments...);
  const at::AutoDispatchBelowADInplaceOrView below;
  return backward_operator.call(arguments...);
}

// Saved tensors and gradients that are missing are undefined.
OptionalTensor given(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }
Tensor or_undefined(const OptionalTensor& tensor) { return tensor.value_or(Tensor()); }

// The options of the gates between forward and backward
struct SavedGates {
  double temperature, noise_prob;
  std::string noise_sharing;
  bool hard;

  static void save(
      AutogradContext* context, double temperature, double noise_prob, c10::string_view noise_sharing, bool hard) {
    context->saved_data["gates"] = std::make_tuple(temperature, noise_prob, std::string(noise_sharing), hard);
  }

  explicit SavedGates(AutogradContext* context) {
    const auto saved = context->saved_data["gates"].toTuple();
    const auto& elements = saved->elements();
    temperature = elements[0].toDouble(), noise_prob = elements[1].toDouble();
    noise_sharing = elements[2].toStringRef(), hard = elements[3].toBool();
  }
};

struct Step : torch::autograd::Function<Step> {
  static constexpr std::size_t kArguments = 11;

  static variable_list forward(
      AutogradContext* context, const Tensor& a, const Tensor& c, const OptionalTensor& seed,
      const OptionalTensor& rows, const c10::SymInt& t, std::int64_t stream, double temperature, double noise_prob,
      c10::string_view noise_sharing, bool hard, Tensor* gates_out) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [h, c_next, gates] =
        step_operator().call(a, c, seed, rows, t, stream, temperature, noise_prob, noise_sharing, hard);
    context->set_materialize_grads(false);
    context->save_for_backward({gates, c, c_next, or_undefined(seed), or_undefined(rows)});
    context->saved_data["t"] = t, context->saved_data["stream"] = stream;
    SavedGates::save(context, temperature, noise_prob, noise_sharing, hard);
    context->saved_data["dtype"] = a.scalar_type();
    *gates_out = gates;
    return {h, c_next};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    static const auto backward_operator = find<StepBackwardSignature>("g2lstm::step_backward");
    variable_list result(kArguments);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    refuse_tangents(grads[0], grads[1]);
    const auto saved = context->get_saved_variables();
    const Tensor &gates = saved[0], &c = saved[1], &c_next = saved[2];
    const SavedGates options(context);
    const auto dtype = context->saved_data["dtype"].toScalarType();
    const Tensor grad_h = grads[0].defined() ? grads[0] : at::zeros_like(c, c.options().dtype(dtype));
    const Tensor grad_c = grads[1].defined() ? grads[1] : at::zeros_like(c);
    auto [grad_a, grad_c_prev] = call_backward(
        backward_operator, grad_h, grad_c, gates, c, c_next, given(saved[3]), given(saved[4]),
        context->saved_data["t"].toSymInt(), context->saved_data["stream"].toInt(), options.temperature,
        options.noise_prob, options.noise_sharing, options.hard);
    result[0] = grad_a, result[1] = grad_c_prev;
    return result;
  }
};

struct Layer : torch::autograd::Function<Layer> {
  static constexpr std::size_t kArguments = 17;

  static variable_list forward(
      AutogradContext* context, const Tensor& x, const Tensor& h_0, const Tensor& c_0, const Tensor& w_ih,
      const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& lengths,
      const OptionalTensor& seed, const OptionalTensor& rows, std::int64_t stream, double temperature,
      double noise_prob, c10::string_view noise_sharing, bool hard, bool need_gates,
      std::array<Tensor, 3>* z_gates_cells) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [outputs, h_n, c_n, z, gates, cells] = layer_operator().call(
        x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, lengths, seed, rows, stream, temperature, noise_prob, noise_sharing, hard,
        need_gates);
    context->set_materialize_grads(false);
    context->save_for_backward(
        {x, h_0, c_0, w_ih, w_hh, outputs, gates, cells, or_undefined(lengths), or_undefined(seed),
         or_undefined(rows)});
    context->saved_data["stream"] = stream;
    context->saved_data["has_b_ih"] = b_ih.has_value(), context->saved_data["has_b_hh"] = b_hh.has_value();
    SavedGates::save(context, temperature, noise_prob, noise_sharing, hard);
    *z_gates_cells = {z, gates, cells};
    return {outputs, h_n, c_n};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    static const auto backward_operator = find<LayerBackwardSignature>("g2lstm::layer_backward");
    variable_list result(kArguments);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    refuse_tangents(grads[0], grads[1], grads[2]);
    const auto saved = context->get_saved_variables();
    const SavedGates options(context);
    const c10::impl::ExcludeDispatchKeyGuard as_they_are(c10::autocast_dispatch_keyset);
    // Of the inputs that are tensors, those that are there are numbered.
    constexpr std::size_t kX = 0, kFirstBias = 5;
    const bool has_b_ih = context->saved_data["has_b_ih"].toBool(), has_b_hh = context->saved_data["has_b_hh"].toBool();
    const bool need_x = context->needs_input_grad(kX);
    auto [grad_x, grad_h_0, grad_c_0, grad_w_ih, grad_w_hh, grad_bias] = call_backward(
        backward_operator, given(grads[0]), given(grads[1]), given(grads[2]), saved[0], saved[1], saved[2], saved[3],
        saved[4], saved[5], saved[6], saved[7], given(saved[8]), given(saved[9]), given(saved[10]),
        context->saved_data["stream"].toInt(), options.temperature, options.noise_prob, options.noise_sharing,
        options.hard, need_x);
    if (need_x) result[0] = grad_x;
    result[1] = grad_h_0, result[2] = grad_c_0, result[3] = grad_w_ih, result[4] = grad_w_hh;
    if (has_b_ih && context->needs_input_grad(kFirstBias)) result[5] = grad_bias;
    // A tensor of its own: each may become a parameter's gradient, which others change in place.
    if (has_b_hh && context->needs_input_grad(kFirstBias + (has_b_ih ? 1 : 0))) result[6] = grad_bias.clone();
    return result;
  }
};

struct Dropout : torch::autograd::Function<Dropout> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& seed, double p) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->set_materialize_grads(false);
    context->save_for_backward({seed});
    context->saved_data["p"] = p;
    return {dropout_operator().call(x, seed, p)};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    if (!grads[0].defined()) return {Tensor(), Tensor(), Tensor()};
    refuse_tangent(grads[0]);
    const Tensor seed = context->get_saved_variables()[0];
    return {dropout_operator().call(grads[0], seed, context->saved_data["p"].toDouble()), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor> step(
    const Tensor& a, const Tensor& c, const OptionalTensor& seed, const OptionalTensor& rows, c10::SymInt t,
    std::int64_t stream, double temperature, double noise_prob, c10::string_view noise_sharing, bool hard) {
  refuse_tangents(a, c);
  if (!torch::autograd::compute_requires_grad(a, c)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return step_operator().call(a, c, seed, rows, t, stream, temperature, noise_prob, noise_sharing, hard);
  }
  Tensor gates;
  auto found = Step::apply(a, c, seed, rows, t, stream, temperature, noise_prob, noise_sharing, hard, &gates);
  return {found[0], found[1], gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer(
    const Tensor& x, const Tensor& h_0, const Tensor& c_0, const Tensor& w_ih, const Tensor& w_hh,
    const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& lengths, const OptionalTensor& seed,
    const OptionalTensor& rows, std::int64_t stream, double temperature, double noise_prob,
    c10::string_view noise_sharing, bool hard, bool need_gates) {
  refuse_tangents(x, h_0, c_0, w_ih, w_hh, b_ih, b_hh);
  if (!torch::autograd::compute_requires_grad(x, h_0, c_0, w_ih, w_hh, b_ih, b_hh)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return layer_operator().call(
        x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, lengths, seed, rows, stream, temperature, noise_prob, noise_sharing, hard,
        need_gates);
  }
  std::array<Tensor, 3> z_gates_cells;
  auto found = Layer::apply(
      x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, lengths, seed, rows, stream, temperature, noise_prob, noise_sharing, hard,
      need_gates, &z_gates_cells);
  const auto& [z, gates, cells] = z_gates_cells;
  return {found[0], found[1], found[2], z, gates, cells};
}

Tensor dropout(const Tensor& x, const Tensor& seed, double p) {
  refuse_tangent(x);
  if (!torch::autograd::compute_requires_grad(x)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dropout_operator().call(x, seed, p);
  }
  return Dropout::apply(x, seed, p)[0];
}

// The same refusal for operators whose derivatives are Python's, below these.
void refuse_tangents_of_all(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  for (const c10::IValue& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (argument.isTensor()) refuse_tangent(argument.toTensor());
    if (argument.isTensorList()) {
      for (const Tensor& tensor : argument.toTensorVector()) refuse_tangent(tensor);
    }
  }
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(g2lstm, ADInplaceOrView, m) {
  for (const char* const name :
       {"decoder", "decoder_step", "packed_linear", "packed_layer", "packed_decoder_step", "matmul", "cross_entropy"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_tangents_of_all>());
  }
}

TORCH_LIBRARY_IMPL(g2lstm, Autograd, m) {
  m.impl("step", step);
  m.impl("layer", layer);
  m.impl("dropout", dropout);
}

}  // namespace g2lstm
