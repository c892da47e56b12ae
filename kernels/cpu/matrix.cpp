#include "matrix.h"

#include <ATen/Context.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <string>

#include "scratch.h"

namespace g2lstm {

int planes_of_float32() {
  const auto& context = at::globalContext();
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 10
  switch (context.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL)) {
    case at::Float32Precision::BF16:
      return 1;
    case at::Float32Precision::TF32:
      return 2;
    default:
      return 3;
  }
#elif TORCH_VERSION_MINOR == 9
  const std::string precision = context.float32Precision("mkldnn", "matmul");
  return precision == "bf16" ? 1 : precision == "tf32" ? 2 : 3;
#else
  switch (context.float32MatmulPrecision()) {
    case at::Float32MatmulPrecision::MEDIUM:
      return 1;
    case at::Float32MatmulPrecision::HIGH:
      return 2;
    default:
      return 3;
  }
#endif
}

namespace {

constexpr std::int64_t kFewest = 64;  // rows or columns for which the larger side is worth its way into planes or tiles
constexpr std::int64_t kFewMultiplications = 1 << 26;

bool is_large(const Tensor& out, const Tensor& a) {
  return std::min(out.size(0), out.size(1)) >= kFewest && out.numel() * a.size(1) >= kFewMultiplications;
}

bool has_contiguous_rows(const Tensor& out, const OptionalTensor& start) {
  return out.stride(1) == 1 && (!start.has_value() || start->stride(-1) == 1);
}

void set_start(MatrixProduct<float>& task, const Tensor& start, std::int64_t column = 0) {
  task.start = start.const_data_ptr<float>() + column;
  task.start_stride = start.dim() == 2 ? start.stride(0) : 0;
}

// Sides in planes.
constexpr std::int64_t kTilesOfK = 32;      // at a time
constexpr std::int64_t kTilesAtOnce = 768;  // of the larger side, in planes: less than the second cache
constexpr std::int64_t kMostAtOnce = 512;   // rows or columns of the larger side

bool can_be_split(const Tensor& side) { return side.scalar_type() == at::kFloat && is_within_reach(side); }

bool multiply_in_planes(
    const Tensor& out, const Tensor& a, const Tensor& b, const OptionalTensor& start, int planes) {
  const Core<float>& kernels = core<float>();
  const std::int64_t n_rows = a.size(0), n_columns = b.size(1), size_k = a.size(1);
  if (!can_be_split(a) || !can_be_split(b)) return false;
  const bool by_rows = n_rows >= n_columns;
  const Columns columns{n_columns, 1};
  const std::int64_t blocks = kernels.blocks(columns), row_tiles = (n_rows + kPlaneRows - 1) / kPlaneRows;
  const std::int64_t parts = (tiles_of_k(size_k) + kTilesOfK - 1) / kTilesOfK;
  const std::int64_t k_tiles = (tiles_of_k(size_k) + parts - 1) / parts, k_at_once = k_tiles * kPlaneK;
  const auto words = a.options().dtype(at::kShort);
  const Tensor tiles = at::empty({(by_rows ? 2 * blocks : row_tiles) * k_tiles * planes * kPlaneTile}, words);
  const Tensor odd_rows = at::zeros({row_tiles}, a.options().dtype(at::kBool));
  std::atomic<bool> even{true};
  MatrixProduct<float> task;
  task.planes = planes;
  task.at_once = std::min(kTilesAtOnce / (k_tiles * planes) / 2 * 2 * kPlaneRows, kMostAtOnce);
  task.rows = n_rows;
  task.columns = n_columns;
  task.out = out.mutable_data_ptr<float>();
  task.stride = out.stride(0);
  for (std::int64_t k = 0; k < size_k && even; k += k_at_once) {
    const std::int64_t size = std::min(size_k - k, k_at_once), own_tiles = tiles_of_k(size);
    task.left = {a.const_data_ptr<float>() + k * a.stride(1), a.stride(1), a.stride(0), size};
    task.right = {b.const_data_ptr<float>() + k * b.stride(0), b.stride(0), b.stride(1), size};
    if (k > 0) {
      task.start = task.out;
      task.start_stride = task.stride;
    } else if (start.has_value()) {
      set_start(task, *start);
    }
    if (by_rows) {
      task.right_tiles = words_of(tiles);
      at::parallel_for(0, blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        if (!kernels.split_right(task.right, columns, 0, own_tiles, planes, words_of(tiles), begin, end)) even = false;
      });
    } else {
      task.left_tiles = words_of(tiles);
      Product<float> left;
      left.operands[left.count++] = {task.left.data, task.left.stride_n, size, task.left.stride_k};
      left.planes = planes;
      left.rows = n_rows;
      left.left = words_of(tiles);
      left.left_k_tiles = own_tiles;
      left.odd = odd_rows.mutable_data_ptr<bool>();
      at::parallel_for(0, row_tiles, 1, [&](auto begin, auto end) { kernels.split_left(left, begin, end); });
      if (std::any_of(left.odd, left.odd + row_tiles, [](bool odd) { return odd; })) even = false;
    }
    if (!even) break;
    const std::int64_t unit = by_rows ? 2 * kPlaneRows : 1, units = by_rows ? n_rows : blocks;
    at::parallel_for(0, (units + unit - 1) / unit, 1, [&](std::int64_t begin, std::int64_t end) {
      if (!kernels.multiply_matrices(task, unit * begin, std::min(unit * end, units))) even = false;
    });
  }
  return even;
}

