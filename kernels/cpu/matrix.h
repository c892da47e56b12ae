// Products of matrices: large ones of float32 our own on AMX and on processors that are not Intel's, others the
// library's.
#pragma once

#include "tensors.h"

namespace g2lstm {

// a (M, K) times b (K, N), of any strides, plus start: (M, N), its rows contiguous, or (N,)
Tensor matrix_product(const Tensor& a, const Tensor& b, const OptionalTensor& start = std::nullopt);

// The same into out (M, N), whose rows are contiguous and which is not start.
void matrix_product_out(
    const Tensor& out, const Tensor& a, const Tensor& b, const OptionalTensor& start = std::nullopt);

}  // namespace g2lstm
