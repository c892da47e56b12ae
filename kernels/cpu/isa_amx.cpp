// The kernels for processors with AMX: those of AVX-512 with bfloat16, but that products of float32 and of integers
// run on its tiles.
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
#pragma clang attribute push(                                                                              \
    __attribute__((target(                                                                                 \
        "amx-tile,amx-bf16,amx-int8,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,amx-int8,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif

#define G2LSTM_VECTOR_BYTES 64
#define G2LSTM_PLANES
#define G2LSTM_AMX
#include "integer_tiles.h"
#include "isa_planes.h"

namespace g2lstm {
namespace amx {

template <class F>
const Core<F>& get() {
  static const Core<F> core = [] {
    Core<F> all = with_planes<F>("amx", avx512_bf16::get<F>());
    all.multiply_integers = multiply_integers_in_tiles<F>;
    return all;
  }();
  return core;
}

template const Core<float>& get<float>();
template const Core<double>& get<double>();

}  // namespace amx
}  // namespace g2lstm

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
