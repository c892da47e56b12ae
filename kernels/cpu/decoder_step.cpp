// One step of beam search on the CPU: no noise, no dropout, no gradients.
#include <torch/library.h>

#include "decoder_step_run.h"
#include "matrix.h"

namespace g2lstm {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> decoder_step(
    const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& feed, at::TensorList w_ih, at::TensorList w_hh,
    at::TensorList bias, const OptionalTensor& keys, const OptionalTensor& values, const OptionalTensor& padding,
    const OptionalTensor& rows, const OptionalTensor& w_out, double temperature, bool hard) {
  DecoderStepSizes size(x, h, c, feed, w_ih, w_hh, bias);
  size.check_memory(x, keys, values, padding, w_out);
  const auto dtype = state_dtype(x);
  const auto product = [&](std::int64_t layer, const Tensor& input, const Tensor& h_before) {
    const Tensor w = w_ih[layer].to(dtype).t();
    const Tensor a = matrix_product(
        input, w, bias.empty() ? std::nullopt : OptionalTensor(bias[layer].to(dtype).contiguous()));
    return matrix_product(h_before, w_hh[layer].to(dtype).t(), a);
  };
  return run_decoder_step(size, x, h, c, feed, product, keys, values, padding, rows, w_out, temperature, hard);
}

}  // namespace

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) { m.impl("decoder_step", decoder_step); }

}  // namespace g2lstm
