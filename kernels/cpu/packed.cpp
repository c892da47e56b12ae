// Products, layers and steps of beam search with packed weights on the CPU, for evaluation.
#include "packed.h"

#include <torch/library.h>

#include "decoder_step_run.h"
#include "layer_run.h"

namespace g2lstm {
namespace {

constexpr std::int64_t kOneThread = 1 << 18;  // multiplications that are not worth a second one

template <class F>
void multiply_integers(
    const Tensor& x, const Factor& factor, const Tensor& out, const OptionalTensor& start, bool fine) {
  const std::int64_t n_rows = x.size(0), size_k = x.size(1), size_n = factor.weights.size(0);
  const std::int64_t q_size = n_rows * padded_size(size_k);
  const Tensor q = at::empty({(fine ? 2 : 1) * q_size}, x.options().dtype(at::kShort));
  const Tensor row_scales = at::empty({n_rows}, x.options());
  Quantize<F> quantize;
  quantize.x = x.const_data_ptr<F>();
  quantize.stride = x.stride(0);
  quantize.size = size_k;
  quantize.q = q.mutable_data_ptr<std::int16_t>();
  if (fine) quantize.q_rest = quantize.q + q_size;
  quantize.scales = row_scales.mutable_data_ptr<F>();
  at::parallel_for(0, n_rows, 64, [&](auto begin, auto end) { core<F>().quantize(quantize, begin, end); });
  const Tensor scales = factor.scales.to(x.scalar_type());
  IntegerProduct<F> product;
  product.q = quantize.q;
  product.q_rest = quantize.q_rest;
  product.row_scales = quantize.scales;
  product.weights = factor.weights.const_data_ptr<std::int8_t>();
  product.scales = scales.const_data_ptr<F>();
  product.size_k = size_k;
  product.size_n = size_n;
  if (start.has_value()) {
    product.start_stride = start->dim() == 2 ? start->stride(0) : 0;
    product.start = start->const_data_ptr<F>();
  }
  product.out = out.mutable_data_ptr<F>();
  product.stride = out.stride(0);
  const std::int64_t columns_at_once = std::max<std::int64_t>(kOneThread / (n_rows * size_k), 4);
  at::parallel_for(0, size_n, columns_at_once, [&](auto begin, auto end) {
    core<F>().multiply_integers(product, begin, end, 0, n_rows);
  });
}

void multiply_factor(const Tensor& x, const Factor& factor, Tensor out, const OptionalTensor& start, bool fine) {
  if (factor.scales.defined()) {
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "g2lstm::packed_linear", [&] {
      multiply_integers<scalar_t>(x, factor, out, start, fine);
    });
    return;
  }
  const Tensor w = factor.weights.to(x.scalar_type()).t();
  if (start.has_value()) {
    at::addmm_out(out, *start, x, w);
  } else {
    at::mm_out(out, x, w);
  }
}

}  // namespace

void PackedWeight::multiply(const Tensor& x, const Tensor& out, const OptionalTensor& start, bool fine) const {
  std::int64_t row = 0;
  for (const std::vector<Factor>& chain : blocks) {
    Tensor left = x;
    for (std::size_t i = 0; i + 1 < chain.size(); ++i) {
      const Tensor product = at::empty({x.size(0), chain[i].weights.size(0)}, x.options());
      multiply_factor(left, chain[i], product, std::nullopt, fine);
      left = product;
    }
    const std::int64_t size = chain.back().weights.size(0);
    const OptionalTensor part =
        start.has_value() ? OptionalTensor(start->narrow(start->dim() - 1, row, size)) : std::nullopt;
    multiply_factor(left, chain.back(), out.narrow(1, row, size), part, fine);
    row += size;
  }
}

Tensor PackedReader::next_tensor() {
  TORCH_CHECK_VALUE(tensor_ < tensors_.size(), "packed weights lack a tensor that their layout names");
  return tensors_[tensor_++];
}

std::int64_t PackedReader::next_count(const char* of) {
  TORCH_CHECK_VALUE(count_ < layout_.size(), "the layout of packed weights lacks the number of ", of);
  const std::int64_t count = layout_[count_++];
  TORCH_CHECK_VALUE(count > 0, "the number of ", of, " of packed weights must be > 0, got ", count);
  return count;
}

