// The operators on CUDA, and what they share: types, streams, noise.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "../binding/common.h"
#include "launch.h"

namespace g2lstm::cuda {

using at::Tensor;

// The current stream of a device.
StreamHandle current_stream(const at::Device& device);

void define_layer(torch::Library& library);  // what it can be asked, whatever tensors there are
void implement_step(torch::Library& library);
void implement_layer(torch::Library& library);
void implement_decoder(torch::Library& library);
void implement_decoder_step(torch::Library& library);

// Makes a tensor's device current, and takes its stream, while an operator runs.
struct Context {
  c10::OptionalDeviceGuard guard;
  StreamHandle stream;

  explicit Context(const Tensor& like) : guard(like.device()), stream(current_stream(like.device())) {}
};

// Calls function(T()) with the type of the kernels' template argument.
template <class Function>
void for_type(at::ScalarType dtype, Function&& function) {
  switch (dtype) {
    case at::kFloat:
      return function(float());
    case at::kDouble:
      return function(double());
    case at::kHalf:
      return function(Half());
    default:
      TORCH_INTERNAL_ASSERT(dtype == at::kBFloat16);
      return function(BFloat16());
  }
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <class T>
const T* data_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}

// The i-th slice of a contiguous tensor, and the j-th of that: cheaper than a tensor of it at every step.
template <class T>
const T* data_at(const Tensor& tensor, std::int64_t i, std::int64_t j = 0) {
  return data<T>(tensor) + i * tensor.stride(0) + (j > 0 ? j * tensor.stride(1) : 0);
}
template <class T>
T* mutable_data_at(const Tensor& tensor, std::int64_t i, std::int64_t j = 0) {
  return mutable_data<T>(tensor) + i * tensor.stride(0) + (j > 0 ? j * tensor.stride(1) : 0);
}

// What forward has kept for backward, as the kernels read it.
inline Tensor kept(const char* name, const Tensor& tensor, at::IntArrayRef shape, const at::TensorOptions& options) {
  check_shape(name, tensor, shape);
  TORCH_CHECK_VALUE(
      tensor.device() == options.device() && tensor.dtype() == options.dtype(), name, " must be ", options.dtype(),
      " on ", options.device(), " as the forward operator returned it, got ", tensor.dtype(), " on ",
      tensor.device());
  return tensor.contiguous();
}

// A CUDA graph keeps what the CPU gave at its capture.
inline void check_not_captured(const at::Device& device, const char* what) {
  TORCH_CHECK(
      !is_captured(current_stream(device)), what, " from the CPU at each call and cannot be captured in a CUDA graph, "
      "whose replays would not see it change");
}

// Numbers of the CPU on the device, without waiting for it: torch copies pageable memory before it returns, but pinned
// memory, which the caller may write to again, when the device comes to it.
inline OptionalTensor to_device(const OptionalTensor& numbers, const at::Device& device) {
  if (!numbers.has_value()) return std::nullopt;
  if (numbers->is_cpu()) check_not_captured(device, "lengths and numbers of rows come");
  const bool is_pinned = numbers->is_cpu() && numbers->is_pinned();
  return numbers->to(at::TensorOptions(device), /*non_blocking=*/!is_pinned).contiguous();
}

// What gates need beside their pre-activations.
struct GateSource {
  GateOptions options;
  NoiseSpec noise;
  OptionalTensor rows;  // on the device

  GateSource(
      const GateOptions& options, const OptionalTensor& seed, std::int64_t stream, const OptionalTensor& given_rows,
      const at::Device& device)
      : options(options) {
    options.fill(noise, seed, stream);
    if (noise.threshold == 0) return;
    check_not_captured(device, "the noise's seed comes");
    rows = to_device(given_rows, device);
  }

  template <class T>
  void fill(CellStep<T>& step) const {
    step.gates = options.spec<State<T>>();
    step.noise = noise;
    step.rows = data_or_null<std::int64_t>(rows);
  }
};

// (..., N) as (rows, N)
inline Tensor flat(const Tensor& tensor) { return tensor.flatten(0, -2); }

// out = bias + left times right, or left times right
inline void product(Tensor& out, const OptionalTensor& bias, const Tensor& left, const Tensor& right) {
  if (bias.has_value()) {
    at::addmm_out(out, *bias, left, right);
  } else {
    at::mm_out(out, left, right);
  }
}

// The gradient of weights that multiply what the step before made: grad[1:]^T times made[:-1], and grad[0]^T times
// `first`, which the first step got instead. grad (T, B, N), made (T, B, K), first (B, K) -> (N, K)
inline Tensor shifted_weight_gradient(const Tensor& grad, const Tensor& made, const Tensor& first) {
  const std::int64_t later = grad.size(0) - 1;
  if (later == 0) return at::mm(grad[0].t(), first);
  return at::mm(flat(grad.narrow(0, 1, later)).t(), flat(made.narrow(0, 0, later))).addmm_(grad[0].t(), first);
}

}  // namespace g2lstm::cuda
