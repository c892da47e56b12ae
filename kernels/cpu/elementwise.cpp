// Dropout and the cross-entropy on the CPU.
#include <torch/library.h>

#include "tensors.h"

namespace g2lstm {
namespace {

Tensor dropout(const Tensor& x_given, const Tensor& seed, double p) {
  check_supported(x_given);
  check_seed(seed);
  TORCH_CHECK_VALUE(p >= 0 && p <= 1, "p must be a probability between 0 and 1, got ", p);
  const auto dtype = state_dtype(x_given);
  const Tensor x = x_given.to(dtype).contiguous();
  Tensor y = at::empty_like(x);
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::dropout", [&] {
    Dropout<scalar_t> task;
    task.x = x.const_data_ptr<scalar_t>();
    task.y = y.mutable_data_ptr<scalar_t>();
    task.size = x.numel();
    task.seed = static_cast<std::uint64_t>(seed.item<std::int64_t>());
    task.threshold = static_cast<std::uint64_t>(std::floor(p * 4294967296.0));
    task.scale = p < 1 ? static_cast<scalar_t>(1 / (1 - p)) : 0;
    const std::int64_t blocks = (task.size + kDropoutBlock - 1) / kDropoutBlock;
    at::parallel_for(0, blocks, 256, [&](auto begin, auto end) { core<scalar_t>().dropout(task, begin, end); });
  });
  return y.to(x_given.scalar_type());
}

constexpr std::int64_t kRowGrain = 4;  // rows of logits that are worth a thread

template <class F>
CrossEntropy<F> make_task(
    const Tensor& logits, const Tensor& targets, const Tensor& log_normalizer, std::int64_t ignore_index) {
  CrossEntropy<F> task;
  task.logits = logits.const_data_ptr<F>();
  task.targets = targets.const_data_ptr<std::int64_t>();
  task.classes = logits.size(1);
  task.ignore_index = ignore_index;
  task.log_normalizer = log_normalizer.mutable_data_ptr<double>();
  return task;
}

// logits (N, V) and targets (N,), each a class or ignore_index
void check_cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t ignore_index) {
  check_supported(logits);
  TORCH_CHECK_VALUE(logits.dim() == 2 && logits.size(1) > 0, "logits must be (N, V), got ", logits.sizes());
  const std::int64_t rows = logits.size(0), classes = logits.size(1);
  TORCH_CHECK_VALUE(
      targets.scalar_type() == at::kLong && targets.dim() == 1 && targets.size(0) == rows && targets.is_cpu(),
      "targets must be ", rows, " int64 numbers on the CPU, got ", targets.sizes(), " of ", targets.scalar_type(),
      " on ", targets.device());
  const auto* const target = targets.const_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t number = target[row * targets.stride(0)];
    TORCH_CHECK_INDEX(
        number == ignore_index || (number >= 0 && number < classes), "targets must be between 0 and ", classes - 1,
        ", got ", number);
  }
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy(
    const Tensor& logits_given, const Tensor& targets_given, std::int64_t ignore_index) {
  check_cross_entropy(logits_given, targets_given, ignore_index);
  const std::int64_t rows = logits_given.size(0);
  const auto dtype = state_dtype(logits_given);
  const Tensor logits = logits_given.to(dtype).contiguous(), targets = targets_given.contiguous();
  Tensor nll = at::empty({rows}, logits.options().dtype(at::kDouble));
  Tensor smooth = at::empty_like(nll), log_normalizer = at::empty_like(nll);
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::cross_entropy", [&] {
    auto task = make_task<scalar_t>(logits, targets, log_normalizer, ignore_index);
    task.nll = nll.mutable_data_ptr<double>();
    task.smooth = smooth.mutable_data_ptr<double>();
    at::parallel_for(
        0, rows, kRowGrain, [&](auto begin, auto end) { core<scalar_t>().cross_entropy(task, begin, end); });
  });
  return {nll.sum().to(dtype), smooth.sum().to(dtype), log_normalizer};
}

Tensor cross_entropy_backward(
    const OptionalTensor& grad_nll, const OptionalTensor& grad_smooth, const Tensor& logits_given,
    const Tensor& targets_given, const Tensor& log_normalizer, std::int64_t ignore_index) {
  check_cross_entropy(logits_given, targets_given, ignore_index);
  const auto dtype = state_dtype(logits_given);
  check_saved("log_normalizer", log_normalizer, {logits_given.size(0)}, at::kDouble);
  const Tensor logits = logits_given.to(dtype).contiguous(), targets = targets_given.contiguous();
  Tensor grad = at::empty_like(logits);
  AT_DISPATCH_FLOATING_TYPES(dtype, "g2lstm::cross_entropy_backward", [&] {
    auto task = make_task<scalar_t>(logits, targets, log_normalizer, ignore_index);
    task.grad = grad.mutable_data_ptr<scalar_t>();
    task.grad_nll = grad_nll.has_value() ? grad_nll->item<scalar_t>() : 0;
    task.grad_smooth = grad_smooth.has_value() ? grad_smooth->item<scalar_t>() : 0;
    at::parallel_for(0, logits.size(0), kRowGrain, [&](auto begin, auto end) {
      core<scalar_t>().cross_entropy_backward(task, begin, end);
    });
  });
  return grad.to(logits_given.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) {
  m.impl("dropout", dropout);
  m.impl("cross_entropy", cross_entropy);
  m.impl("cross_entropy_backward", cross_entropy_backward);
}

}  // namespace g2lstm