PackedWeight PackedReader::next(const Tensor& like) {
  PackedWeight weight;
  const std::int64_t n_blocks = next_count("blocks");
  for (std::int64_t block = 0; block < n_blocks; ++block) {
    std::vector<Factor> chain;
    const std::int64_t n_factors = next_count("factors");
    for (std::int64_t i = 0; i < n_factors; ++i) {
      Factor factor{next_tensor(), {}};
      const Tensor& weights = factor.weights;
      TORCH_CHECK_VALUE(
          weights.dim() == 2 && weights.numel() > 0, "packed weights must be (N, K), got ", weights.sizes());
      TORCH_CHECK_VALUE(
          weights.device() == like.device(), "packed weights are on ", weights.device(), " and the others on ",
          like.device(), ": move all to one device");
      if (i > 0) {
        TORCH_CHECK_VALUE(
            weights.size(1) == chain.back().weights.size(0), "factors must follow one another, got ",
            chain.back().weights.sizes(), " and then ", weights.sizes());
      }
      if (weights.scalar_type() == at::kChar) {
        factor.weights = weights.contiguous();
        factor.scales = next_tensor().contiguous();
        TORCH_CHECK_VALUE(
            factor.scales.is_floating_point() && factor.scales.device() == like.device(),
            "scales must be floating-point numbers on ", like.device(), ", got ", factor.scales.scalar_type(), " on ",
            factor.scales.device());
        check_shape("scales", factor.scales, {weights.size(0)});
      } else {
        check_supported(weights);
      }
      chain.push_back(factor);
    }
    const std::int64_t inputs = chain.front().weights.size(1);
    TORCH_CHECK_VALUE(
        block == 0 || inputs == weight.inputs, "all blocks of rows must take ", weight.inputs, " inputs, got ", inputs);
    weight.inputs = inputs;
    weight.outputs += chain.back().weights.size(0);
    weight.blocks.push_back(std::move(chain));
  }
  return weight;
}

void PackedReader::finish() const {
  TORCH_CHECK_VALUE(
      tensor_ == tensors_.size() && count_ == layout_.size(), "packed weights hold more than their layout names");
}

