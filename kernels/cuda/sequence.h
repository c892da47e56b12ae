// A layer's whole sequence in one launch: every block keeps its units' recurrent weights in shared memory over all
// steps. What one block does, free of CUDA's headers: the host can run it too.
//
// A block has kUnits units of kRows batch rows. At each step it multiplies what all units of its rows made in the step
// before (h; in the backward pass, pre-activations' gradients) by its weights, and computes its own cells. The blocks
// of the same rows then wait for each other; those of other rows are none of their business.
//
// Grid is what a backend brings, a Block (attention.h) and beside it: kThreads and kWarps, constants; place_x() and
// place_y(), the block's place in the grid, and blocks_x(); Tile, below; copy(to, from), of 16 bytes into shared
// memory, of what other blocks may have written during the launch; commit(), which closes a group of copies;
// wait_copies<N>(), until all but the last N groups of this thread are there; arrive(counter), by which all that the
// block has written can be read by blocks that wait(counter, n) for the n-th arrival.
//
// A Tile<T, down, across> is a sum of products that the threads of a warp hold between them, of so many of the
// smallest ones, Tile<T, 1, 1>: kRows x kColumns numbers, cleared, to which multiply(left, left_stride, right,
// right_stride) adds kDepth products each: left (kRows, kDepth) times right (kColumns, kDepth) transposed;
// store(out, stride) writes it.
#pragma once

#include "cells.h"
#include "sequence_plan.h"

// Of loops over arrays that stand in registers, and of loops whose iterations do not wait for each other's loads.
#ifdef __CUDACC__
#define G2LSTM_UNROLL _Pragma("unroll")
#define G2LSTM_UNROLL_BY_FOUR _Pragma("unroll 4")
#else
#define G2LSTM_UNROLL
#define G2LSTM_UNROLL_BY_FOUR
#endif

namespace g2lstm::cuda {

// A block's product: the left side's rows (kRows, depth), which stand in global memory, times its weights. The left
// side comes in pieces, kSlots of which are on their way or in use.
template <class T, int kRows, int kColumns, class Grid>
struct BlockProduct {
  using Smallest = typename Grid::template Tile<T, 1, 1>;
  static constexpr int kReuse = 2;  // how often a warp multiplies what it loads of shared memory, where it can
  static constexpr int kDown = kRows / Smallest::kRows < kReuse ? kRows / Smallest::kRows : kReuse;
  static constexpr int kAcross = kColumns / Smallest::kColumns < kReuse ? kColumns / Smallest::kColumns : kReuse;
  using Tile = typename Grid::template Tile<T, kDown, kAcross>;

  static constexpr int kTilesDown = kRows / Tile::kRows;
  static constexpr int kTiles = kTilesDown * (kColumns / Tile::kColumns);
  static constexpr int kSplits = Grid::kWarps > kTiles ? Grid::kWarps / kTiles : 1;  // warps that share a tile's depth
  static constexpr int kTilesAtOnce = Grid::kWarps / kSplits;
  static constexpr int kTilesOfWarp = (kTiles + kTilesAtOnce - 1) / kTilesAtOnce;
  static constexpr int kPieceDepth = piece_depth<T>(kRows);
  static constexpr int kPieceStride = static_cast<int>(padded<T>(kPieceDepth));
  static constexpr int kSumStride = kColumns + 8;  // rows begin in different banks
  static constexpr int kVectors = kPieceDepth / kVector<T>;  // of a row of a piece
  static constexpr int kCopies = kRows * kVectors / Grid::kThreads;  // of a thread, of each piece
  static_assert(kRows % Tile::kRows == 0 && kColumns % Tile::kColumns == 0, "whole tiles");
  static_assert(kTilesOfWarp * kTilesAtOnce == kTiles, "every warp has as many");
  static_assert(kCopies * Grid::kThreads == kRows * kVectors, "every thread has as many");
  static_assert(kSplits * kRows * kSumStride * sizeof(float) <= kSlots * piece_bytes<T>(kRows), "room for the sums");

