// The kernels for every x86-64 processor.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#define G2LSTM_VECTOR_BYTES 16
#include "isa.h"

namespace g2lstm {
namespace baseline {

template <class F>
const Core<F>& get() {
  static constexpr Core<F> core = make_core<F>("default");
  return core;
}

template const Core<float>& get<float>();
template const Core<double>& get<double>();

}  // namespace baseline
}  // namespace g2lstm
