// The choice of the instruction set.
#include "core.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace g2lstm {
namespace {

const char* const kNames[] = {"default", "avx2", "avx512", "avx512_vnni"};

// The place in kNames of what the processor has, or less if the environment says so
int capability() {
  int best = 0;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = 1;
  if (best == 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    best = __builtin_cpu_supports("avx512vnni") ? 3 : 2;
  }
  const char* wanted = std::getenv("G2LSTM_CPU_CAPABILITY");
  if (wanted == nullptr) return best;
  for (int most = 0; most < 4; ++most) {
    if (std::strcmp(wanted, kNames[most]) == 0) return most < best ? most : best;
  }
  std::fprintf(
      stderr, "g2lstm: G2LSTM_CPU_CAPABILITY must be default, avx2, avx512 or avx512_vnni, got %s: taking %s\n", wanted,
      kNames[best]);
  return best;
}

}  // namespace

template <class F>
const Core<F>& core() {
  static const int chosen = capability();
  switch (chosen) {
    case 3:
      return avx512_vnni::get<F>();
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