  // Where each of a thread's copies begins in the left side's first piece.
  struct Left {
    const T* from[kCopies];
  };

  const Grid& grid;
  T* weights;
  std::int64_t depth;  // a multiple of kUnitMultiple
  T* slots;

  G2LSTM_DEVICE BlockProduct(const Grid& grid, void* shared, std::int64_t depth)
      : grid(grid),
        weights(static_cast<T*>(shared)),
        depth(depth),
        slots(weights + kColumns * padded<T>(depth)) {}

  G2LSTM_DEVICE T* weight(int column) const { return weights + column * padded<T>(depth); }

  // row_at(row): where that row of the left side begins.
  template <class Function>
  G2LSTM_DEVICE Left left(const Function& row_at) const {
    Left left;
    G2LSTM_UNROLL
    for (int i = 0; i < kCopies; ++i) left.from[i] = row_at(row_of(i)) + column_of(i);
    return left;
  }

  // The sum at (row, column), after `multiply`.
  G2LSTM_DEVICE float sum(int row, int column) const {
    float value = 0;
    G2LSTM_UNROLL
    for (int split = 0; split < kSplits; ++split) value += sums(split)[row * kSumStride + column];
    return value;
  }

  G2LSTM_DEVICE void multiply(const Left& left) const {
    const int n_pieces = static_cast<int>((depth + kPieceDepth - 1) / kPieceDepth);
    for (int piece = 0; piece < kSlots - 1; ++piece) fetch(left, piece);
    const int warp = grid.thread() / Grid::kLanes, split = warp / kTilesAtOnce;
    Tile tiles[kTilesOfWarp];
    G2LSTM_UNROLL
    for (int i = 0; i < kTilesOfWarp; ++i) tiles[i].clear(grid);
    for (int piece = 0; piece < n_pieces; ++piece) {
      grid.template wait_copies<kSlots - 2>();
      grid.sync();  // the piece is there for all, and the one whose slot the next takes has been used by all
      fetch(left, piece + kSlots - 1);
      const std::int64_t begin = static_cast<std::int64_t>(piece) * kPieceDepth;
      const int size = static_cast<int>(depth - begin < kPieceDepth ? depth - begin : kPieceDepth);
      G2LSTM_UNROLL_BY_FOUR
      for (int k = split * Tile::kDepth; k < size; k += kSplits * Tile::kDepth) {
        G2LSTM_UNROLL
        for (int i = 0; i < kTilesOfWarp; ++i) {
          const int at = warp % kTilesAtOnce + i * kTilesAtOnce;
          tiles[i].multiply(
              grid, slot(piece) + at % kTilesDown * Tile::kRows * kPieceStride + k, kPieceStride,
              weight(at / kTilesDown * Tile::kColumns) + begin + k, static_cast<int>(padded<T>(depth)));
        }
      }
    }
    grid.sync();  // nobody reads the slots any more
    G2LSTM_UNROLL
    for (int i = 0; i < kTilesOfWarp; ++i) {
      const int at = warp % kTilesAtOnce + i * kTilesAtOnce;
      float* const out = sums(split) + at % kTilesDown * Tile::kRows * kSumStride + at / kTilesDown * Tile::kColumns;
      tiles[i].store(grid, out, kSumStride);
    }
    grid.sync();
  }

 private:
  G2LSTM_DEVICE int row_of(int copy) const { return (grid.thread() + copy * Grid::kThreads) / kVectors; }
  G2LSTM_DEVICE int column_of(int copy) const {
    return (grid.thread() + copy * Grid::kThreads) % kVectors * kVector<T>;
  }
  G2LSTM_DEVICE T* slot(int piece) const { return slots + piece % kSlots * (kRows * kPieceStride); }
  G2LSTM_DEVICE float* sums(int split) const { return reinterpret_cast<float*>(slots) + split * (kRows * kSumStride); }

