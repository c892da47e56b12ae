// The teacher-forced decoder on CUDA: for each step and cell one product and one kernel, and the same for the output.
//
// What a cell reads of the step stands side by side in its `operand` (B, 2H): what comes from below (the input feed for
// the first cell) and its own last h, as its weights do, so that a step is one product.
#include "../binding/decoder.h"
#include "operators.h"

namespace g2lstm::cuda {
namespace {

struct DecoderRun {
  DecoderSizes size;
  GateSource source;
  StreamHandle stream;
  at::TensorOptions options, state_options;  // of the inputs and of the cells' state
  std::vector<Tensor> weights;               // of each cell: (4H, 2H), as the operands are
  Tensor c_0;                                // (L, B, H) in the state's dtype
  OptionalTensor dropout;                    // (T, L, B, H)
  OptionalTensor padding;                    // (B, S)
  Tensor w_out;                              // (H, H): the part of h
  bool attends = false;

  DecoderRun(
      const DecoderSizes& size, const GateOptions& gates, const OptionalTensor& seed, const OptionalTensor& rows,
      const Context& context, const Tensor& x, const Tensor& c_0_given, at::TensorList w_ih, at::TensorList w_hh,
      const OptionalTensor& dropout_mask)
      : size(size),
        source(gates, seed, 0, rows, x.device()),
        stream(context.stream),
        options(x.options()),
        state_options(options.dtype(state_dtype(x))),
        c_0(c_0_given.to(state_dtype(x)).contiguous()) {
    for (std::int64_t layer = 0; layer < size.layers; ++layer) {
      const Tensor below = layer == 0 ? w_ih[0].narrow(1, size.inputs, size.units) : w_ih[layer];
      weights.push_back(at::cat({below, w_hh[layer]}, 1));
    }
    if (!dropout_mask.has_value()) return;
    check_shape("dropout_mask", *dropout_mask, {size.steps, size.layers, size.rows, size.units});
    TORCH_CHECK_VALUE(
        dropout_mask->device() == x.device(), "dropout_mask is on ", dropout_mask->device(), " and the others on ",
        x.device(), ": move all to one device");
    dropout = dropout_mask->to(x.scalar_type()).contiguous();
  }

  void attend(const OptionalTensor& source_padding, const Tensor& weight) {
    attends = true;
    if (source_padding.has_value()) padding = source_padding->t().contiguous();
    w_out = weight.narrow(1, size.source_units, size.units);
  }

  std::int64_t top() const { return size.layers - 1; }
  Tensor below(const Tensor& operand) const { return operand.narrow(1, 0, size.units); }
  Tensor own(const Tensor& operand) const { return operand.narrow(1, size.units, size.units); }

  std::vector<Tensor> operands() const {
    std::vector<Tensor> out;
    for (std::int64_t layer = 0; layer < size.layers; ++layer) {
      out.push_back(at::empty({size.rows, 2 * size.units}, options));
    }
    return out;
  }

  // Rows of the lower and the own half of an operand.
  template <class T>
  Rows<T> below_rows(const Tensor& operand) const {
    return {mutable_data<std::remove_const_t<T>>(operand), 2 * size.units};
  }
  template <class T>
  Rows<T> own_rows(const Tensor& operand) const {
    return {mutable_data<std::remove_const_t<T>>(operand) + size.units, 2 * size.units};
  }

  template <class T>
  const T* dropout_at(std::int64_t t, std::int64_t layer) const {
    return dropout.has_value() ? data_at<T>(*dropout, t, layer) : nullptr;
  }

