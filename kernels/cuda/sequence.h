// A layer's whole sequence in one launch: every block keeps its units' recurrent weights in shared memory over all
// steps. What one block does, free of CUDA's headers: the host can run it too.
//
// A block has kUnits units of kRows batch rows. At each step it multiplies what all units of its rows made in the step
// before (h; in the backward pass, pre-activations' gradients) by its weights, and computes its own cells. The blocks
// of the same rows then wait for each other; those of other rows are none of their business.
//
// Grid is what a backend brings, a Block (attention.h) and beside it: kThreads and kWarps, constants; place_x() and
// place_y(), the block's place in the grid, and blocks_x(); Tile<T>, below; copy(to, from), of 16 bytes into shared
// memory, of what other blocks may have written during the launch; commit(), which closes a group of copies;
// wait_copies<N>(), until all but the last N groups of this thread are there; arrive(counter), by which all that the
// block has written can be read by blocks that wait(counter, n) for the n-th arrival.
//
// A tile is a sum of products that the threads of a warp hold between them: kRows x kColumns numbers, cleared, to
// which multiply(left, left_stride, right, right_stride) adds kDepth products each: left (kRows, kDepth) times
// right (kColumns, kDepth) transposed; store(out, stride) writes it.
#pragma once

#include "cells.h"
#include "sequence_plan.h"

// Of loops over arrays that stand in registers.
#ifdef __CUDACC__
#define G2LSTM_UNROLL _Pragma("unroll")
#else
#define G2LSTM_UNROLL
#endif

namespace g2lstm::cuda {

// A block's product: the left side's rows (kRows, depth), which stand in global memory, times its weights.
template <class T, int kRows, int kColumns, class Grid>
struct BlockProduct {
  using Tile = typename Grid::template Tile<T>;
  static constexpr int kTilesDown = kRows / Tile::kRows;
  static constexpr int kTiles = kTilesDown * (kColumns / Tile::kColumns);
  static constexpr int kSplits = Grid::kWarps > kTiles ? Grid::kWarps / kTiles : 1;  // warps that share a tile's depth
  static constexpr int kStep = Grid::kWarps / kSplits;                               // tiles in work at a time
  static constexpr int kTilesOfWarp = (kTiles + kStep - 1) / kStep;
  static constexpr int kDepth = stage_depth<T>(kRows);
  static constexpr int kStageStride = static_cast<int>(padded<T>(kDepth));
  static_assert(kRows % Tile::kRows == 0 && kColumns % Tile::kColumns == 0, "whole tiles");
  static_assert(kTilesOfWarp * kStep == kTiles, "every warp has as many");
  static_assert(kSplits * kRows * kColumns * sizeof(float) <= kStages * stage_bytes<T>(kRows), "room for the sums");

  const Grid& grid;
  T* weights;
  std::int64_t depth;  // a multiple of kUnitMultiple
  T* stages;

  G2LSTM_DEVICE BlockProduct(const Grid& grid, void* shared, std::int64_t depth)
      : grid(grid),
        weights(static_cast<T*>(shared)),
        depth(depth),
        stages(weights + kColumns * padded<T>(depth)) {}

  G2LSTM_DEVICE T* weight(int column) const { return weights + column * padded<T>(depth); }

  // The sum at (row, column), after `run`.
  G2LSTM_DEVICE float sum(int row, int column) const {
    float value = 0;
    for (int split = 0; split < kSplits; ++split) value += sums(split)[row * kColumns + column];
    return value;
  }