  // Closes a group of copies, of none where there is no such piece: groups are counted.
  G2LSTM_DEVICE void fetch(const Left& left, int piece) const {
    const std::int64_t begin = static_cast<std::int64_t>(piece) * kPieceDepth;
    G2LSTM_UNROLL
    for (int i = 0; i < kCopies; ++i) {
      if (begin + column_of(i) < depth) {
        grid.copy(slot(piece) + row_of(i) * kPieceStride + column_of(i), left.from[i] + begin);
      }
    }
    grid.commit();
  }
};

// Which cells a thread of a block has: cell j of thread k is number k + j kThreads, row by row.
template <class T, int kRows, class Grid>
struct BlockCells {
  static constexpr int kCount = (kRows * kUnits<T> + Grid::kThreads - 1) / Grid::kThreads;
  std::int64_t first_row, first_unit, n_rows;
  int thread;

  G2LSTM_DEVICE BlockCells(const Grid& grid, const Sequence<T>& sequence)
      : first_row(sequence.first_row + grid.place_y() * kRows),
        first_unit(grid.place_x() * kUnits<T>),
        n_rows(sequence.cell.n_rows),
        thread(grid.thread()) {}

  // Calls function(j, row and unit within the block, row of the batch, unit of the layer) for each cell of the thread.
  template <class Function>
  G2LSTM_DEVICE void each(const Function& function) const {
    G2LSTM_UNROLL
    for (int j = 0; j < kCount; ++j) {
      const int cell = thread + j * Grid::kThreads;
      const int row = cell / kUnits<T>, unit = cell % kUnits<T>;
      if (row < kRows && first_row + row < n_rows) function(j, row, unit, first_row + row, first_unit + unit);
    }
  }

  // The batch row whose numbers fill the place of a row that the batch does not have.
  G2LSTM_DEVICE std::int64_t batch_row(int row) const {
    return first_row + row < n_rows ? first_row + row : n_rows - 1;
  }
};

template <class T>
struct alignas(16) Vector {
  T values[kVector<T>];
};

// Keeps the rows of w_hh (4H, H) that belong to a block's units: row `gate` kUnits + unit of its weights.
template <class T, class Product>
G2LSTM_DEVICE void keep_rows(const Product& product, const T* w_hh, std::int64_t first_unit, std::int64_t h_size) {
  const int vectors = static_cast<int>(h_size / kVector<T>);
  for (int i = product.grid.thread(); i < 4 * kUnits<T> * vectors; i += product.grid.kThreads) {
    const int row = i / vectors, column = i % vectors * kVector<T>;
    const std::int64_t unit = row / kUnits<T> * h_size + first_unit + row % kUnits<T>;
    product.grid.copy(product.weight(row) + column, w_hh + offset(unit, column, h_size));
  }
  product.grid.commit();
  product.grid.template wait_copies<0>();
}

// Keeps the columns of w_hh (4H, H) that belong to a block's units: column `unit` is row `unit` of its weights.
template <class T, class Product>
G2LSTM_DEVICE void keep_columns(const Product& product, const T* w_hh, std::int64_t first_unit, std::int64_t h_size) {
  constexpr int kVectors = kUnits<T> / kVector<T>, kAtOnce = 8;  // loads on their way
  const int total = static_cast<int>(4 * h_size) * kVectors;
  const auto row = [&](int i) { return i / kVectors; };
  const auto unit = [&](int i) { return i % kVectors * kVector<T>; };
  for (int begin = product.grid.thread(); begin < total; begin += kAtOnce * product.grid.kThreads) {
    Vector<T> vectors[kAtOnce];
    const auto each = [&](const auto& function) {
      G2LSTM_UNROLL
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = begin + k * product.grid.kThreads;
        if (i < total) function(i, vectors[k]);
      }
    };
    each([&](int i, Vector<T>& vector) {
      vector = *reinterpret_cast<const Vector<T>*>(w_hh + offset(row(i), first_unit + unit(i), h_size));
    });
    each([&](int i, const Vector<T>& vector) {
      for (int k = 0; k < kVector<T>; ++k) product.weight(unit(i) + k)[row(i)] = vector.values[k];
    });
  }
}