  template <class T>
  void fill(CellStep<T>& step, std::int64_t t, std::int64_t layer, const Tensor& a, const Tensor& cells) const {
    source.fill(step);
    step.noise.stream = static_cast<std::uint32_t>(2 * layer);
    step.t = t;
    step.a = data_at<T>(a, layer, t);
    step.c = t > 0 ? data_at<State<T>>(cells, layer, t - 1) : data_at<State<T>>(c_0, layer);
    step.n_rows = size.rows;
    step.h_size = size.units;
  }
};

struct Forward {
  std::vector<Tensor> operands;
  Tensor a, cells, hiddens, outputs, undropped, attention, z, keys, values;
  std::vector<OptionalTensor> bias;
};

// An operand's lower half gets what is below times dropout, its own half the cell's h.
template <class T>
void run_forward(const DecoderRun& run, Forward& it) {
  const std::int64_t top = run.top();
  for (std::int64_t t = 0; t < run.size.steps; ++t) {
    for (std::int64_t layer = 0; layer <= top; ++layer) {
      Tensor a = it.a[layer][t];
      if (layer == 0) {
        a.addmm_(it.operands[0], run.weights[0].t());
      } else {
        product(a, it.bias[layer], it.operands[layer], run.weights[layer].t());
      }
      ForwardStep<T> step;
      run.fill(step, t, layer, it.a, it.cells);
      step.c_next = mutable_data_at<State<T>>(it.cells, layer, t);
      step.h_next = mutable_data_at<T>(it.hiddens, layer, t);
      step.h_state = run.own_rows<T>(it.operands[layer]);
      if (layer < top || !run.attends) {
        step.above = run.below_rows<T>(it.operands[layer < top ? layer + 1 : 0]);
        step.dropout = run.dropout_at<T>(t, layer);
      }
      if (it.z.numel() > 0) step.z = mutable_data_at<State<T>>(it.z, layer, t);
      launch(step, run.stream);
    }
    if (!run.attends) continue;
    const Tensor h = it.hiddens[top][t];
    Tensor output = it.outputs[t];
    at::mm_out(output, h, run.w_out.t());
    AttentionForward<T> step;
    step.h = data<T>(h);
    step.keys = data<T>(it.keys);
    step.values = data<T>(it.values);
    step.padding = data_or_null<bool>(run.padding);
    step.pre = data<T>(output);
    step.weights = mutable_data_at<State<T>>(it.attention, t);
    if (it.undropped.numel() > 0) step.undropped = mutable_data_at<T>(it.undropped, t);
    step.dropout = run.dropout_at<T>(t, top);
    step.out = mutable_data<T>(output);
    step.feed = run.below_rows<T>(it.operands[0]);
    step.n_rows = run.size.rows;
    step.s_size = run.size.source;
    step.h_size = run.size.units;
    launch(step, run.stream);
  }
  if (run.attends) return;
  if (run.dropout.has_value()) {
    at::mul_out(it.outputs, it.hiddens[top], run.dropout->select(1, top));
  } else {
    it.outputs.copy_(it.hiddens[top]);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> decoder(
    const Tensor& x_given, const Tensor& h_0, const Tensor& c_0, const Tensor& feed_0, at::TensorList w_ih,
    at::TensorList w_hh, at::TensorList bias, const OptionalTensor& source, const OptionalTensor& source_padding,
    const OptionalTensor& w_query, const OptionalTensor& w_out, const OptionalTensor& dropout_mask,
    const OptionalTensor& seed, const OptionalTensor& rows, double temperature, double noise_prob,
    c10::string_view noise_sharing, bool hard, bool need_gates) {
  const GateOptions gates(temperature, noise_prob, noise_sharing, hard);
  DecoderSizes size(x_given, h_0, c_0, feed_0, w_ih, w_hh, bias);
  size.check_attention(x_given, source, source_padding, w_query, w_out);
  check_seed(seed);
  check_rows(rows, size.rows);
  const Context context(x_given);
  DecoderRun run(size, gates, seed, rows, context, x_given, c_0, w_ih, w_hh, dropout_mask);
  if (source.has_value()) run.attend(source_padding, *w_out);
  const Tensor x = x_given.contiguous();

  Forward it;
  it.operands = run.operands();
  run.below(it.operands[0]).copy_(feed_0);
  for (std::int64_t layer = 0; layer < size.layers; ++layer) {
    run.own(it.operands[layer]).copy_(h_0[layer]);
    it.bias.push_back(bias.empty() ? std::nullopt : OptionalTensor(bias[layer].contiguous()));
  }
  it.a = at::empty({size.layers, size.steps, size.rows, 4 * size.units}, run.options);
  Tensor a_x = flat(it.a[0]);
  product(a_x, it.bias[0], flat(x), w_ih[0].narrow(1, 0, size.inputs).t());
  it.hiddens = at::empty({size.layers, size.steps, size.rows, size.units}, run.options);
  it.cells = at::empty(it.hiddens.sizes(), run.state_options);
  it.outputs = at::empty({size.steps, size.rows, size.units}, run.options);
  it.undropped = at::empty({0}, run.options);
  if (run.attends && run.dropout.has_value()) it.undropped = at::empty_like(it.outputs);
  it.attention = at::empty({size.steps, size.rows, size.source}, run.state_options);
  it.z = at::empty({size.layers, need_gates ? size.steps : 0, size.rows, 2 * size.units}, run.state_options);
  it.keys = at::empty({0}, run.options), it.values = at::empty({0}, run.options);
  if (run.attends) {
    const Tensor states = source->transpose(0, 1).contiguous();
    it.keys = at::matmul(states, *w_query);
    it.values = at::matmul(states, w_out->narrow(1, 0, size.source_units).t());
  }
  for_type(x.scalar_type(), [&](auto type) { run_forward<decltype(type)>(run, it); });
  const std::int64_t last = size.steps - 1;
  const auto copy = [&](const Tensor& tensor) { return tensor.to(x.scalar_type(), false, /*copy=*/true).contiguous(); };
  return {
      it.outputs,   copy(it.hiddens.select(1, last)),
      copy(it.cells.select(1, last)), it.outputs[last].clone(),
      it.attention, it.z,
      it.a,         it.cells,
      it.hiddens,   it.undropped,
      it.keys,      it.values};
}

struct Backward {
  std::vector<Tensor> grad_operands;  // gradients of what the next step's operands hold
  OptionalTensor grad_outputs, grad_attention;
  Tensor a, cells, tanh_outputs, attention, keys, values;
  Tensor grad_c, grad_a, grad_pre, grad_scores, grad_top;
};

// The gradient of the output before tanh (grad_pre) and of the scores, and of the last cell's h (grad_top).
template <class T>
void run_attention_backward(const DecoderRun& run, Backward& it, std::int64_t t) {
  const Tensor grad_pre = it.grad_pre[t];
  AttentionBackward<T> step;
  if (it.grad_outputs.has_value()) step.grad_out = data_at<T>(*it.grad_outputs, t);
  step.grad_feed = run.below_rows<const T>(it.grad_operands[0]);
  if (it.grad_attention.has_value()) step.grad_weights = data_at<State<T>>(*it.grad_attention, t);
  step.keys = data<T>(it.keys);
  step.values = data<T>(it.values);
  step.weights = data_at<State<T>>(it.attention, t);
  step.undropped = data_at<T>(it.tanh_outputs, t);
  step.dropout = run.dropout_at<T>(t, run.top());
  step.grad_pre = mutable_data<T>(grad_pre);
  step.grad_scores = mutable_data_at<State<T>>(it.grad_scores, t);
  step.grad_h = mutable_data<T>(it.grad_top);
  step.n_rows = run.size.rows;
  step.s_size = run.size.source;
  step.h_size = run.size.units;
  launch(step, run.stream);
  it.grad_top.addmm_(grad_pre, run.w_out);
}

template <class T>
void run_backward(const DecoderRun& run, Backward& it) {
  const std::int64_t top = run.top();
  for (std::int64_t t = run.size.steps - 1; t >= 0; --t) {
    if (run.attends) {
      run_attention_backward<T>(run, it, t);
    } else if (it.grad_outputs.has_value()) {
      run.below(it.grad_operands[0]).add_((*it.grad_outputs)[t]);
    }
    for (std::int64_t layer = top; layer >= 0; --layer) {
      const Tensor grad_a = it.grad_a[layer][t];
      BackwardStep<T> step;
      run.fill(step, t, layer, it.a, it.cells);
      step.c_next = data_at<State<T>>(it.cells, layer, t);
      step.grad_h = run.own_rows<T>(it.grad_operands[layer]);
      if (layer == top && run.attends) {
        step.grad_above = {data<T>(it.grad_top), run.size.units};
      } else {
        step.grad_above = run.below_rows<const T>(it.grad_operands[layer < top ? layer + 1 : 0]);
        step.dropout = run.dropout_at<T>(t, layer);
      }
      step.grad_c = mutable_data_at<State<T>>(it.grad_c, layer);
      step.grad_a = mutable_data<T>(grad_a);
      launch(step, run.stream);
      at::mm_out(it.grad_operands[layer], grad_a, run.weights[layer]);
    }
  }
}

std::tuple<
    Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor, Tensor,
    Tensor>
decoder_backward(
    const OptionalTensor& grad_outputs, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const OptionalTensor& grad_feed_n, const OptionalTensor& grad_attention, const Tensor& x_given, const Tensor& h_0,
    const Tensor& c_0, const Tensor& feed_0, at::TensorList w_ih, at::TensorList w_hh, const OptionalTensor& source,
    const OptionalTensor& source_padding, const OptionalTensor& w_query, const OptionalTensor& w_out,
    const OptionalTensor& dropout_mask, const Tensor& outputs_given, const Tensor& attention, const Tensor& gates_given,
    const Tensor& cells, const Tensor& hiddens_given, const Tensor& undropped, const Tensor& keys, const Tensor& values,
    const OptionalTensor& seed, const OptionalTensor& rows, double temperature, double noise_prob,
    c10::string_view noise_sharing, bool hard) {
  const GateOptions gates(temperature, noise_prob, noise_sharing, hard);
  DecoderSizes size(x_given, h_0, c_0, feed_0, w_ih, w_hh, {});
  size.check_attention(x_given, source, source_padding, w_query, w_out);
  check_seed(seed);
  check_rows(rows, size.rows);
  const Context context(x_given);
  DecoderRun run(size, gates, seed, rows, context, x_given, c_0, w_ih, w_hh, dropout_mask);
  const Tensor x = x_given.contiguous();
  const Tensor outputs = kept("outputs", outputs_given, {size.steps, size.rows, size.units}, run.options);
  const Tensor hiddens =
      kept("hiddens", hiddens_given, {size.layers, size.steps, size.rows, size.units}, run.options);
  Backward it;
  it.a = kept("gates", gates_given, {size.layers, size.steps, size.rows, 4 * size.units}, run.options);
  it.cells = kept("cells", cells, hiddens.sizes(), run.state_options);
  it.attention = kept("attention", attention, {size.steps, size.rows, size.source}, run.state_options);
  if (source.has_value()) {
    run.attend(source_padding, *w_out);
    it.keys = kept("keys", keys, {size.rows, size.source, size.units}, run.options);
    it.values = kept("values", values, it.keys.sizes(), run.options);
    it.tanh_outputs = run.dropout.has_value() ? kept("undropped", undropped, outputs.sizes(), run.options) : outputs;
    it.grad_pre = at::empty(outputs.sizes(), run.options);
    it.grad_scores = at::empty(it.attention.sizes(), run.state_options);
    it.grad_top = at::empty({size.rows, size.units}, run.options);
  }
  if (grad_outputs.has_value()) it.grad_outputs = grad_outputs->to(run.options).contiguous();
  if (grad_attention.has_value()) it.grad_attention = grad_attention->to(run.state_options).contiguous();
  const auto start = [](const Tensor& to, const OptionalTensor& from) {
    if (from.has_value()) {
      to.copy_(*from);
    } else {
      to.zero_();
    }
  };
  it.grad_operands = run.operands();
  start(run.below(it.grad_operands[0]), grad_feed_n);
  for (std::int64_t layer = 0; layer < size.layers; ++layer) {
    start(run.own(it.grad_operands[layer]), grad_h_n.has_value() ? OptionalTensor((*grad_h_n)[layer]) : std::nullopt);
  }
  it.grad_c = at::empty_like(run.c_0);
  start(it.grad_c, grad_c_n);
  it.grad_a = at::empty(it.a.sizes(), run.options);
  for_type(x.scalar_type(), [&](auto type) { run_backward<decltype(type)>(run, it); });

  // What the steps share: one product over all of them for each weight.
  std::vector<Tensor> grad_w_ih, grad_w_hh, grad_bias, grad_h;
  for (std::int64_t layer = 0; layer < size.layers; ++layer) {
    const Tensor grad_a = it.grad_a[layer], grad_flat = flat(grad_a);
    if (layer == 0) {
      grad_w_ih.push_back(
          at::cat({at::mm(grad_flat.t(), flat(x)), shifted_weight_gradient(grad_a, outputs, feed_0)}, 1));
    } else {
      Tensor inputs = hiddens[layer - 1];
      if (run.dropout.has_value()) inputs = inputs * run.dropout->select(1, layer - 1);
      grad_w_ih.push_back(at::mm(grad_flat.t(), flat(inputs)));
    }
    grad_w_hh.push_back(shifted_weight_gradient(grad_a, hiddens[layer], h_0[layer]));
    grad_bias.push_back(grad_flat.sum(0));
    grad_h.push_back(run.own(it.grad_operands[layer]));
  }
  const Tensor grad_x = at::mm(flat(it.grad_a[0]), w_ih[0].narrow(1, 0, size.inputs)).view(x.sizes());
  const auto none = [&] { return at::empty({0}, run.options); };
  Tensor grad_source = none(), grad_w_query = none(), grad_w_out = none();
  if (run.attends) {
    const Tensor states = source->transpose(0, 1).contiguous(), top = hiddens[run.top()];
    const auto over_time = [&](const Tensor& weights, const Tensor& vectors) {  // (T, B, S), (T, B, H) -> (B S, H)
      return flat(at::bmm(weights.to(x.scalar_type()).permute({1, 2, 0}), vectors.transpose(0, 1)));
    };
    const Tensor grad_keys = over_time(it.grad_scores, top), grad_values = over_time(it.attention, it.grad_pre);
    grad_source = at::mm(grad_keys, w_query->t())
                      .addmm_(grad_values, w_out->narrow(1, 0, size.source_units))
                      .view(states.sizes())
                      .transpose(0, 1)
                      .contiguous();
    grad_w_query = at::mm(flat(states).t(), grad_keys);
    grad_w_out = at::cat({at::mm(grad_values.t(), flat(states)), at::mm(flat(it.grad_pre).t(), flat(top))}, 1);
  }
  const Tensor grad_feed = run.below(it.grad_operands[0]).clone(at::MemoryFormat::Contiguous);
  return {
      grad_x,    at::stack(grad_h), it.grad_c.to(c_0.scalar_type()), grad_feed,    grad_w_ih,
      grad_w_hh, grad_bias,         grad_source,                     grad_w_query, grad_w_out};
}

}  // namespace

void implement_decoder(torch::Library& library) {
  library.impl("decoder", decoder);
  library.impl("decoder_backward", decoder_backward);
}

}  // namespace g2lstm::cuda
