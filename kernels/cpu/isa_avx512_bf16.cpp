// The kernels for processors with AVX-512 and its instructions for bfloat16: those of AVX-512 with VNNI, but that
// products of float32 that may be rounded to bfloat16 use them.
#include "compiler.h"

#ifdef G2LSTM_BUILDS_BFLOAT16

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// After the standard headers, whose inline functions other files share.
#ifdef __clang__
#pragma clang attribute push(                                                                                   \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif

#define G2LSTM_VECTOR_BYTES 64
#define G2LSTM_PLANES
#include "isa_planes.h"

namespace g2lstm {
namespace avx512_bf16 {

template <class F>
const Core<F>& get() {
  static const Core<F> core = with_planes<F>("avx512_bf16", avx512_vnni::get<F>());
  return core;
}

template const Core<float>& get<float>();
template const Core<double>& get<double>();

}  // namespace avx512_bf16
}  // namespace g2lstm

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