template <class T>
G2LSTM_DEVICE float rounded(float value) {
  T kept;
  write(&kept, value);
  return read(&kept);
}

template <class T>
G2LSTM_DEVICE Gates<float> rounded(const Gates<float>& gates) {
  return {rounded<T>(gates.i), rounded<T>(gates.f), rounded<T>(gates.g), rounded<T>(gates.o)};
}

// The time of the i-th step to be computed.
template <class T>
G2LSTM_DEVICE std::int64_t time_of(const Sequence<T>& sequence, std::int64_t i) {
  return sequence.reverse ? sequence.n_steps - 1 - i : i;
}

// The step at time t, as cells.h reads it but for the cells' state.
template <class T>
G2LSTM_DEVICE CellStep<T> step_at(const Sequence<T>& sequence, std::int64_t t) {
  CellStep<T> step = sequence.cell;
  step.t = t;
  step.a = sequence.cell.a + t * step.n_rows * 4 * step.h_size;
  return step;
}

template <int kRows, class T, class Grid>
G2LSTM_DEVICE void run_block(const ForwardSequence<T>& sequence, const Grid& grid, void* shared) {
  const std::int64_t n_rows = sequence.cell.n_rows, h_size = sequence.cell.h_size, n_cells = n_rows * h_size;
  const BlockCells<T, kRows, Grid> cells(grid, sequence);
  const BlockProduct<T, kRows, 4 * kUnits<T>, Grid> product(grid, shared, h_size);
  unsigned* const arrived = sequence.arrived + grid.place_y() * kCounterStride;
  keep_rows(product, sequence.w_hh, cells.first_unit, h_size);
  float c[cells.kCount];
  cells.each([&](int j, int, int, auto row, auto unit) { c[j] = sequence.cell.c[offset(row, unit, h_size)]; });

  for (std::int64_t i = 0; i < sequence.n_steps; ++i) {
    const std::int64_t t = time_of(sequence, i);
    const CellStep<T> step = step_at(sequence, t);
    // What does not need the other blocks comes before the wait for them.
    Gates<float> a[cells.kCount], noise[cells.kCount];
    bool active[cells.kCount];
    cells.each([&](int j, int, int, auto row, auto unit) {
      a[j] = read_gates(step.a, row, unit, h_size);
      noise[j] = noise_at(step, row, unit);
      active[j] = is_active(step, row);
    });
    const std::int64_t before = i > 0 ? time_of(sequence, i - 1) : 0;
    const auto left = product.left([&](int row_in_block) {
      const std::int64_t row = cells.batch_row(row_in_block);
      const bool has_state = i > 0 && (step.lengths == nullptr || before < step.lengths[row]);
      const T* const h = has_state ? sequence.outputs + before * n_cells : sequence.h_0;
      return h + offset(row, 0, h_size);
    });
    if (i > 0) grid.wait(arrived, static_cast<unsigned>(i * grid.blocks_x()));
    product.multiply(left);
    cells.each([&](int j, int row_in_block, int unit_in_block, auto row, auto unit) {
      const auto sum = [&](int gate) { return product.sum(row_in_block, gate * kUnits<T> + unit_in_block); };
      // What backward reads is what forward computes with.
      a[j] = rounded<T>(Gates<float>{a[j].i + sum(0), a[j].f + sum(1), a[j].g + sum(2), a[j].o + sum(3)});
      g2lstm::State<float> next{0, c[j]};
      if (active[j]) next = next_state<ScalarMath<float>>(gates_of(step, a[j], noise[j]), c[j]);
      c[j] = next.c;
      write(sequence.outputs + t * n_cells + offset(row, unit, h_size), next.h);
    });
    grid.arrive(arrived);
    // What the other blocks do not need comes after they have been told.
    cells.each([&](int j, int, int, auto row, auto unit) {
      write_gates(sequence.a + t * n_cells * 4, row, unit, h_size, a[j]);
      sequence.cells[t * n_cells + offset(row, unit, h_size)] = c[j];
      if (sequence.z != nullptr) write_arguments(sequence.z + t * n_cells * 2, row, unit, step, active[j], a[j]);
    });
  }
}

