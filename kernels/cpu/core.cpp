// The choice of the instruction set.
#include "core.h"

#include <cstdlib>
#include <cstring>

namespace g2lstm {
namespace {

// 0 default, 1 avx2, 2 avx512: what the processor has, or less if the environment says so
int capability() {
  int best = 0;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = 1;
  if (best == 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    best = 2;
  }
  const char* wanted = std::getenv("G2LSTM_CPU_CAPABILITY");
  if (wanted == nullptr) return best;
  const int most = std::strcmp(wanted, "default") == 0 ? 0 : std::strcmp(wanted, "avx2") == 0 ? 1 : 2;
  return most < best ? most : best;
}

}  // namespace

template <class F>
const Core<F>& core() {
  static const int chosen = capability();
  switch (chosen) {
    case 2:
      return avx512::get<F>();
    case 1:
      return avx2::get<F>();
    default:
      return baseline::get<F>();
  }
}

template const Core<float>& core<float>();
template const Core<double>& core<double>();

}  // namespace g2lstm