namespace {

void check_matrix(const char* name, const PackedWeight& weight, std::int64_t outputs, std::int64_t inputs) {
  TORCH_CHECK_VALUE(
      weight.outputs == outputs && weight.inputs == inputs, name, " must have shape [", outputs, ", ", inputs,
      "], got [", weight.outputs, ", ", weight.inputs, "]");
}

Tensor packed_linear(
    const Tensor& x_given, at::TensorList tensors, at::IntArrayRef layout, const OptionalTensor& bias_given,
    bool fine) {
  check_supported(x_given);
  PackedReader reader(tensors, layout);
  const PackedWeight weight = reader.next(x_given);
  reader.finish();
  TORCH_CHECK_VALUE(
      x_given.dim() > 0 && x_given.size(-1) == weight.inputs, "x must have ", weight.inputs, " features, got shape ",
      x_given.sizes());
  const auto dtype = state_dtype(x_given);
  OptionalTensor bias;
  if (bias_given.has_value()) {
    check_shape("bias", *bias_given, {weight.outputs});
    bias = bias_given->to(dtype).contiguous();
  }
  const Tensor x = x_given.to(dtype).reshape({-1, weight.inputs}).contiguous();
  auto shape = x_given.sizes().vec();
  shape.back() = weight.outputs;
  Tensor out = at::empty({x.size(0), weight.outputs}, x.options());
  if (x.size(0) > 0) weight.multiply(x, out, bias, fine);
  return out.view(shape).to(x_given.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> packed_layer(
    const Tensor& x_given, const Tensor& h_0_given, const Tensor& c_0_given, at::TensorList tensors,
    at::IntArrayRef layout, const OptionalTensor& bias_given, const OptionalTensor& lengths_given, bool reverse,
    double temperature, bool hard, bool need_gates) {
  const GateOptions options(temperature, 0.0, "step", hard);
  check_supported(x_given);
  TORCH_CHECK_VALUE(x_given.dim() == 3, "x must be (T, B, I), got ", x_given.dim(), " dimensions");
  TORCH_CHECK_VALUE(h_0_given.dim() == 2, "h_0 must be (B, H), got ", h_0_given.dim(), " dimensions");
  const LayerShape size{x_given.size(0), x_given.size(1), x_given.size(2), h_0_given.size(1)};
  TORCH_CHECK_VALUE(
      size.steps > 0 && size.rows > 0 && size.units > 0, "x must have at least one time step and one batch row, got ",
      size.steps, " time steps and ", size.rows, " batch rows");
  check_shape("h_0", h_0_given, {size.rows, size.units});
  check_shape("c_0", c_0_given, {size.rows, size.units});
  check_like("h_0", h_0_given, x_given);
  check_like("c_0", c_0_given, x_given);
  PackedReader reader(tensors, layout);
  const PackedWeight w_ih = reader.next(x_given), w_hh = reader.next(x_given);
  reader.finish();
  check_matrix("w_ih", w_ih, 4 * size.units, size.inputs);
  check_matrix("w_hh", w_hh, 4 * size.units, size.units);
  check_lengths(lengths_given, size.steps, size.rows);
  const auto dtype = state_dtype(x_given), given = x_given.scalar_type();
  const auto as_state = [&](const Tensor& tensor) { return tensor.to(dtype).contiguous(); };
  const Tensor x = as_state(x_given), h_0 = as_state(h_0_given), c_0 = as_state(c_0_given);
  OptionalTensor bias;
  if (bias_given.has_value()) {
    check_shape("bias", *bias_given, {4 * size.units});
    bias = as_state(*bias_given);
  }
  const OptionalTensor lengths = ragged(lengths_given, size.steps);
  Tensor gates = at::empty({size.steps, size.rows, 4 * size.units}, x.options());
  w_ih.multiply(x.view({size.steps * size.rows, size.inputs}), gates.view({-1, 4 * size.units}), bias, /*fine=*/hard);
  Tensor outputs = at::empty({size.steps, size.rows, size.units}, x.options()), cells = at::empty_like(outputs);
  Tensor z = at::empty({need_gates ? size.steps : 0, size.rows, 2 * size.units}, x.options());
  Tensor h_n;
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::packed_layer", [&] {
    const auto recur = [&](ForwardStep<scalar_t>& step) {
      const std::int64_t rows = std::min(size.rows, step.product_end);
      if (rows == 0) return;
      const Tensor a = at::from_blob(step.a, {rows, 4 * size.units}, x.options());
      const Tensor h = at::from_blob(const_cast<scalar_t*>(step.h), {rows, size.units}, x.options());
      w_hh.multiply(h, a, a, /*fine=*/hard);
    };
    h_n = run_forward<scalar_t>(
        size, h_0, c_0, lengths, options.spec<scalar_t>(), Noise(), reverse, recur, gates, outputs, cells, z);
  });
  return {outputs.to(given), h_n.to(given), cells[reverse ? 0 : size.steps - 1].to(given, false, true), z};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> packed_decoder_step(
    const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& feed, at::TensorList tensors,
    at::IntArrayRef layout, at::TensorList bias, const OptionalTensor& keys, const OptionalTensor& values,
    const OptionalTensor& padding, const OptionalTensor& rows, const OptionalTensor& w_out, double temperature,
    bool hard) {
  DecoderStepShape size(x, h, c, feed);
  size.check_biases(x, bias);
  size.check_memory(x, keys, values, padding, w_out);
  PackedReader reader(tensors, layout);
  std::vector<PackedWeight> w_ih, w_hh;
  for (std::int64_t layer = 0; layer < size.layers; ++layer) {
    w_ih.push_back(reader.next(x));
    w_hh.push_back(reader.next(x));
    check_matrix("w_ih", w_ih.back(), 4 * size.units, size.units + (layer == 0 ? size.inputs : 0));
    check_matrix("w_hh", w_hh.back(), 4 * size.units, size.units);
  }
  reader.finish();
  const auto product = [&](std::int64_t layer, const Tensor& input, const Tensor& h_before) {
    OptionalTensor start;
    if (!bias.empty()) start = bias[layer].to(input.scalar_type()).contiguous();
    const Tensor a = at::empty({size.rows, 4 * size.units}, input.options());
    w_ih[layer].multiply(input, a, start, /*fine=*/hard);
    w_hh[layer].multiply(h_before.contiguous(), a, a, /*fine=*/hard);
    return a;
  };
  return run_decoder_step(size, x, h, c, feed, product, keys, values, padding, rows, w_out, temperature, hard);
}

}  // namespace

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) {
  m.impl("packed_linear", packed_linear);
  m.impl("packed_layer", packed_layer);
  m.impl("packed_decoder_step", packed_decoder_step);
}

}  // namespace g2lstm
