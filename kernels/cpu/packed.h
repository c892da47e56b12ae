// Weights as packed checkpoints have them, and products with them: rows in integers, factors, or both.
#pragma once

#include "tensors.h"

namespace g2lstm {

// One matrix of a chain of products: (N, K) of a floating dtype, or int8 with a scale for each of its rows.
struct Factor {
  Tensor weights;
  Tensor scales;  // (N,) float32, undefined where the weights are no integers
};

// A matrix (N, K) as blocks of rows one below the other, each a chain of factors, the first multiplied first.
struct PackedWeight {
  std::vector<std::vector<Factor>> blocks;
  std::int64_t inputs = 0, outputs = 0;

  // out (M, N) = start + x (M, K) times the transpose; start is a bias (N,), out itself, or nothing. x and out have the
  // state's dtype; their rows may be apart. For weights in integers x is rounded to 16 bits, or, where it is to be
  // fine, to 32.
  void multiply(const Tensor& x, const Tensor& out, const OptionalTensor& start, bool fine) const;
};

// Reads matrices from an operator's arguments: the tensors of all factors in order, each int8 one followed by its
// scales; and for each matrix its number of blocks and each block's number of factors.
class PackedReader {
 public:
  PackedReader(at::TensorList tensors, at::IntArrayRef layout) : tensors_(tensors), layout_(layout) {}
  PackedWeight next(const Tensor& like);
  // Raises ValueError where something is left.
  void finish() const;

 private:
  Tensor next_tensor();
  std::int64_t next_count(const char* of);

  at::TensorList tensors_;
  at::IntArrayRef layout_;
  std::size_t tensor_ = 0, count_ = 0;
};

}  // namespace g2lstm
