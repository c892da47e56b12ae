// The kernels for processors with AVX-512 and its instructions for bfloat16: those of AVX-512 with VNNI, but that
// products of float32 that may be rounded to bfloat16 use them.
//
// Built with the compilers that build those for AMX.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace g2lstm {
namespace avx512_bf16 {
bool built();
bool built() { return true; }  // asked on every processor
}  // namespace avx512_bf16
}  // namespace g2lstm

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
#include "attention.h"
#include "step.h"

namespace g2lstm {
namespace avx512_bf16 {

template <class F>
const Core<F>& get() {
  static const Core<F> core = [] {
    Core<F> all = avx512_vnni::get<F>();
    all.name = "avx512_bf16";
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

}  // namespace avx512_bf16
}  // namespace g2lstm

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

#include "core.h"

namespace g2lstm {
namespace avx512_bf16 {

bool built() { return false; }

template <class F>
const Core<F>& get() {
  return avx512_vnni::get<F>();
}

template const Core<float>& get<float>();
template const Core<double>& get<double>();

}  // namespace avx512_bf16
}  // namespace g2lstm

#endif
