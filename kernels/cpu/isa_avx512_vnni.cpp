// The kernels for processors with AVX-512 and its VNNI instructions, which products of integers use.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

// After the standard headers, whose inline functions other files share.
#ifdef __clang__
#pragma clang attribute push(                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif

#define G2LSTM_VECTOR_BYTES 64
#define G2LSTM_VNNI
#include "integers.h"

namespace g2lstm {
namespace avx512_vnni {

template <class F>
const Core<F>& get() {
  static const Core<F> core = [] {
    Core<F> all = avx512::get<F>();
    all.name = "avx512_vnni";
    all.multiply_integers = multiply_integers<F>;
    return all;
  }();
  return core;
}

template const Core<float>& get<float>();
template const Core<double>& get<double>();

}  // namespace avx512_vnni
}  // namespace g2lstm

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
