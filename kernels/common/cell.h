// The arithmetic of one cell, for host vectors and device scalars alike; fairseq_g2lstm/reference/method.py defines it.
//
// Math is what a backend brings: Math::Scalar (float or double), Math::Value (a scalar, or a vector whose lanes are
// neighbouring units), Math::Word (see philox.h), and
//   sigmoid(Value), tanh(Value), log(Value)
//   one_where_not_negative(Value)                  1 where x >= 0, else 0, and 0 for NaN
//   uniform(Word)                                  the low 32 bits, shifted right by 8, times 2^-24
//   where_below(Word, uint64_t bound, Value)       the value where the low 32 bits are below the bound, else 0
#pragma once

#include "philox.h"

namespace g2lstm {

// How the input and the forget gate are computed.
template <class Scalar>
struct GateSpec {
  Scalar inverse_temperature = 1;
  bool hard = false;
};

template <class V>
struct Gates {
  V i, f, g, o;
};

template <class V>
struct State {
  V h, c;
};

// n = log(u + eps) - log(1 - u + eps), eps = 1e-3, with one logarithm
template <class Math>
G2LSTM_HOST_DEVICE typename Math::Value logistic_noise(typename Math::Value u) {
  const auto eps = static_cast<typename Math::Scalar>(1e-3);
  return Math::log((u + eps) / ((1 - u) + eps));
}

// Adds the noise m n to the pre-activations of the input and the forget gate.
// u and m: the words at the time steps where u and m are taken.
template <class Math>
G2LSTM_HOST_DEVICE void add_noise(
    Gates<typename Math::Value>& a, const Words<typename Math::Word>& u, const Words<typename Math::Word>& m,
    std::uint64_t threshold) {
  a.i += Math::where_below(m.w[2], threshold, logistic_noise<Math>(Math::uniform(u.w[0])));
  a.f += Math::where_below(m.w[3], threshold, logistic_noise<Math>(Math::uniform(u.w[1])));
}

// Gates from pre-activations, noise included.
template <class Math>
G2LSTM_HOST_DEVICE Gates<typename Math::Value> activate(
    const Gates<typename Math::Value>& a, const GateSpec<typename Math::Scalar>& spec) {
  Gates<typename Math::Value> gates;
  if (spec.hard) {
    gates.i = Math::one_where_not_negative(a.i);
    gates.f = Math::one_where_not_negative(a.f);
  } else {
    gates.i = Math::sigmoid(a.i * spec.inverse_temperature);
    gates.f = Math::sigmoid(a.f * spec.inverse_temperature);
  }
  gates.g = Math::tanh(a.g);
  gates.o = Math::sigmoid(a.o);
  return gates;
}

template <class Math>
G2LSTM_HOST_DEVICE State<typename Math::Value> next_state(
    const Gates<typename Math::Value>& gates, typename Math::Value c) {
  State<typename Math::Value> next;
  next.c = gates.f * c + gates.i * gates.g;
  next.h = gates.o * Math::tanh(next.c);
  return next;
}

// Gradients of the pre-activations and of the previous cell state.
template <class V>
struct StepGradient {
  Gates<V> a;
  V c;
};

// gates: as activated in the forward pass. c, c_next: the cell states before and after. grad: of h' and c'.
template <class Math>
G2LSTM_HOST_DEVICE StepGradient<typename Math::Value> step_gradient(
    const Gates<typename Math::Value>& gates, typename Math::Value c, typename Math::Value c_next,
    const State<typename Math::Value>& grad, const GateSpec<typename Math::Scalar>& spec) {
  using V = typename Math::Value;
  const V tanh_c = Math::tanh(c_next);
  const V grad_c = grad.c + grad.h * gates.o * (1 - tanh_c * tanh_c);
  const typename Math::Scalar scale = spec.hard ? 0 : spec.inverse_temperature;
  StepGradient<V> out;
  out.a.i = grad_c * gates.g * gates.i * (1 - gates.i) * scale;
  out.a.f = grad_c * c * gates.f * (1 - gates.f) * scale;
  out.a.g = grad_c * gates.i * (1 - gates.g * gates.g);
  out.a.o = grad.h * tanh_c * gates.o * (1 - gates.o);
  out.c = grad_c * gates.f;
  return out;
}

}  // namespace g2lstm
