// What the bindings share: noise and gates as the kernels take them, and the checks of the operators' arguments.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "../common/cell.h"

namespace g2lstm {

using OptionalTensor = std::optional<at::Tensor>;

// A word of the noise's counter.
inline void check_number(const char* name, std::int64_t number) {
  TORCH_CHECK_VALUE(
      number >= 0 && number <= 0xffffffff, name, " must be >= 0 and fit the noise's 32 bits, got ", number);
}

// The options that every operator takes.
struct GateOptions {
  double temperature;
  double noise_prob;
  bool share_mask;
  bool share_uniform;
  bool hard;

  GateOptions(double temperature, double noise_prob, c10::string_view sharing, bool hard)
      : temperature(temperature),
        noise_prob(noise_prob),
        share_mask(sharing == "mask" || sharing == "sequence"),
        share_uniform(sharing == "sequence"),
        hard(hard) {
    TORCH_CHECK_VALUE(
        temperature > 0 && std::isfinite(temperature), "temperature must be > 0 and finite, got ", temperature);
    TORCH_CHECK_VALUE(
        noise_prob >= 0 && noise_prob <= 1, "noise_prob must be a probability between 0 and 1, got ", noise_prob);
    TORCH_CHECK_VALUE(
        sharing == "step" || share_mask, "noise_sharing must be one of step, mask, sequence, got ", sharing);
  }

  template <class F>
  GateSpec<F> spec() const {
    const double most = std::numeric_limits<F>::max();  // a smaller temperature's inverse would turn 0 into NaN
    return {static_cast<F>(std::min(1.0 / temperature, most)), hard};
  }

  void fill(NoiseSpec& noise, const OptionalTensor& seed, std::int64_t stream) const {
    if (noise_prob == 0 || hard) return;
    TORCH_CHECK_VALUE(seed.has_value(), "a noise probability above 0 needs a seed, got None");
    check_number("stream (2 * layer + direction)", stream);
    noise.seed = static_cast<std::uint64_t>(seed->item<std::int64_t>());
    noise.threshold = static_cast<std::uint64_t>(std::floor(noise_prob * 4294967296.0));
    noise.stream = static_cast<std::uint32_t>(stream);
    noise.share_mask = share_mask;
    noise.share_uniform = share_uniform;
  }
};

inline void check_seed(const OptionalTensor& seed) {
  if (!seed.has_value()) return;
  TORCH_CHECK_VALUE(
      seed->scalar_type() == at::kLong && seed->numel() == 1 && seed->device().is_cpu(),
      "seed must be one int64 number on the CPU, got ", seed->numel(), " of ", seed->scalar_type(), " on ",
      seed->device());
}

inline void check_rows(const OptionalTensor& rows, std::int64_t n_rows) {
  if (!rows.has_value()) return;
  TORCH_CHECK_VALUE(
      rows->scalar_type() == at::kLong && rows->dim() == 1 && rows->size(0) == n_rows && rows->device().is_cpu(),
      "rows must be ", n_rows, " int64 numbers on the CPU, got ", rows->sizes(), " of ", rows->scalar_type(), " on ",
      rows->device());
  if (n_rows == 0) return;
  check_number("rows", rows->min().item<std::int64_t>());
  check_number("rows", rows->max().item<std::int64_t>());
}

inline void check_shape(const char* name, const at::Tensor& tensor, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
}

// A tensor that the forward operator returned for its backward.
inline void check_saved(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype) {
  check_shape(name, tensor, shape);
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == dtype && tensor.is_contiguous(), name, " must be contiguous ", dtype, ", got ",
      tensor.scalar_type(), " with strides ", tensor.strides());
}

inline void check_like(const char* name, const at::Tensor& tensor, const at::Tensor& like) {
  TORCH_CHECK_VALUE(
      tensor.device() == like.device(), name, " is on ", tensor.device(), " and the others on ", like.device(),
      ": move all to one device");
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == like.scalar_type(), name, " has dtype ", tensor.scalar_type(), " and the others ",
      like.scalar_type(), ": convert all to one, or run under torch.autocast");
}

inline void check_lengths(const OptionalTensor& lengths, std::int64_t n_steps, std::int64_t n_rows) {
  if (!lengths.has_value()) return;
  TORCH_CHECK_VALUE(
      lengths->scalar_type() == at::kLong && lengths->dim() == 1 && lengths->size(0) == n_rows &&
          lengths->device().is_cpu(),
      "lengths must be ", n_rows, " int64 numbers on the CPU, got ", lengths->sizes(), " of ", lengths->scalar_type(),
      " on ", lengths->device());
  const auto shortest = lengths->min().item<std::int64_t>(), longest = lengths->max().item<std::int64_t>();
  TORCH_CHECK_VALUE(
      shortest >= 1 && longest <= n_steps, "lengths must be between 1 and ", n_steps, " (time steps), got ", shortest,
      " to ", longest);
}

inline void check_supported(const at::Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
      "g2lstm operators take float32, float64, float16 and bfloat16, got ", dtype);
}

struct LayerShape {
  std::int64_t steps, rows, inputs, units;
};

// The sizes of a layer, checked.
struct LayerSizes : LayerShape {
  LayerSizes(
      const at::Tensor& x, const at::Tensor& h_0, const at::Tensor& c_0, const at::Tensor& w_ih,
      const at::Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh) {
    check_supported(x);
    TORCH_CHECK_VALUE(x.dim() == 3, "x must be (T, B, I), got ", x.dim(), " dimensions");
    TORCH_CHECK_VALUE(w_hh.dim() == 2, "w_hh must be (4H, H), got ", w_hh.dim(), " dimensions");
    steps = x.size(0), rows = x.size(1), inputs = x.size(2), units = w_hh.size(1);
    TORCH_CHECK_VALUE(
        steps > 0 && rows > 0 && units > 0, "x must have at least one time step and one batch row, got ", steps,
        " time steps and ", rows, " batch rows");
    check_shape("h_0", h_0, {rows, units});
    check_shape("c_0", c_0, {rows, units});
    check_shape("w_ih", w_ih, {4 * units, inputs});
    check_shape("w_hh", w_hh, {4 * units, units});
    check_like("h_0", h_0, x);
    check_like("w_ih", w_ih, x);
    check_like("w_hh", w_hh, x);
    TORCH_CHECK_VALUE(c_0.device() == x.device(), "c_0 is on ", c_0.device(), " and x on ", x.device());
    for (const OptionalTensor& bias : {b_ih, b_hh}) {
      if (!bias.has_value()) continue;
      check_shape("a bias", *bias, {4 * units});
      check_like("a bias", *bias, x);
    }
  }
};

inline at::ScalarType state_dtype(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace g2lstm
