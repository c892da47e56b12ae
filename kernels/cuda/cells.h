// What one thread does in the kernels of a time step. Free of CUDA's headers, so that the host can run it too.
#pragma once

#include "index.h"
#include "launch.h"
#include "math.h"

#ifdef __CUDACC__
#define G2LSTM_DEVICE __device__ __forceinline__
#else
#define G2LSTM_DEVICE inline
#endif

namespace g2lstm::cuda {

// Memory to arithmetic and back; whoever includes this brings the same for Half and BFloat16.
G2LSTM_DEVICE float read(const float* from) { return *from; }
G2LSTM_DEVICE double read(const double* from) { return *from; }
G2LSTM_DEVICE void write(float* to, float value) { *to = value; }
G2LSTM_DEVICE void write(double* to, double value) { *to = value; }

template <class T>
G2LSTM_DEVICE State<T> factor(const T* dropout, std::int64_t at) {
  return dropout == nullptr ? State<T>(1) : read(dropout + at);
}

template <class T>
G2LSTM_DEVICE bool is_active(const CellStep<T>& step, std::int64_t row) {
  return step.lengths == nullptr || step.t < step.lengths[row];
}

template <class T>
G2LSTM_DEVICE Gates<State<T>> read_gates(const T* a, std::int64_t row, std::int64_t unit, std::int64_t h_size) {
  return {
      read(a + gate_offset(row, 0, unit, h_size)), read(a + gate_offset(row, 1, unit, h_size)),
      read(a + gate_offset(row, 2, unit, h_size)), read(a + gate_offset(row, 3, unit, h_size))};
}

template <class T>
G2LSTM_DEVICE void write_gates(
    T* a, std::int64_t row, std::int64_t unit, std::int64_t h_size, const Gates<State<T>>& gates) {
  write(a + gate_offset(row, 0, unit, h_size), gates.i);
  write(a + gate_offset(row, 1, unit, h_size), gates.f);
  write(a + gate_offset(row, 2, unit, h_size), gates.g);
  write(a + gate_offset(row, 3, unit, h_size), gates.o);
}

// What the noise adds to the pre-activations of the input and the forget gate.
template <class T>
G2LSTM_DEVICE Gates<State<T>> noise_at(const CellStep<T>& step, std::int64_t row, std::int64_t unit) {
  Gates<State<T>> noise{0, 0, 0, 0};
  const NoiseSpec& spec = step.noise;
  if (spec.threshold > 0) {
    const auto u = words_at(spec, step.rows, row, unit, spec.share_uniform ? 0 : step.t);
    const bool own_mask = spec.share_mask && !spec.share_uniform && step.t != 0;
    add_noise<ScalarMath<State<T>>>(noise, u, own_mask ? words_at(spec, step.rows, row, unit, 0) : u, spec.threshold);
  }
  return noise;
}

// Gates of noise-free pre-activations: the same in the forward and the backward pass.
template <class T>
G2LSTM_DEVICE Gates<State<T>> gates_of(const CellStep<T>& step, Gates<State<T>> a, const Gates<State<T>>& noise) {
  a.i += noise.i;
  a.f += noise.f;
  return activate<ScalarMath<State<T>>>(a, step.gates);
}

template <class S>
G2LSTM_DEVICE S argument(S a, const GateSpec<S>& spec) {
  if (!spec.hard) return a * spec.inverse_temperature;
  return a >= 0 ? static_cast<S>(HUGE_VAL) : -static_cast<S>(HUGE_VAL);
}

// Noise-free arguments of the sigmoids of i and f, 0 where a row is not active.
template <class T>
G2LSTM_DEVICE void write_arguments(
    State<T>* z, std::int64_t row, std::int64_t unit, const CellStep<T>& step, bool active,
    const Gates<State<T>>& a) {
  z[argument_offset(row, 0, unit, step.h_size)] = active ? argument(a.i, step.gates) : 0;
  z[argument_offset(row, 1, unit, step.h_size)] = active ? argument(a.f, step.gates) : 0;
}

template <class T>
G2LSTM_DEVICE void forward_unit(const ForwardStep<T>& step, std::int64_t row, std::int64_t unit) {
  using S = State<T>;
  const std::int64_t at = offset(row, unit, step.h_size);
  const bool active = is_active(step, row);
  Gates<S> a{};
  if (active) a = read_gates(step.a, row, unit, step.h_size);
  if (step.z != nullptr) write_arguments(step.z, row, unit, step, active, a);
  g2lstm::State<S> next{0, step.c[at]};
  if (active) next = next_state<ScalarMath<S>>(gates_of(step, a, noise_at(step, row, unit)), next.c);
  step.c_next[at] = next.c;
  write(step.h_next + at, next.h);
  if (active && step.h_state.data != nullptr) {
    write(step.h_state.data + offset(row, unit, step.h_state.stride), next.h);
  }
  if (step.above.data != nullptr) {
    // dropout applies to h' as it is kept in memory
    const S h = read(step.h_next + at);
    write(step.above.data + offset(row, unit, step.above.stride), h * factor(step.dropout, at));
  }
}

template <class T>
G2LSTM_DEVICE void backward_unit(const BackwardStep<T>& step, std::int64_t row, std::int64_t unit) {
  using S = State<T>;
  const std::int64_t at = offset(row, unit, step.h_size);
  if (!is_active(step, row)) {
    write_gates(step.grad_a, row, unit, step.h_size, {0, 0, 0, 0});
    return;
  }
  g2lstm::State<S> grad{0, step.grad_c[at]};
  if (step.grad_h.data != nullptr) {
    T* const grad_h = step.grad_h.data + offset(row, unit, step.grad_h.stride);
    grad.h = read(grad_h);
    if (step.lengths != nullptr) write(grad_h, S(0));
  }
  if (step.grad_above.data != nullptr) {
    grad.h += read(step.grad_above.data + offset(row, unit, step.grad_above.stride)) * factor(step.dropout, at);
  }
  const Gates<S> gates =
      gates_of(step, read_gates(step.a, row, unit, step.h_size), noise_at(step, row, unit));
  const StepGradient<S> out = step_gradient<ScalarMath<S>>(gates, step.c[at], step.c_next[at], grad, step.gates);
  write_gates(step.grad_a, row, unit, step.h_size, out.a);
  step.grad_c[at] = out.c;
}

G2LSTM_DEVICE void words_of_unit(const RandomWords& words, std::int64_t cell, std::int64_t unit) {
  const std::int64_t t = cell / words.n_rows, row = cell % words.n_rows;
  const auto value = words_at(words.noise, words.rows, row, unit, t);
  for (int k = 0; k < 4; ++k) {
    words.out[word_offset(k, cell, unit, words.n_steps * words.n_rows, words.h_size)] =
        static_cast<std::uint32_t>(value.w[k]);
  }
}

// The units of the thread at `place`.
template <class Function>
G2LSTM_DEVICE void for_units(
    const Place& place, std::int64_t n_rows, std::int64_t h_size, const Function& function) {
  for (std::int64_t row = place.y; row < n_rows; row += place.extent_y) {
    for (std::int64_t unit = place.x; unit < h_size; unit += place.extent_x) function(row, unit);
  }
}

template <class T>
G2LSTM_DEVICE void run(const ForwardStep<T>& step, const Place& place) {
  for_units(place, step.n_rows, step.h_size, [&](auto row, auto unit) { forward_unit(step, row, unit); });
}

template <class T>
G2LSTM_DEVICE void run(const BackwardStep<T>& step, const Place& place) {
  for_units(place, step.n_rows, step.h_size, [&](auto row, auto unit) { backward_unit(step, row, unit); });
}

G2LSTM_DEVICE void run(const RandomWords& words, const Place& place) {
  const std::int64_t n_cells = words.n_steps * words.n_rows;
  for_units(place, n_cells, words.h_size, [&](auto cell, auto unit) { words_of_unit(words, cell, unit); });
}

}  // namespace g2lstm::cuda
