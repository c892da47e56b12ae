// The kernels for processors with AVX2 and FMA.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// After the standard headers, whose inline functions other files share.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define G2LSTM_VECTOR_BYTES 32
#include "isa.h"

namespace g2lstm {
namespace avx2 {

template <class F>
const Core<F>& get() {
  static constexpr Core<F> core = make_core<F>("avx2");
  return core;
}

template const Core<float>& get<float>();
template const Core<double>& get<double>();

}  // namespace avx2
}  // namespace g2lstm

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
