// The kernels for processors with AMX: those of AVX-512 with bfloat16, but that products of float32 and of integers
// run on its tiles.
//
// GCC 11 and clang 12 are the first that know all that is needed.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace g2lstm {
namespace amx {
bool built();
bool built() { return true; }  // asked on every processor
}  // namespace amx
}  // namespace g2lstm

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
#include "attention.h"
#include "integer_tiles.h"
#include "step.h"

namespace g2lstm {
namespace amx {

template <class F>
const Core<F>& get() {
  static const Core<F> core = [] {
    Core<F> all = avx512_bf16::get<F>();
    all.name = "amx";
    all.multiply_integers = multiply_integers_in_tiles<F>;
    if constexpr (sizeof(F) == sizeof(float)) {
      all.forward = forward<F>;
      all.backward = backward<F>;
      all.output = output<F>;
      all.input_gradient = input_gradient<F>;
      all.most_planes = PlaneMultiplier::kMostPlanes;
      all.split_left = split_left;
      all.split_right = split_right;
      all.multiply_matrices = multiply_matrices;
    }
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

#else

#include "core.h"

namespace g2lstm {
namespace amx {

bool built() { return false; }

template <class F>
const Core<F>& get() {
  return avx512_bf16::get<F>();
}

template const Core<float>& get<float>();
template const Core<double>& get<double>();

}  // namespace amx
}  // namespace g2lstm

#endif
