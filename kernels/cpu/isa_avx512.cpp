// The kernels for processors with AVX-512.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// After the standard headers, whose inline functions other files share.
#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define G2LSTM_VECTOR_BYTES 64
#include "isa.h"

namespace g2lstm {
namespace avx512 {

template <class F>
const Core<F>& get() {
  static constexpr Core<F> core = make_core<F>("avx512");
  return core;
}

template const Core<float>& get<float>();
template const Core<double>& get<double>();

}  // namespace avx512
}  // namespace g2lstm

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