// Without planes: the right side packed in panels, as the weights of steps are, the left one in the tiles that
// registers hold. Sums over parts of K are added up, which is also nearer than one sum over all of it.
void multiply_in_panels(const Tensor& out, const Tensor& a, const Tensor& b, const OptionalTensor& start) {
  constexpr std::int64_t kKAtOnce = 384, kColumnsAtOnce = 2048, kRowsOfAThread = 12;
  const Core<float>& kernels = core<float>();
  const std::int64_t n_rows = a.size(0), n_columns = b.size(1), size_k = a.size(1);
  const auto part = [](std::int64_t size, std::int64_t at_most) {  // of nearly equal ones
    const std::int64_t parts = (size + at_most - 1) / at_most;
    return (size + parts - 1) / parts;
  };
  const std::int64_t k_at_once = part(size_k, kKAtOnce);
  const std::int64_t width = 2 * kernels.lanes, n_blocks = (n_columns + width - 1) / width;
  const std::int64_t columns_at_once = part(n_blocks, kColumnsAtOnce / width) * width;
  // Kept, up to 3 MB, since the pages of new memory cost as much as a small product. Other threads see `packed` alone:
  // `memory` would be their own.
  static thread_local Scratch memory;
  auto* const packed =
      reinterpret_cast<float*>(memory.get(static_cast<std::size_t>(columns_at_once * k_at_once) * sizeof(float)));
  MatrixProduct<float> task;
  task.packed = packed;
  task.stride = out.stride(0);
  for (std::int64_t column = 0; column < n_columns; column += columns_at_once) {
    const Columns columns{std::min(n_columns - column, columns_at_once), 1};
    const std::int64_t blocks = kernels.blocks(columns);
    task.columns = columns.size;
    task.out = out.mutable_data_ptr<float>() + column;
    task.start = nullptr;
    if (start.has_value()) set_start(task, *start, column);
    for (std::int64_t k = 0; k < size_k; k += k_at_once) {
      const std::int64_t size = std::min(size_k - k, k_at_once);
      task.left = {a.const_data_ptr<float>() + k * a.stride(1), a.stride(1), a.stride(0), size};
      task.right = {
          b.const_data_ptr<float>() + k * b.stride(0) + column * b.stride(1), b.stride(0), b.stride(1), size};
      at::parallel_for(0, blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        kernels.pack(task.right, columns, 0, size, packed, begin, end);
      });
      if (n_rows >= columns.size) {
        const std::int64_t units = (n_rows + kRowsOfAThread - 1) / kRowsOfAThread;
        at::parallel_for(0, units, 1, [&](std::int64_t begin, std::int64_t end) {
          kernels.multiply_packed(task, 0, blocks, kRowsOfAThread * begin, std::min(kRowsOfAThread * end, n_rows));
        });
      } else {
        at::parallel_for(0, blocks, 1, [&](std::int64_t begin, std::int64_t end) {
          kernels.multiply_packed(task, begin, end, 0, n_rows);
        });
      }
      task.start = task.out;
      task.start_stride = task.stride;
    }
  }
}

bool multiply_here(const Tensor& out, const Tensor& a, const Tensor& b, const OptionalTensor& start) {
  if (out.scalar_type() != at::kFloat || !makes_large_products() || !is_large(out, a) ||
      !has_contiguous_rows(out, start)) {
    return false;
  }
  const int planes = planes_of_float32();
  if (planes <= core<float>().most_planes && multiply_in_planes(out, a, b, start, planes)) return true;
  multiply_in_panels(out, a, b, start);  // in plain float32, which the library may not be told to use
  return true;
}

}  // namespace

void matrix_product_out(const Tensor& out, const Tensor& a, const Tensor& b, const OptionalTensor& start) {
  if (multiply_here(out, a, b, start)) return;
  Tensor to = out;
  if (start.has_value()) {
    at::addmm_out(to, *start, a, b);
  } else {
    at::mm_out(to, a, b);
  }
}

Tensor matrix_product(const Tensor& a, const Tensor& b, const OptionalTensor& start) {
  const Tensor out = at::empty({a.size(0), b.size(1)}, a.options());
  matrix_product_out(out, a, b, start);
  return out;
}

namespace {

// a (M, K) times b (K, N) plus bias (N,)
Tensor matmul(const Tensor& a, const Tensor& b, const OptionalTensor& bias) {
  check_supported(a);
  TORCH_CHECK_VALUE(
      a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(0), "a must be (M, K) and b (K, N), got ", a.sizes(), " and ",
      b.sizes());
  check_like("b", b, a);
  if (bias.has_value()) {
    check_shape("bias", *bias, {b.size(1)});
    check_like("bias", *bias, a);
  }
  return matrix_product(a, b, contiguous(bias));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(g2lstm, m) {
  m.def("cpu_products() -> str", [] { return std::string(makes_large_products() ? "own" : "library"); });
}

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) { m.impl("matmul", matmul); }

}  // namespace g2lstm
