// The arguments of single steps, checked, for every backend.
#pragma once

#include "common.h"

namespace g2lstm {

// The sizes of a step: a (B, 4H) and c (B, H), c in the dtype of a or of the state.
struct StepSizes {
  std::int64_t rows, units;

  StepSizes(const at::Tensor& a, const at::Tensor& c) {
    check_supported(a);
    TORCH_CHECK_VALUE(a.dim() == 2 && a.size(1) > 0 && a.size(1) % 4 == 0, "a must be (B, 4H), got ", a.sizes());
    rows = a.size(0), units = a.size(1) / 4;
    check_shape("c", c, {rows, units});
    TORCH_CHECK_VALUE(c.device() == a.device(), "c is on ", c.device(), " and a on ", a.device());
    TORCH_CHECK_VALUE(
        c.scalar_type() == a.scalar_type() || c.scalar_type() == state_dtype(a), "c must have dtype ", state_dtype(a),
        ", got ", c.scalar_type());
  }
};

// The sizes of a decoder's step: x (B, I), h and c (L, B, H), feed (B, H).
struct DecoderStepShape {
  std::int64_t rows, inputs, units, layers, source = 0, source_rows = 0;

  DecoderStepShape(const at::Tensor& x, const at::Tensor& h, const at::Tensor& c, const at::Tensor& feed) {
    check_supported(x);
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) > 0, "x must be (B, I) with at least one row, got ", x.sizes());
    TORCH_CHECK_VALUE(
        h.dim() == 3 && h.size(0) > 0 && h.size(2) > 0, "h must be (L, B, H), got ", h.sizes());
    rows = x.size(0), inputs = x.size(1), units = h.size(2), layers = h.size(0);
    check_shape("h", h, {layers, rows, units});
    check_shape("c", c, {layers, rows, units});
    check_shape("feed", feed, {rows, units});
    for (const at::Tensor& tensor : {h, c, feed}) check_like("a state", tensor, x);
  }

  void check_biases(const at::Tensor& x, at::TensorList bias) const {
    TORCH_CHECK_VALUE(
        bias.empty() || static_cast<std::int64_t>(bias.size()) == layers, "bias must hold one tensor for each of ",
        layers, " cells or none, got ", bias.size());
    for (const at::Tensor& each : bias) {
      check_shape("bias", each, {4 * units});
      check_like("bias", each, x);
    }
  }

  // keys and values (B', S, H), padding (B', S), w_out (H, E + H)
  void check_memory(
      const at::Tensor& x, const OptionalTensor& keys, const OptionalTensor& values, const OptionalTensor& padding,
      const OptionalTensor& w_out) {
    if (!keys.has_value()) return;
    TORCH_CHECK_VALUE(values.has_value() && w_out.has_value(), "attention needs keys, values and w_out, got None");
    TORCH_CHECK_VALUE(
        keys->dim() == 3 && keys->size(2) == units, "keys must be (B', S, H) with H = ", units, ", got ",
        keys->sizes());
    source_rows = keys->size(0), source = keys->size(1);
    check_shape("values", *values, keys->sizes());
    for (const at::Tensor& tensor : {*keys, *values, *w_out}) check_like("the attention", tensor, x);
    TORCH_CHECK_VALUE(
        w_out->dim() == 2 && w_out->size(0) == units && w_out->size(1) >= units, "w_out must be (H, E + H), got ",
        w_out->sizes());
    if (!padding.has_value()) return;
    check_shape("source_padding", *padding, {source_rows, source});
    TORCH_CHECK_VALUE(
        padding->scalar_type() == at::kBool && padding->device() == x.device(), "source_padding must be bool on ",
        x.device(), ", got ", padding->scalar_type(), " on ", padding->device());
  }

  // source_rows (B,), the memory's row of each batch row, or none where they are the same. Their values are looked at
  // only where they are on the CPU.
  void check_source_rows(const at::Tensor& x, const OptionalTensor& given) const {
    if (!given.has_value()) {
      TORCH_CHECK_VALUE(
          source_rows == rows, "keys must have ", rows, " rows, or source_rows say whose they are, got ", source_rows);
      return;
    }
    TORCH_CHECK_VALUE(
        given->scalar_type() == at::kLong && given->dim() == 1 && given->size(0) == rows &&
            (given->is_cpu() || given->device() == x.device()),
        "source_rows must be ", rows, " int64 numbers on the CPU or on ", x.device(), ", got ", given->sizes(), " of ",
        given->scalar_type(), " on ", given->device());
    if (!given->is_cpu()) return;
    TORCH_CHECK_VALUE(
        given->min().item<std::int64_t>() >= 0 && given->max().item<std::int64_t>() < source_rows,
        "source_rows must be between 0 and ", source_rows - 1);
  }
};

struct DecoderStepSizes : DecoderStepShape {
  DecoderStepSizes(
      const at::Tensor& x, const at::Tensor& h, const at::Tensor& c, const at::Tensor& feed, at::TensorList w_ih,
      at::TensorList w_hh, at::TensorList bias)
      : DecoderStepShape(x, h, c, feed) {
    TORCH_CHECK_VALUE(
        static_cast<std::int64_t>(w_ih.size()) == layers && w_hh.size() == w_ih.size(),
        "w_ih and w_hh must hold one tensor for each of ", layers, " cells, got ", w_ih.size(), " and ", w_hh.size());
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      check_shape("w_ih", w_ih[layer], {4 * units, units + (layer == 0 ? inputs : 0)});
      check_shape("w_hh", w_hh[layer], {4 * units, units});
      check_like("w_ih", w_ih[layer], x);
      check_like("w_hh", w_hh[layer], x);
    }
    check_biases(x, bias);
  }
};

}  // namespace g2lstm
