// What the CPU operators share: packed weights, noise and threads from tensors.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "../binding/common.h"
#include "parallel.h"

namespace g2lstm {

using at::Tensor;

// As how many bfloat16 a float32 may come into products: what torch.set_float32_matmul_precision asks for. Another thread
// may change it at any time: whoever decides by it reads it once.
int planes_of_float32();

inline std::uint16_t* words_of(const Tensor& tensor) {
  return reinterpret_cast<std::uint16_t*>(tensor.mutable_data_ptr<std::int16_t>());
}

// A product's left side comes into planes at every step; fewer rows or multiplications are not worth it.
constexpr std::int64_t kFewRowsInPlanes = 16;
constexpr std::int64_t kFewInPlanes = 1 << 22;

// A tile of the left side is read again for each panel of the right one: so many bytes where they lie, more packed.
constexpr std::size_t kFirstCache = 48 << 10;

constexpr std::int64_t kLargestStride = 1 << 27;  // 16 of which 32 bits hold

// Whether a matrix can be read into planes, 16 rows or columns at a time.
inline bool is_within_reach(const Tensor& matrix) {
  const std::int64_t first = matrix.stride(0), second = matrix.stride(1);
  return first == 1 || second == 1 || std::max(first, second) < kLargestStride;
}

// Weights of a product's operands, packed one below the other for products with `rows` rows of a left side.
template <class F>
class PackedWeights {
 public:
  PackedWeights() = default;

  // Weights (K, N), or (N, K) as torch.nn.Linear has them where `transposed`.
  PackedWeights(std::vector<Tensor> weights, const Columns& columns, std::int64_t rows, bool transposed = false)
      : held_(std::move(weights)) {
    bool can_be_split = true;
    for (const Tensor& w : held_) {
      const int k = transposed ? 1 : 0;
      can_be_split &= is_within_reach(w);
      parts_.push_back({w.const_data_ptr<F>(), w.stride(k), w.stride(1 - k), w.size(k)});
      size_k_ += w.size(k);
      k_tiles_ += tiles_of_k(w.size(k));
    }
    const bool a_thread_has_all_rows = core<F>().blocks(columns) >= at::get_num_threads();
    const int planes = planes_of_float32();
    const bool worth = planes <= core<F>().most_planes && a_thread_has_all_rows &&
        rows >= kFewRowsInPlanes && rows * size_k_ * columns.size * columns.groups >= kFewInPlanes;
    if (worth && can_be_split && split(columns, rows, planes)) return;
    pack(columns);
    const bool in_first_cache = core<F>().tile_rows * size_k_ * sizeof(F) <= kFirstCache;
    if (!in_first_cache && a_thread_has_all_rows && rows > 1) left_ = at::empty({rows * size_k_}, held_[0].options());
  }

  // The product of the first operands, of which rows below `rows` are needed.
  Product<F> product(std::initializer_list<Operand<F>> operands, std::int64_t rows) const {
    Product<F> product;
    for (const Operand<F>& operand : operands) product.operands[product.count++] = operand;
    product.size_k = size_k_;
    if (planes_ == 0) {
      product.packed = packed_.template const_data_ptr<F>();
      if (left_.defined()) pack_left(product, rows);
      return product;
    }
    product.planes = planes_;
    product.rows = rows;
    product.left = words_of(left_);
    product.left_k_tiles = product.right_k_tiles = k_tiles_;
    product.odd = odd_.template mutable_data_ptr<bool>();
    product.right = words_of(packed_);
    product.weights = parts_.data();
    const std::int64_t n_tiles = (rows + kPlaneRows - 1) / kPlaneRows;
    at::parallel_for(0, n_tiles, 1, [&](auto begin, auto end) { core<F>().split_left(product, begin, end); });
    return product;
  }

 private:
  void pack_left(Product<F>& product, std::int64_t rows) const {
    F* const to = left_.template mutable_data_ptr<F>();
    const std::int64_t n_tiles = (rows + core<F>().tile_rows - 1) / core<F>().tile_rows;
    at::parallel_for(0, n_tiles, 1, [&](std::int64_t begin, std::int64_t end) {
      core<F>().pack_left(product, rows, to, begin, end);
    });
    product.packed_left = to;
  }

  void pack(const Columns& columns) {
    packed_ = at::empty({core<F>().packed_size(columns, size_k_)}, held_[0].options());
    F* const to = packed_.template mutable_data_ptr<F>();
    at::parallel_for(0, core<F>().blocks(columns), 1, [&](std::int64_t begin, std::int64_t end) {
      std::int64_t k = 0;
      for (const Weights<F>& part : parts_) {
        core<F>().pack(part, columns, k, size_k_, to, begin, end);
        k += part.size_k;
      }
    });
  }

  bool split(const Columns& columns, std::int64_t rows, int planes) {
    const std::int64_t blocks = core<F>().blocks(columns), vectors = columns.groups == 1 ? 2 : 4;
    const std::int64_t row_tiles = (rows + kPlaneRows - 1) / kPlaneRows;
    const auto words = held_[0].options().dtype(at::kShort);
    planes_ = planes;
    packed_ = at::empty({blocks * vectors * k_tiles_ * planes_ * kPlaneTile}, words);
    std::atomic<bool> even{true};
    at::parallel_for(0, blocks, 1, [&](std::int64_t begin, std::int64_t end) {
      std::int64_t k = 0;
      for (const Weights<F>& part : parts_) {
        if (!core<F>().split_right(part, columns, k, k_tiles_, planes_, words_of(packed_), begin, end)) even = false;
        k += tiles_of_k(part.size_k);
      }
    });
    if (!even) {
      planes_ = 0;
      return false;
    }
    left_ = at::empty({row_tiles * k_tiles_ * planes_ * kPlaneTile}, words);
    odd_ = at::empty({row_tiles}, words.dtype(at::kBool));
    return true;
  }

  std::vector<Tensor> held_;
  std::vector<Weights<F>> parts_;
  std::int64_t size_k_ = 0, k_tiles_ = 0;
  int planes_ = 0;  // 0 for weights packed as they are
  Tensor packed_, left_, odd_;
};

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
