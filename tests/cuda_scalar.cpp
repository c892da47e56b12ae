// The scalar code of the CUDA kernels, for Python's ctypes: index arithmetic, random words and one step's arithmetic.
#include "../kernels/cuda/cells.h"
#include "../kernels/cuda/sequence_plan.h"

namespace {

using namespace g2lstm::cuda;

template <class F>
void forward(
    const F* a, const F* c, std::int64_t n_rows, std::int64_t h_size, F temperature, bool hard, F* h_next, F* c_next,
    F* z) {
  ForwardStep<F> step;
  step.a = a;
  step.c = c;
  step.n_rows = n_rows;
  step.h_size = h_size;
  step.gates = {1 / temperature, hard};
  step.h_next = h_next;
  step.c_next = c_next;
  step.z = z;
  run(step, Place{0, 0, 1, 1});
}

// Rows of a block and the number of launches, then of each its first row, its blocks in y and its first counter,
// and last how many counters there are.
template <class T>
void plan(
    const DeviceLimits& device, std::int64_t n_steps, std::int64_t n_rows, std::int64_t h_size, std::int64_t* out) {
  const SequencePlan plan = plan_sequence<T>(device, n_steps, n_rows, h_size);
  out[0] = plan.n_rows, out[1] = 0;
  if (plan.n_rows == 0) return;
  static unsigned counters[1024];
  ForwardSequence<T> sequence;
  sequence.cell.n_rows = n_rows;
  sequence.arrived = counters;
  for_launches(plan, sequence, [&](const ForwardSequence<T>& part, std::int64_t blocks_y) {
    std::int64_t* const launch = out + 2 + 3 * out[1]++;
    launch[0] = part.first_row, launch[1] = blocks_y, launch[2] = (part.arrived - counters) / kCounterStride;
  });
  out[2 + 3 * out[1]] = counter_numbers(n_rows) / kCounterStride;
}

}  // namespace

extern "C" {

void test_plan_half(
    std::int64_t blocks, std::int64_t shared, std::int64_t n_steps, std::int64_t n_rows, std::int64_t h_size,
    std::int64_t* out) {
  plan<Half>({blocks, shared}, n_steps, n_rows, h_size, out);
}
void test_plan_float(
    std::int64_t blocks, std::int64_t shared, std::int64_t n_steps, std::int64_t n_rows, std::int64_t h_size,
    std::int64_t* out) {
  plan<float>({blocks, shared}, n_steps, n_rows, h_size, out);
}

std::int64_t test_gate_offset(std::int64_t row, std::int64_t gate, std::int64_t unit, std::int64_t h_size) {
  return gate_offset(row, gate, unit, h_size);
}
std::int64_t test_argument_offset(std::int64_t row, std::int64_t gate, std::int64_t unit, std::int64_t h_size) {
  return argument_offset(row, gate, unit, h_size);
}
std::int64_t test_offset(std::int64_t row, std::int64_t column, std::int64_t stride) {
  return offset(row, column, stride);
}
std::int64_t test_word_offset(
    std::int64_t k, std::int64_t cell, std::int64_t unit, std::int64_t n_cells, std::int64_t h_size) {
  return word_offset(k, cell, unit, n_cells, h_size);
}

// block_x, block_y, blocks_x, blocks_y
void test_unit_grid(std::int64_t n_rows, std::int64_t h_size, std::int64_t* out) {
  const Grid grid = unit_grid(n_rows, h_size);
  out[0] = grid.block_x, out[1] = grid.block_y, out[2] = grid.blocks_x, out[3] = grid.blocks_y;
}
void test_row_grid(std::int64_t n_rows, std::int64_t* out) {
  const Grid grid = row_grid(n_rows);
  out[0] = grid.block_x, out[1] = grid.block_y, out[2] = grid.blocks_x, out[3] = grid.blocks_y;
}

// The cells that the thread at (x, y) of a grid takes, counted in (n_rows, h_size).
void test_cover(std::int64_t n_rows, std::int64_t h_size, const std::int64_t* place, std::int64_t* counts) {
  for_units(Place{place[0], place[1], place[2], place[3]}, n_rows, h_size, [&](auto row, auto unit) {
    ++counts[offset(row, unit, h_size)];
  });
}

// (4, T, B, H) by the thread at place (0, 0) of a grid of one
void test_words(
    std::int64_t seed, std::int64_t stream, const std::int64_t* rows, std::int64_t n_steps, std::int64_t n_rows,
    std::int64_t h_size, std::int64_t* out) {
  RandomWords words;
  words.noise.seed = static_cast<std::uint64_t>(seed);
  words.noise.stream = static_cast<std::uint32_t>(stream);
  words.rows = rows;
  words.out = out;
  words.n_steps = n_steps;
  words.n_rows = n_rows;
  words.h_size = h_size;
  run(words, Place{0, 0, 1, 1});
}

void test_forward_float(
    const float* a, const float* c, std::int64_t n_rows, std::int64_t h_size, double temperature, bool hard,
    float* h_next, float* c_next, float* z) {
  forward<float>(a, c, n_rows, h_size, static_cast<float>(temperature), hard, h_next, c_next, z);
}
void test_forward_double(
    const double* a, const double* c, std::int64_t n_rows, std::int64_t h_size, double temperature, bool hard,
    double* h_next, double* c_next, double* z) {
  forward<double>(a, c, n_rows, h_size, temperature, hard, h_next, c_next, z);
}
}
