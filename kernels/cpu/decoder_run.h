// The decoder's loops over time, forward and backward.
//
// Three regions a step: the cells; the attention, by batch rows; the output. Layers but the last add one each.
#pragma once

#include "../binding/decoder.h"
#include "tensors.h"

namespace g2lstm {

struct DecoderRun {
  GateOptions options;
  Noise noise;
  std::int64_t steps = 0, rows = 0, inputs = 0, units = 0, layers = 0, source = 0, source_units = 0;
  Tensor h_0, c_0, feed_0;  // (L, B, H), (L, B, H), (B, H)
  std::vector<Tensor> w_ih, w_hh, bias;
  OptionalTensor dropout;    // (T, L, B, H)
  Tensor gates, cells, hiddens, outputs, undropped, z;  // z (L, T, B, 2H)
  Tensor keys, values, attention, w_out;  // (B, S, H), (B, S, H), (T, B, S)
  OptionalTensor padding;                 // (B, S)
  bool attends = false;
  // backward alone
  Tensor grad_h, grad_c, grad_out, grad_a, grad_bias, grad_context, grad_scores;  // grad_bias (L, 4H)
  OptionalTensor grad_weights;

  explicit DecoderRun(const GateOptions& options) : options(options) {}

  void take(
      const DecoderSizes& size, const Tensor& h_0_given, const Tensor& c_0_given, const Tensor& feed_0_given,
      std::vector<Tensor> input_weights, std::vector<Tensor> recurrent_weights, std::vector<Tensor> biases,
      OptionalTensor dropout_mask, at::ScalarType dtype) {
    steps = size.steps, rows = size.rows, inputs = size.inputs, units = size.units, layers = size.layers;
    source = size.source, source_units = size.source_units;
    h_0 = h_0_given.to(dtype).contiguous();
    c_0 = c_0_given.to(dtype).contiguous();
    feed_0 = feed_0_given.to(dtype).contiguous();
    w_ih = std::move(input_weights);
    w_hh = std::move(recurrent_weights);
    bias = std::move(biases);
    dropout = std::move(dropout_mask);
  }

  void attend(
      const Tensor& source_keys, const Tensor& source_values, const OptionalTensor& mask, const Tensor& weight) {
    attends = true;
    keys = source_keys;
    values = source_values;
    padding = mask.has_value() ? OptionalTensor(mask->t().contiguous()) : std::nullopt;
    w_out = weight;
  }

  // Rows of step t, of layer l where the tensor has layers.
  template <class F>
  F* at_step(const Tensor& tensor, std::int64_t t) const {
    return tensor.mutable_data_ptr<F>() + t * rows * tensor.size(-1);
  }
  template <class F>
  F* at_step(const Tensor& tensor, std::int64_t layer, std::int64_t t) const {
    return tensor.mutable_data_ptr<F>() + (layer * steps + t) * rows * tensor.size(-1);
  }
  // What a step takes from the one before: the first takes `start`.
  template <class F>
  const F* before(const Tensor& tensor, std::int64_t layer, std::int64_t t, const Tensor& start) const {
    return t > 0 ? at_step<F>(tensor, layer, t - 1) : start.const_data_ptr<F>() + layer * rows * units;
  }
  template <class F>
  const F* dropout_at(std::int64_t t, std::int64_t layer) const {
    return dropout.has_value() ? dropout->const_data_ptr<F>() + (t * layers + layer) * rows * units : nullptr;
  }
  const Tensor& tanh_outputs() const { return undropped.numel() > 0 ? undropped : outputs; }
  Tensor feed_weights() const { return w_ih[0].narrow(1, inputs, units); }
  Tensor output_weights() const { return w_out.narrow(1, source_units, units); }

  template <class F>
  void fill_attention(Attention<F>& step) const {
    step.keys = keys.const_data_ptr<F>();
    step.values = values.const_data_ptr<F>();
    step.padding = padding.has_value() ? padding->const_data_ptr<bool>() : nullptr;
    step.source_size = source;
    step.h_size = units;
  }

  template <class F>
  void forward() {
    const Core<F>& kernels = core<F>();
    const Columns columns{units, 4};
    std::vector<PackedWeights<F>> packed;
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const Tensor own = layer == 0 ? feed_weights() : w_ih[layer];
      packed.emplace_back(std::vector<Tensor>{own, w_hh[layer]}, columns, rows, /*transposed=*/true);
    }
    PackedWeights<F> packed_output;
    if (attends) packed_output = {{output_weights()}, {units, 1}, rows, /*transposed=*/true};
    const Tensor dropped = at::empty({2, rows, units}, outputs.options());  // a layer reads one and writes the other
    for (std::int64_t t = 0; t < steps; ++t) {
      const F* input = t > 0 ? at_step<F>(outputs, t - 1) : feed_0.const_data_ptr<F>();
      for (std::int64_t layer = 0; layer < layers; ++layer) {
        const bool last = layer == layers - 1;
        ForwardStep<F> step;
        step.product = packed[layer].product(
            {{input, units, units}, {before<F>(hiddens, layer, t, h_0), units, units}}, rows);
        step.a = at_step<F>(gates, layer, t);
        step.start_with_bias = layer > 0;
        step.bias = bias.empty() ? nullptr : bias[layer].const_data_ptr<F>();
        step.c = before<F>(cells, layer, t, c_0);
        step.c_next = at_step<F>(cells, layer, t);
        step.h_next = at_step<F>(hiddens, layer, t);
        step.z = z.numel() > 0 ? at_step<F>(z, layer, t) : nullptr;
        // The last cell's h is dropped only where it is the output.
        step.dropout = last && attends ? nullptr : dropout_at<F>(t, layer);
        step.dropped = last ? at_step<F>(outputs, t) : dropped.mutable_data_ptr<F>() + layer % 2 * rows * units;
        step.h_size = units;
        step.t = t;
        step.gates = options.spec<F>();
        step.noise = noise;
        step.noise.stream = static_cast<std::uint32_t>(2 * layer);
        split(kernels.blocks(columns), rows, [&](auto... range) { kernels.forward(step, range...); });
        input = step.dropout != nullptr ? step.dropped : step.h_next;
      }
      if (!attends) {
        if (!dropout.has_value()) std::copy(input, input + rows * units, at_step<F>(outputs, t));
        continue;
      }
      AttentionForward<F> attention_step;
      fill_attention<F>(attention_step);
      attention_step.h = input;
      attention_step.weights = at_step<F>(attention, t);
      attention_step.context = at_step<F>(tanh_outputs(), t);
      at::parallel_for(0, rows, 1, [&](auto begin, auto end) { kernels.attend(attention_step, begin, end); });
      OutputForward<F> output;
      output.product = packed_output.product({{input, units, units}}, rows);
      output.undropped = attention_step.context;
      output.dropout = dropout_at<F>(t, layers - 1);
      output.out = at_step<F>(outputs, t);
      output.h_size = units;
      split(kernels.blocks({units, 1}), rows, [&](auto... range) { kernels.output(output, range...); });
    }
  }

