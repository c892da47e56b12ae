// The CPU kernels without threads and without torch: what they take, and the choice of the instruction set.
//
// Symbols: B rows of the batch, H units, K summed length. Matrices are row-major. Functions work on a range of blocks
// of units (or columns) and a range of rows, so that the caller splits the work between threads; every element of a
// result is computed in the same order whatever the split.
#pragma once

#include <cstdint>

#include "../common/cell.h"

namespace g2lstm {

// A (B, size) left side of a product.
template <class F>
struct Operand {
  const F* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t size = 0;
  std::int64_t stride_k = 1;  // read by split_left and pack_left alone
};

// Where the columns of a product stand: `groups` runs of `size` columns, packed group by group within a block.
// Gates' pre-activations are four groups of H columns, so that a block holds all four gates of its units.
struct Columns {
  std::int64_t size = 0;
  int groups = 1;  // 1 or 4
};

// Weights to be packed: element (k, n) at data[k * stride_k + n * stride_n].
template <class F>
struct Weights {
  const F* data = nullptr;
  std::int64_t stride_k = 0;
  std::int64_t stride_n = 0;
  std::int64_t size_k = 0;
};

// Tiles of bfloat16, which AMX multiplies as they are: cpu/planes.h.
constexpr std::int64_t kPlaneRows = 16;
constexpr std::int64_t kPlaneK = 32;
constexpr std::int64_t kPlaneTile = kPlaneRows * kPlaneK;

static constexpr std::int64_t tiles_of_k(std::int64_t size) { return (size + kPlaneK - 1) / kPlaneK; }

// Sums of products: result (B, N) += sum over operands of operand (B, K) times its weights (K, N).
template <class F>
struct Product {
  Operand<F> operands[2];
  int count = 0;
  const F* packed = nullptr;  // the operands' weights one below the other, as packed by Core::pack
  std::int64_t size_k = 0;    // rows of the packed weights; the operands may take fewer, from the first on
  const F* packed_left = nullptr;  // by Core::pack_left, or null; work then begins with the first row