  // left(row): where row `row` of the left side begins.
  template <class Left>
  G2LSTM_DEVICE void run(const Left& left) const {
    const int n_pieces = static_cast<int>((depth + kDepth - 1) / kDepth);
    for (int piece = 0; piece < kStages - 1; ++piece) fetch(left, piece, n_pieces);
    const int warp = grid.thread() / Grid::kLanes, split = warp / kStep;
    Tile tiles[kTilesOfWarp];
    G2LSTM_UNROLL
    for (int i = 0; i < kTilesOfWarp; ++i) tiles[i].clear(grid);
    for (int piece = 0; piece < n_pieces; ++piece) {
      grid.template wait_copies<kStages - 2>();
      grid.sync();  // the piece is there for all, and the one whose place the next takes has been used by all
      fetch(left, piece + kStages - 1, n_pieces);
      const std::int64_t begin = static_cast<std::int64_t>(piece) * kDepth;
      const int size = static_cast<int>(depth - begin < kDepth ? depth - begin : kDepth);
      for (int k = split * Tile::kDepth; k < size; k += kSplits * Tile::kDepth) {
        G2LSTM_UNROLL
        for (int i = 0; i < kTilesOfWarp; ++i) {
          const int at = warp % kStep + i * kStep;
          tiles[i].multiply(
              grid, stage(piece) + at % kTilesDown * Tile::kRows * kStageStride + k, kStageStride,
              weight(at / kTilesDown * Tile::kColumns) + begin + k, static_cast<int>(padded<T>(depth)));
        }
      }
    }
    grid.sync();  // nobody reads the pieces any more
    G2LSTM_UNROLL
    for (int i = 0; i < kTilesOfWarp; ++i) {
      const int at = warp % kStep + i * kStep;
      float* const out = sums(split) + at % kTilesDown * Tile::kRows * kColumns + at / kTilesDown * Tile::kColumns;
      tiles[i].store(grid, out, kColumns);
    }
    grid.sync();
  }

 private:
  G2LSTM_DEVICE T* stage(int piece) const { return stages + piece % kStages * (kRows * kStageStride); }
  G2LSTM_DEVICE float* sums(int split) const { return reinterpret_cast<float*>(stages) + split * (kRows * kColumns); }

