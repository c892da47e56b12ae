// How a sequence whose steps all run in one launch is cut into blocks, and whether a device has room for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../common/philox.h"

namespace g2lstm::cuda {

template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));  // numbers in 16 bytes

// Units of a block: the most for which the weights of 1024 units fit into shared memory on sm_90.
template <class T>
constexpr int kUnits = sizeof(T) == 2 ? 16 : 8;

// Rows of a block, in powers of two. Tensor cores take 16 at a time; plain float32 is slower with as few.
constexpr int kTensorCoreRows = 16;
template <class T>
constexpr int kLeastRows = sizeof(T) == 2 ? kTensorCoreRows : 32;
constexpr int kMostRows = 64;

constexpr int kSlots = 4;                    // for pieces of the left side on their way, or in use
constexpr std::int64_t kPieceBytes = 16384;  // of each, without padding
constexpr int kUnitMultiple = 16;            // a layer's units are a multiple of it

// Columns of a piece of the left side.
template <class T>
constexpr int piece_depth(int n_rows) {
  return static_cast<int>(kPieceBytes / sizeof(T)) / n_rows;
}

// Rows of shared memory are 16 bytes longer than what they hold, so that their beginnings stand in different banks.
template <class T>
G2LSTM_HOST_DEVICE constexpr std::int64_t padded(std::int64_t size) {
  return size + kVector<T>;
}

// Shared memory of a block: its weights (n_columns, depth), then the slots of the left side's pieces, whose place
// the sums take.
template <class T>
constexpr std::int64_t weight_bytes(std::int64_t n_columns, std::int64_t depth) {
  return n_columns * padded<T>(depth) * static_cast<std::int64_t>(sizeof(T));
}
template <class T>
constexpr std::int64_t piece_bytes(int n_rows) {
  return n_rows * padded<T>(piece_depth<T>(n_rows)) * static_cast<std::int64_t>(sizeof(T));
}
template <class T>
constexpr std::int64_t shared_bytes(std::int64_t n_columns, std::int64_t depth, int n_rows) {
  return weight_bytes<T>(n_columns, depth) + kSlots * piece_bytes<T>(n_rows);
}

// From one counter of arrivals to the next, so that each has a line of the cache to itself.
constexpr std::int64_t kCounterStride = 128 / sizeof(unsigned);

// Length of an array of such counters, one for each group of rows, whatever the rows of a block.
inline std::int64_t counter_numbers(std::int64_t n_rows) {
  return (n_rows + kTensorCoreRows - 1) / kTensorCoreRows * kCounterStride;
}

// How a sequence is cut into blocks of n_rows rows, and into launches of at most blocks_x x blocks_y of them, which all
// run at the same time. n_rows is 0 where not even the blocks of the same rows do.
struct SequencePlan {
  int n_rows = 0;
  std::int64_t blocks_x = 0, blocks_y = 0;
  std::int64_t forward_bytes = 0, backward_bytes = 0;  // of shared memory
};

// What a device can do: blocks at the same time, of one a multiprocessor, and bytes of shared memory of each.
struct DeviceLimits {
  std::int64_t blocks = 0, shared_bytes = 0;
};

// The fewest rows a block with which one launch is enough, and so the least that a block has to read at a step. Where
// none is, parts of the batch, which have nothing to do with each other, are launched one after another.
template <class T>
SequencePlan plan_sequence(
    const DeviceLimits& device, std::int64_t n_steps, std::int64_t n_rows, std::int64_t h_size) {
  const std::int64_t blocks_x = h_size / kUnits<T>, at_once = blocks_x > 0 ? device.blocks / blocks_x : 0;
  if (n_rows <= 0 || h_size % kUnitMultiple != 0 || at_once == 0) return {};
  if (n_steps * blocks_x >= (std::int64_t{1} << 31)) return {};  // arrivals are counted in 32 bits
  SequencePlan plan;
  for (int rows = kLeastRows<T>; rows <= kMostRows; rows *= 2) {
    const std::int64_t forward_bytes = shared_bytes<T>(4 * kUnits<T>, h_size, rows);
    const std::int64_t backward_bytes = shared_bytes<T>(kUnits<T>, 4 * h_size, rows);
    if (std::max(forward_bytes, backward_bytes) > device.shared_bytes) break;
    const std::int64_t groups = (n_rows + rows - 1) / rows, launches = (groups + at_once - 1) / at_once;
    plan = {rows, blocks_x, (groups + launches - 1) / launches, forward_bytes, backward_bytes};
    if (launches == 1) break;
  }
  return plan;
}

// Calls function(the sequence, told which rows are the launch's, its blocks in y) for each launch in turn.
template <class Direction, class Function>
void for_launches(const SequencePlan& plan, Direction sequence, const Function& function) {
  const std::int64_t groups = (sequence.cell.n_rows + plan.n_rows - 1) / plan.n_rows;
  for (std::int64_t group = 0; group < groups; group += plan.blocks_y) {
    sequence.first_row = group * plan.n_rows;
    function(sequence, std::min(groups - group, plan.blocks_y));
    sequence.arrived += plan.blocks_y * kCounterStride;
  }
}

// Calls function(a constant equal to n_rows), which is a plan's.
template <class T, int kRows = kLeastRows<T>, class Function>
void with_rows(int n_rows, const Function& function) {
  if (n_rows == kRows) {
    function(std::integral_constant<int, kRows>());
  } else if constexpr (kRows < kMostRows) {
    with_rows<T, 2 * kRows>(n_rows, function);
  }
}

}  // namespace g2lstm::cuda