  // Gradients of the pre-activations (grad_a), of the context (grad_context: of the output before tanh) and of the
  // scores, and of h_0 and c_0 but for the first step's product.
  template <class F>
  void backward() {
    const Core<F>& kernels = core<F>();
    const Columns columns{units, 1};
    const std::int64_t blocks = kernels.blocks(columns), state = rows * units;
    const bool sums = splits_blocks_alone(blocks, rows);
    const PackedWeights<F> packed_feed({feed_weights()}, columns, rows);
    std::vector<PackedWeights<F>> packed, packed_input(layers);
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      std::vector<Tensor> weights;
      if (attends && layer == layers - 1) weights.push_back(output_weights());
      weights.push_back(w_hh[layer]);
      packed.emplace_back(std::move(weights), columns, rows);
      if (layer > 0) packed_input[layer] = {{w_ih[layer]}, columns, rows};
    }
    const Tensor grad_input = at::empty({rows, units}, outputs.options());
    const auto gates_of = [&](std::int64_t layer, std::int64_t t) {
      return Operand<F>{at_step<F>(grad_a, layer, t), 4 * units, 4 * units};
    };
    for (std::int64_t t = steps - 1; t >= 0; --t) {
      const bool later = t < steps - 1;
      F* const grad_output = at_step<F>(grad_context, t);
      InputGradient<F> output;
      if (later) output.product = packed_feed.product({gates_of(0, t + 1)}, rows);
      output.grad_out = grad_out.defined() ? at_step<F>(grad_out, t) : nullptr;
      output.dropout = dropout_at<F>(t, layers - 1);
      output.undropped = attends ? at_step<F>(tanh_outputs(), t) : nullptr;
      output.grad = grad_output;
      output.h_size = units;
      split(blocks, rows, [&](auto... range) { kernels.input_gradient(output, range...); });
      if (attends) {
        AttentionBackward<F> step;
        fill_attention<F>(step);
        step.grad_context = grad_output;
        step.grad_weights = grad_weights.has_value() ? at_step<F>(*grad_weights, t) : nullptr;
        step.weights = at_step<F>(attention, t);
        step.grad_scores = at_step<F>(grad_scores, t);
        step.grad_h = grad_h.mutable_data_ptr<F>() + (layers - 1) * state;
        at::parallel_for(0, rows, 1, [&](auto begin, auto end) { kernels.attend_backward(step, begin, end); });
      }
      for (std::int64_t layer = layers - 1; layer >= 0; --layer) {
        const bool last = layer == layers - 1;
        BackwardStep<F> step;
        if (!last) {
          InputGradient<F> above;
          above.product = packed_input[layer + 1].product({gates_of(layer + 1, t)}, rows);
          above.dropout = dropout_at<F>(t, layer);
          above.grad = grad_input.mutable_data_ptr<F>();
          above.h_size = units;
          split(blocks, rows, [&](auto... range) { kernels.input_gradient(above, range...); });
          step.grad_out = above.grad;
        } else if (!attends) {
          step.grad_out = grad_output;
        }
        const bool with_output = last && attends;
        const Operand<F> of_output{grad_output, units, units};
        if (with_output && later) {
          step.product = packed[layer].product({of_output, gates_of(layer, t + 1)}, rows);
        } else if (with_output) {
          step.product = packed[layer].product({of_output}, rows);
        } else if (later) {
          step.product = packed[layer].product({gates_of(layer, t + 1)}, rows);
        }
        step.grad_h = grad_h.mutable_data_ptr<F>() + layer * state;
        step.grad_c = grad_c.mutable_data_ptr<F>() + layer * state;
        step.gates = at_step<F>(gates, layer, t);
        step.c = before<F>(cells, layer, t, c_0);
        step.c_next = at_step<F>(cells, layer, t);
        step.grad_a = at_step<F>(grad_a, layer, t);
        if (sums) step.grad_bias = grad_bias.mutable_data_ptr<F>() + layer * 4 * units;
        step.h_size = units;
        step.t = t;
        step.spec = options.spec<F>();
        split(blocks, rows, [&](auto... range) { kernels.backward(step, range...); });
      }
    }
    if (!sums) grad_bias.copy_(grad_a.sum({1, 2}));
  }
};

}  // namespace g2lstm