  // In place of `packed`, where planes > 0: both sides as sums of bfloat16, by Core::split_left and split_right. Work
  // is then split by blocks of columns alone: it begins with the first row.
  int planes = 0;
  std::int64_t rows = 0;          // of the left side
  std::uint16_t* left = nullptr;  // (row tiles, left_k_tiles, planes, a tile)
  std::int64_t left_k_tiles = 0;
  bool* odd = nullptr;                   // of each row tile: whether it holds a number without such a sum
  const std::uint16_t* right = nullptr;  // (vectors of columns, right_k_tiles, planes, a tile)
  std::int64_t right_k_tiles = 0;
  const Weights<F>* weights = nullptr;  // of each operand, for odd rows
};

// out (M, N) = start + left (M, K) times right (K, N). The right side comes packed by Core::pack, or one side comes in
// planes instead, by Core::split_left or split_right; the other, the larger one, is split on its way.
template <class F>
struct MatrixProduct {
  Weights<F> left;  // element (m, k) at data[m * stride_n + k * stride_k]
  Weights<F> right;
  const F* packed = nullptr;
  const std::uint16_t* left_tiles = nullptr;
  const std::uint16_t* right_tiles = nullptr;
  int planes = 3;
  std::int64_t at_once = 0;  // rows or columns of the larger side at a time, a multiple of 32
  std::int64_t rows = 0;     // M
  std::int64_t columns = 0;  // N
  const F* start = nullptr;  // (M, N), `start_stride` between rows (0 for one row for all), or null for 0
  std::int64_t start_stride = 0;
  F* out = nullptr;  // (M, N), `stride` between rows
  std::int64_t stride = 0;
};

struct Noise : NoiseSpec {
  const std::int64_t* rows = nullptr;  // (B,) numbers of the batch rows; null for 0 to B - 1
};

// Rows whose sequence has ended (forward) or not begun (backward direction) keep their state.
struct Activity {
  const std::int64_t* lengths = nullptr;  // (B,), null where every row is active
  bool active(std::int64_t row, std::int64_t t) const { return lengths == nullptr || t < lengths[row]; }
};

template <class F>
struct ForwardStep {
  Product<F> product;       // added to the pre-activations
  F* a = nullptr;           // (B, 4H) pre-activations on entry, gates as activated on return
  bool start_with_bias = false;
  const F* bias = nullptr;  // (4H,): where start_with_bias, a holds nothing on entry and bias (or 0) is taken instead
  const F* c = nullptr;     // (B, H)
  F* c_next = nullptr;      // (B, H)
  F* h_next = nullptr;      // (B, H), 0 in rows that are not active
  const F* h = nullptr;     // (B, H), read only where activity.lengths is set
  F* h_state = nullptr;     // (B, H), written only where activity.lengths is set: h_next, or h in rows not active
  F* z = nullptr;           // (B, 2H) noise-free arguments of the sigmoids of i and f, or null
  const F* dropout = nullptr;  // (B, H) factors, or null
  F* dropped = nullptr;     // (B, H) h_next times dropout, written only where dropout is set
  std::int64_t h_size = 0;
  std::int64_t t = 0;
  std::int64_t product_end = INT64_MAX;  // rows from here on need no product
  GateSpec<F> gates;
  Noise noise;
  Activity activity;
};

template <class F>
struct BackwardStep {
  Product<F> product;           // added to grad_h
  F* grad_h = nullptr;          // (B, H) of h', part of it; on return 0 where active, else the sum
  const F* grad_out = nullptr;  // (B, H) of h', the rest where active, or null
  F* grad_c = nullptr;          // (B, H) of c' on entry, of c on return
  const F* gates = nullptr;     // (B, 4H) as activated
  const F* c = nullptr;         // (B, H)
  const F* c_next = nullptr;    // (B, H)
  F* grad_a = nullptr;          // (B, 4H)
  F* grad_bias = nullptr;       // (4H,) the sums over the rows are added to it, or null; not where threads share rows
  std::int64_t h_size = 0;
  std::int64_t t = 0;
  std::int64_t product_end = INT64_MAX;  // rows from here on need no product
  GateSpec<F> spec;
  Activity activity;
};

// Attention of one decoder step over S source positions, by the general score. Keys and values are the source's states
// times W_query and times the context's part of W_out, so that scores and context have H columns.
template <class F>
struct Attention {
  const F* keys = nullptr;       // (B, S, H)
  const F* values = nullptr;     // (B, S, H)
  const bool* padding = nullptr; // (B, S), or null
  const std::int64_t* rows = nullptr;  // (B,) the keys' row of each batch row, or null for the same
  std::int64_t source_size = 0;  // S
  std::int64_t h_size = 0;
};

template <class F>
struct AttentionForward : Attention<F> {
  const F* h = nullptr;  // (B, H)
  F* weights = nullptr;  // (B, S)
  F* context = nullptr;  // (B, H), the weighted sum of the values
};

template <class F>
struct AttentionBackward : Attention<F> {
  const F* grad_context = nullptr;  // (B, H)
  const F* grad_weights = nullptr;  // (B, S), or null
  const F* weights = nullptr;       // (B, S)
  F* grad_scores = nullptr;         // (B, S)
  F* grad_h = nullptr;              // (B, H), added to
};

// The decoder's output: undropped = tanh(context + product), out = undropped times dropout.
template <class F>
struct OutputForward {
  Product<F> product;
  F* undropped = nullptr;      // (B, H), the context on entry
  const F* dropout = nullptr;  // (B, H), or null
  F* out = nullptr;            // (B, H), written only where dropout is set
  std::int64_t h_size = 0;
};

// The gradient of what a product feeds: grad = (product + grad_out) dropout (1 - undropped^2).
template <class F>
struct InputGradient {
  Product<F> product;
  const F* grad_out = nullptr;   // (B, H), or null
  const F* dropout = nullptr;    // (B, H), or null
  const F* undropped = nullptr;  // (B, H), or null where there was no tanh
  F* grad = nullptr;             // (B, H)
  std::int64_t h_size = 0;
};

constexpr int kDropoutBlock = 64;

// y = x scale where kept, else 0. Element e is dropped where a word of its own is below the threshold: word e % 64 / 16
// of the counter e / 64 * 16 + e % 16, whose upper half is 2^32 - 1 (the gates' streams are below).
template <class F>
struct Dropout {
  const F* x = nullptr;
  F* y = nullptr;
  std::int64_t size = 0;
  std::uint64_t seed = 0;
  std::uint64_t threshold = 0;  // floor(p 2^32)
  F scale = 1;                  // 1 / (1 - p)
};

// Sums over rows of logits (N, V): nll = -log p(target), smooth = -sum over classes of log p.
template <class F>
struct CrossEntropy {
  const F* logits = nullptr;
  const std::int64_t* targets = nullptr;  // (N,), each a class or ignore_index
  std::int64_t classes = 0;
  std::int64_t ignore_index = -1;
  double* log_normalizer = nullptr;  // (N,) log of the sum of exponentials: written forward, read backward
  double* nll = nullptr;             // (N,), 0 where ignored
  double* smooth = nullptr;          // (N,)
  F* grad = nullptr;                 // (N, V), of the logits
  F grad_nll = 0;                    // of the summed nll
  F grad_smooth = 0;
};

// Integers of a product's left side: x = scale (q + q_rest / kRest), q and q_rest of 16 bits.
constexpr int kLargest = 32767;
constexpr int kRest = 65534;
constexpr std::int64_t kPaddedTo = 32;  // rows of integers are filled up with zeros to a multiple of this
constexpr std::int64_t kSumsTo = 512;   // products of 16 by 8 bits whose sum has 32

static constexpr std::int64_t padded_size(std::int64_t size) { return (size + kPaddedTo - 1) / kPaddedTo * kPaddedTo; }

// Rows of a product's left side in integers: q = round(x / scale), and q_rest of what rounding left, or null.
template <class F>
struct Quantize {
  const F* x = nullptr;  // (B, K), `stride` between rows
  std::int64_t stride = 0;
  std::int64_t size = 0;           // K
  std::int16_t* q = nullptr;       // (B, padded K)
  std::int16_t* q_rest = nullptr;  // (B, padded K), or null
  F* scales = nullptr;             // (B,) max |x| / kLargest; NaN where x holds infinities or NaN
};

// out (B, N) = start + x times the transpose of the weights, both in integers.
template <class F>
struct IntegerProduct {
  const std::int16_t* q = nullptr;       // (B, padded K)
  const std::int16_t* q_rest = nullptr;  // (B, padded K), or null for 0
  const F* row_scales = nullptr;         // (B,)
  const std::int8_t* weights = nullptr;  // (N, K)
  const F* scales = nullptr;             // (N,)
  std::int64_t size_k = 0;
  std::int64_t size_n = 0;
  const F* start = nullptr;  // (B, N), `start_stride` between rows (0 for one row for all), or null for 0
  std::int64_t start_stride = 0;
  F* out = nullptr;  // (B, N), `stride` between rows
  std::int64_t stride = 0;
};

// One set of kernels, for one instruction set.
template <class F>
struct Core {
  const char* name;
  int lanes;
  int tile_rows;  // of the left side in registers at a time

