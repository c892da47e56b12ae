// What the CPU operators share: packed weights, noise and threads from tensors.
#pragma once

#include <vector>

#include "../binding/common.h"
#include "parallel.h"

namespace g2lstm {

using at::Tensor;

// Weights (K, N) of a product's operands, one below the other, packed.
template <class F>
Tensor pack_strided(const std::vector<Weights<F>>& weights, const Columns& columns, const Tensor& like) {
  std::int64_t size_k = 0;
  for (const Weights<F>& part : weights) size_k += part.size_k;
  Tensor packed = at::empty({core<F>().packed_size(columns, size_k)}, like.options());
  F* const to = packed.mutable_data_ptr<F>();
  at::parallel_for(0, core<F>().blocks(columns), 1, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t k = 0;
    for (const Weights<F>& part : weights) {
      core<F>().pack(part, columns, k, size_k, to, begin, end);
      k += part.size_k;
    }
  });
  return packed;
}

template <class F>
Tensor pack(const std::vector<Tensor>& weights, const Columns& columns) {
  std::vector<Weights<F>> parts;
  for (const Tensor& w : weights) parts.push_back({w.const_data_ptr<F>(), w.stride(0), w.stride(1), w.size(0)});
  return pack_strided(parts, columns, weights[0]);
}

// The same from weights (N, K), as torch.nn.Linear has them.
template <class F>
Tensor pack_transposed(const std::vector<Tensor>& weights, const Columns& columns) {
  std::vector<Weights<F>> parts;
  for (const Tensor& w : weights) parts.push_back({w.const_data_ptr<F>(), w.stride(1), w.stride(0), w.size(1)});
  return pack_strided(parts, columns, weights[0]);
}

template <class F>
const F* data_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<F>() : nullptr;
}

inline Noise make_noise(
    const GateOptions& options, const OptionalTensor& seed, const OptionalTensor& rows, std::int64_t stream) {
  Noise noise;
  options.fill(noise, seed, stream);
  noise.rows = data_or_null<std::int64_t>(rows);
  return noise;
}

inline OptionalTensor contiguous(const OptionalTensor& tensor) {
  return tensor.has_value() ? OptionalTensor(tensor->contiguous()) : std::nullopt;
}

inline bool is_zero(const Tensor& tensor) { return !tensor.ne(0).any().item<bool>(); }

}  // namespace g2lstm