  // Closes a group of copies whether there is such a piece or not: groups are counted.
  template <class Left>
  G2LSTM_DEVICE void fetch(const Left& left, int piece, int n_pieces) const {
    if (piece < n_pieces) {
      constexpr int kVectors = kDepth / kVector<T>;
      const std::int64_t begin = static_cast<std::int64_t>(piece) * kDepth;
      for (int i = grid.thread(); i < kRows * kVectors; i += Grid::kThreads) {
        const int row = i / kVectors, column = i % kVectors * kVector<T>;
        if (begin + column < depth) grid.copy(stage(piece) + row * kStageStride + column, left(row) + begin + column);
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

  G2LSTM_DEVICE BlockCells(const Grid& grid, std::int64_t n_rows)
      : first_row(grid.place_y() * kRows),
        first_unit(grid.place_x() * kUnits<T>),
        n_rows(n_rows),
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
  constexpr int kVectors = kUnits<T> / kVector<T>;
  for (std::int64_t i = product.grid.thread(); i < 4 * h_size * kVectors; i += product.grid.kThreads) {
    const std::int64_t row = i / kVectors;
    const int unit = static_cast<int>(i % kVectors) * kVector<T>;
    const auto vector = *reinterpret_cast<const Vector<T>*>(w_hh + offset(row, first_unit + unit, h_size));
    for (int k = 0; k < kVector<T>; ++k) product.weight(unit + k)[row] = vector.values[k];
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
G2LSTM_DEVICE std::int64_t time_of(const Sequence<T>& run, std::int64_t i) {
  return run.reverse ? run.n_steps - 1 - i : i;
}

// The i-th step's cells, as cells.h reads them but for their state.
template <class T>
G2LSTM_DEVICE CellStep<T> step_of(const Sequence<T>& run, std::int64_t t) {
  CellStep<T> step = run.cell;
  step.t = t;
  step.a = run.cell.a + t * step.n_rows * 4 * step.h_size;
  return step;
}

template <int kRows, class T, class Grid>
G2LSTM_DEVICE void run_block(const ForwardSequence<T>& run, const Grid& grid, void* shared) {
  const std::int64_t n_rows = run.cell.n_rows, h_size = run.cell.h_size, n_cells = n_rows * h_size;
  const BlockCells<T, kRows, Grid> cells(grid, n_rows);
  const BlockProduct<T, kRows, 4 * kUnits<T>, Grid> product(grid, shared, h_size);
  unsigned* const arrived = run.arrived + grid.place_y();
  keep_rows(product, run.w_hh, cells.first_unit, h_size);
  float c[cells.kCount];
  cells.each([&](int j, int, int, auto row, auto unit) { c[j] = run.cell.c[offset(row, unit, h_size)]; });

  for (std::int64_t i = 0; i < run.n_steps; ++i) {
    const std::int64_t t = time_of(run, i);
    const CellStep<T> step = step_of(run, t);
    // What does not need the other blocks comes before the wait for them.
    Gates<float> a[cells.kCount], noise[cells.kCount];
    cells.each([&](int j, int, int, auto row, auto unit) {
      a[j] = read_gates(step.a, row, unit, h_size);
      noise[j] = noise_at(step, row, unit);
    });
    if (i > 0) grid.wait(arrived, static_cast<unsigned>(i * grid.blocks_x()));
    const std::int64_t before = i > 0 ? time_of(run, i - 1) : 0;
    product.run([&](int in_block) {
      const std::int64_t row = cells.batch_row(in_block);
      const bool has_state = i > 0 && (step.lengths == nullptr || before < step.lengths[row]);
      return has_state ? run.outputs + offset(before * n_rows + row, 0, h_size) : run.h_0 + offset(row, 0, h_size);
    });
    cells.each([&](int j, int row_in_block, int unit_in_block, auto row, auto unit) {
      const auto sum = [&](int gate) { return product.sum(row_in_block, gate * kUnits<T> + unit_in_block); };
      // What backward reads is what forward computes with.
      const Gates<float> whole =
          rounded<T>(Gates<float>{a[j].i + sum(0), a[j].f + sum(1), a[j].g + sum(2), a[j].o + sum(3)});
      write_gates(run.a + t * n_cells * 4, row, unit, h_size, whole);
      const bool active = is_active(step, row);
      g2lstm::State<float> next{0, c[j]};
      if (active) next = next_state<ScalarMath<float>>(gates_of(step, whole, noise[j]), c[j]);
      c[j] = next.c;
      run.cells[t * n_cells + offset(row, unit, h_size)] = next.c;
      write(run.outputs + t * n_cells + offset(row, unit, h_size), next.h);
      if (run.z != nullptr) write_arguments(run.z + t * n_cells * 2, row, unit, step, active, whole);
    });
    grid.arrive(arrived);
  }
}

template <int kRows, class T, class Grid>
G2LSTM_DEVICE void run_block(const BackwardSequence<T>& run, const Grid& grid, void* shared) {
  const std::int64_t n_rows = run.cell.n_rows, h_size = run.cell.h_size, n_cells = n_rows * h_size;
  const BlockCells<T, kRows, Grid> cells(grid, n_rows);
  const BlockProduct<T, kRows, kUnits<T>, Grid> product(grid, shared, 4 * h_size);
  unsigned* const arrived = run.arrived + grid.place_y();
  keep_columns(product, run.w_hh, cells.first_unit, h_size);

  float grad_h[cells.kCount], grad_c[cells.kCount], c[cells.kCount], c_next[cells.kCount], grad_out[cells.kCount];
  Gates<float> gates[cells.kCount];
  // What the i-th step needs, but for the gradient of h.
  const auto prepare = [&](std::int64_t i) {
    const std::int64_t t = time_of(run, i);
    const CellStep<T> step = step_of(run, t);
    const float* const before = i > 0 ? run.cells + time_of(run, i - 1) * n_cells : run.cell.c;
    cells.each([&](int j, int, int, auto row, auto unit) {
      const std::int64_t at = offset(row, unit, h_size);
      c[j] = before[at];
      grad_out[j] = run.grad_outputs == nullptr ? 0 : read(run.grad_outputs + t * n_cells + at);
      gates[j] = gates_of(step, read_gates(step.a, row, unit, h_size), noise_at(step, row, unit));
    });
  };
  cells.each([&](int j, int, int, auto row, auto unit) {
    const std::int64_t at = offset(row, unit, h_size);
    grad_h[j] = read(run.grad_h + at);
    grad_c[j] = run.grad_c[at];
    c_next[j] = run.cells[time_of(run, run.n_steps - 1) * n_cells + at];
  });
  prepare(run.n_steps - 1);

  for (std::int64_t i = run.n_steps - 1; i >= 0; --i) {
    const std::int64_t t = time_of(run, i);
    const CellStep<T> step = step_of(run, t);
    T* const grad_a = run.grad_a + t * n_cells * 4;
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
    grid.wait(arrived, static_cast<unsigned>((run.n_steps - i) * grid.blocks_x()));
    product.run([&](int in_block) { return grad_a + offset(cells.batch_row(in_block), 0, 4 * h_size); });
    cells.each([&](int j, int row, int unit, auto, auto) { grad_h[j] += product.sum(row, unit); });
  }
  cells.each([&](int j, int, int, auto row, auto unit) {
    write(run.grad_h + offset(row, unit, h_size), grad_h[j]);
    run.grad_c[offset(row, unit, h_size)] = grad_c[j];
  });
}

}  // namespace g2lstm::cuda