template <int kRows, class T, class Grid>
G2LSTM_DEVICE void run_block(const BackwardSequence<T>& sequence, const Grid& grid, void* shared) {
  const std::int64_t n_rows = sequence.cell.n_rows, h_size = sequence.cell.h_size, n_cells = n_rows * h_size;
  const BlockCells<T, kRows, Grid> cells(grid, sequence);
  const BlockProduct<T, kRows, kUnits<T>, Grid> product(grid, shared, 4 * h_size);
  unsigned* const arrived = sequence.arrived + grid.place_y() * kCounterStride;
  keep_columns(product, sequence.w_hh, cells.first_unit, h_size);

  float grad_h[cells.kCount], grad_c[cells.kCount], c[cells.kCount], c_next[cells.kCount], grad_out[cells.kCount];
  Gates<float> gates[cells.kCount];
  // What the i-th step needs, but for the gradient of h.
  const auto prepare = [&](std::int64_t i) {
    const std::int64_t t = time_of(sequence, i);
    const CellStep<T> step = step_at(sequence, t);
    const float* const before = i > 0 ? sequence.cells + time_of(sequence, i - 1) * n_cells : sequence.cell.c;
    cells.each([&](int j, int, int, auto row, auto unit) {
      const std::int64_t at = offset(row, unit, h_size);
      c[j] = before[at];
      grad_out[j] = sequence.grad_outputs == nullptr ? 0 : read(sequence.grad_outputs + t * n_cells + at);
      gates[j] = gates_of(step, read_gates(step.a, row, unit, h_size), noise_at(step, row, unit));
    });
  };
  cells.each([&](int j, int, int, auto row, auto unit) {
    const std::int64_t at = offset(row, unit, h_size);
    grad_h[j] = read(sequence.grad_h + at);
    grad_c[j] = sequence.grad_c[at];
    c_next[j] = sequence.cells[time_of(sequence, sequence.n_steps - 1) * n_cells + at];
  });
  prepare(sequence.n_steps - 1);

  for (std::int64_t i = sequence.n_steps - 1; i >= 0; --i) {
    const std::int64_t t = time_of(sequence, i);
    const CellStep<T> step = step_at(sequence, t);
    T* const grad_a = sequence.grad_a + t * n_cells * 4;
    cells.each([&](int j, int, int, auto row, auto unit) {
      StepGradient<float> out{{0, 0, 0, 0}, grad_c[j]};
      if (is_active(step, row)) {
        const g2lstm::State<float> grad{grad_h[j] + grad_out[j], grad_c[j]};
        out = step_gradient<ScalarMath<float>>(gates[j], c[j], c_next[j], grad, step.gates);
        grad_h[j] = 0;
      }
      write_gates(grad_a, row, unit, h_size, out.a);
      grad_c[j] = out.c;
      c_next[j] = c[j];
    });
    grid.arrive(arrived);
    if (i > 0) prepare(i - 1);
    const auto left = product.left([&](int row) { return grad_a + offset(cells.batch_row(row), 0, 4 * h_size); });
    grid.wait(arrived, static_cast<unsigned>((sequence.n_steps - i) * grid.blocks_x()));
    product.multiply(left);
    cells.each([&](int j, int row, int unit, auto, auto) { grad_h[j] += product.sum(row, unit); });
  }
  cells.each([&](int j, int, int, auto row, auto unit) {
    write(sequence.grad_h + offset(row, unit, h_size), grad_h[j]);
    sequence.grad_c[offset(row, unit, h_size)] = grad_c[j];
  });
}

}  // namespace g2lstm::cuda
