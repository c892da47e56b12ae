// The decoder's arguments, checked, for every backend.
#pragma once

#include <vector>

#include "common.h"

namespace g2lstm {

struct DecoderSizes {
  std::int64_t steps, rows, inputs, units, layers, source = 0, source_units = 0;

  DecoderSizes(
      const at::Tensor& x, const at::Tensor& h_0, const at::Tensor& c_0, const at::Tensor& feed_0,
      at::TensorList w_ih, at::TensorList w_hh, at::TensorList bias) {
    check_supported(x);
    TORCH_CHECK_VALUE(x.dim() == 3, "x must be (T, B, I), got ", x.dim(), " dimensions");
    TORCH_CHECK_VALUE(h_0.dim() == 3, "h_0 must be (L, B, H), got ", h_0.dim(), " dimensions");
    steps = x.size(0), rows = x.size(1), inputs = x.size(2), units = h_0.size(2);
    layers = static_cast<std::int64_t>(w_ih.size());
    TORCH_CHECK_VALUE(
        steps > 0 && rows > 0 && units > 0, "x must have at least one time step and one batch row, got ", steps,
        " time steps and ", rows, " batch rows");
    TORCH_CHECK_VALUE(
        layers > 0 && w_hh.size() == w_ih.size() && (bias.empty() || bias.size() == w_ih.size()),
        "w_ih and w_hh must hold one tensor for each of the cells, and bias too or none, got ", w_ih.size(), ", ",
        w_hh.size(), " and ", bias.size());
    check_shape("h_0", h_0, {layers, rows, units});
    check_shape("c_0", c_0, {layers, rows, units});
    check_shape("feed_0", feed_0, {rows, units});
    check_like("h_0", h_0, x);
    check_like("feed_0", feed_0, x);
    TORCH_CHECK_VALUE(c_0.device() == x.device(), "c_0 is on ", c_0.device(), " and x on ", x.device());
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      check_shape("w_ih", w_ih[layer], {4 * units, units + (layer == 0 ? inputs : 0)});
      check_shape("w_hh", w_hh[layer], {4 * units, units});
      check_like("w_ih", w_ih[layer], x);
      check_like("w_hh", w_hh[layer], x);
      if (bias.empty()) continue;
      check_shape("bias", bias[layer], {4 * units});
      check_like("bias", bias[layer], x);
    }
  }

  void check_dropout(const at::Tensor& x, const OptionalTensor& mask) const {
    if (!mask.has_value()) return;
    check_shape("dropout_mask", *mask, {steps, layers, rows, units});
    check_like("dropout_mask", *mask, x);
  }

  void check_attention(
      const at::Tensor& x, const OptionalTensor& states, const OptionalTensor& padding, const OptionalTensor& w_query,
      const OptionalTensor& w_out) {
    if (!states.has_value()) return;
    TORCH_CHECK_VALUE(
        w_query.has_value() && w_out.has_value(), "attention over a source needs w_query and w_out, got None");
    TORCH_CHECK_VALUE(states->dim() == 3, "source must be (S, B, E), got ", states->dim(), " dimensions");
    source = states->size(0), source_units = states->size(2);
    check_shape("source", *states, {source, rows, source_units});
    check_shape("w_query", *w_query, {source_units, units});
    check_shape("w_out", *w_out, {units, source_units + units});
    for (const at::Tensor& tensor : {*states, *w_query, *w_out}) check_like("the attention", tensor, x);
    if (!padding.has_value()) return;
    check_shape("source_padding", *padding, {source, rows});
    TORCH_CHECK_VALUE(
        padding->scalar_type() == at::kBool && padding->device() == x.device(), "source_padding must be bool on ",
        x.device(), ", got ", padding->scalar_type(), " on ", padding->device());
  }
};

}  // namespace g2lstm
