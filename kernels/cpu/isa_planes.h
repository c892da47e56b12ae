// The kernels of an instruction set that multiplies planes, as a table of functions.
#pragma once

#include "attention.h"
#include "step.h"

namespace g2lstm {
namespace {

// Those of a lesser instruction set, but that a float32 may come into products as bfloat16.
template <class F>
Core<F> with_planes(const char* name, Core<F> core) {
  core.name = name;
  if constexpr (sizeof(F) == sizeof(float)) {
    core.forward = forward<F>;
    core.backward = backward<F>;
    core.output = output<F>;
    core.input_gradient = input_gradient<F>;
    core.most_planes = PlaneMultiplier::kMostPlanes;
    core.split_left = split_left;
    core.split_right = split_right;
    core.multiply_matrices = multiply_matrices;
  }
  return core;
}

}  // namespace
}  // namespace g2lstm