  // Blocks of a product's columns: a block has `lanes` columns of each of four groups, or 2 `lanes` of one.
  std::int64_t blocks(const Columns& columns) const {
    const std::int64_t width = columns.groups == 1 ? 2 * lanes : lanes;
    return (columns.size + width - 1) / width;
  }
  // Elements that the packed weights of k rows need.
  std::int64_t packed_size(const Columns& columns, std::int64_t size_k) const {
    return blocks(columns) * size_k * lanes * (columns.groups == 1 ? 2 : 4);
  }

  // Packs one operand's weights: its rows come k_begin rows below the first of size_k in all.
  void (*pack)(
      const Weights<F>& weights, const Columns& columns, std::int64_t k_begin, std::int64_t size_k, F* packed,
      std::int64_t block_begin, std::int64_t block_end);
  // Tiles of the first n_rows rows of a product's operands, for Product::packed_left: n_rows times their summed K.
  void (*pack_left)(
      const Product<F>& product, std::int64_t n_rows, F* to, std::int64_t tile_begin, std::int64_t tile_end);
  // A product of large matrices, whose right side is packed.
  void (*multiply_packed)(
      const MatrixProduct<F>& task, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
      std::int64_t row_end);
  void (*forward)(
      const ForwardStep<F>& step, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
      std::int64_t row_end);
  void (*backward)(
      const BackwardStep<F>& step, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
      std::int64_t row_end);
  void (*attend)(const AttentionForward<F>& step, std::int64_t row_begin, std::int64_t row_end);
  void (*attend_backward)(const AttentionBackward<F>& step, std::int64_t row_begin, std::int64_t row_end);
  void (*output)(
      const OutputForward<F>& step, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
      std::int64_t row_end);
  void (*input_gradient)(
      const InputGradient<F>& step, std::int64_t block_begin, std::int64_t block_end, std::int64_t row_begin,
      std::int64_t row_end);
  void (*dropout)(const Dropout<F>& task, std::int64_t block_begin, std::int64_t block_end);
  void (*cross_entropy)(const CrossEntropy<F>& task, std::int64_t row_begin, std::int64_t row_end);
  void (*cross_entropy_backward)(const CrossEntropy<F>& task, std::int64_t row_begin, std::int64_t row_end);
  void (*quantize)(const Quantize<F>& task, std::int64_t row_begin, std::int64_t row_end);
  void (*multiply_integers)(
      const IntegerProduct<F>& task, std::int64_t column_begin, std::int64_t column_end, std::int64_t row_begin,
      std::int64_t row_end);
  // The random words of rows [row_begin, row_end) at step t: out (B, H) for each of four words, word_stride apart.
  void (*words)(
      const Noise& noise, std::int64_t t, std::int64_t h_size, std::int64_t* out, std::int64_t word_stride,
      std::int64_t row_begin, std::int64_t row_end);
  // As how many bfloat16 a float32 may come into products, 0 where it is multiplied as it is, and the rest is null.
  int most_planes = 0;
  // Rows of a product's operands into planes, by row tiles.
  void (*split_left)(const Product<F>& product, std::int64_t tile_begin, std::int64_t tile_end) = nullptr;
  // One operand's weights into planes: its tiles of K come k_begin tiles below the first of k_tiles in all. Whether all
  // numbers are sums of such planes.
  bool (*split_right)(
      const Weights<F>& weights, const Columns& columns, std::int64_t k_begin, std::int64_t k_tiles, int planes,
      std::uint16_t* tiles, std::int64_t block_begin, std::int64_t block_end) = nullptr;
  // Rows, or blocks of columns where it is the left side that comes in planes. False, and nothing of use in out, where
  // what is split on its way holds a number that is no sum of planes.
  bool (*multiply_matrices)(const MatrixProduct<F>& task, std::int64_t begin, std::int64_t end) = nullptr;
};

// The kernels of the best instruction set that this processor has; G2LSTM_CPU_CAPABILITY=
// default|avx2|avx512|avx512_vnni|avx512_bf16|amx in the environment chooses a lesser one.
template <class F>
const Core<F>& core();

// Whether products of large float32 matrices are made here, not by the library that torch is built with: on AMX, and on
// processors of other vendors than Intel, whose library that is. G2LSTM_CPU_PRODUCTS=own|library in the environment
// decides otherwise.
bool makes_large_products();

namespace baseline {
template <class F>
const Core<F>& get();
}
namespace avx2 {
template <class F>
const Core<F>& get();
}
namespace avx512 {
template <class F>
const Core<F>& get();
}
namespace avx512_vnni {
template <class F>
const Core<F>& get();
}
// With G2LSTM_BUILDS_BFLOAT16 (compiler.h) alone.
namespace avx512_bf16 {
template <class F>
const Core<F>& get();
}
namespace amx {
template <class F>
const Core<F>& get();
}

}  // namespace g2lstm
