// The choice of the instruction set.
#include "core.h"

#include "compiler.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace g2lstm {
namespace {

const char* const kNames[] = {"default", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};
constexpr int kBfloat16 = 4, kAmx = 5;

// Whether the processor multiplies vectors of bfloat16.
bool has_bfloat16() {
#ifdef G2LSTM_BUILDS_BFLOAT16
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kVectorsOfBfloat16 = 1u << 5;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kVectorsOfBfloat16) != 0;
#else
  return false;
#endif
}

// Whether the processor multiplies tiles, and the system lets this process: Linux gives the tiles' 8 KiB of
// state to processes that ask.
bool has_amx() {
#if defined(G2LSTM_BUILDS_BFLOAT16) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kSavedBySystem = 1u << 27;
  constexpr unsigned kTiles = 1u << 24 | 1u << 25 | 1u << 22;  // themselves, of bytes and of bfloat16
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kSavedBySystem) == 0) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTiles) != kTiles) return false;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return (low & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// The place in kNames of what the processor has, or less if the environment says so
int capability() {
  const char* wanted = std::getenv("G2LSTM_CPU_CAPABILITY");
  int most = wanted == nullptr ? kAmx : -1;
  for (int name = 0; name <= kAmx && wanted != nullptr; ++name) {
    if (std::strcmp(wanted, kNames[name]) == 0) most = name;
  }
  const bool unknown = most < 0;
  if (unknown) most = kAmx;
  int best = 0;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = 1;
  if (best == 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    best = __builtin_cpu_supports("avx512vnni") ? 3 : 2;
  }
  if (best == 3 && has_bfloat16()) best = kBfloat16;
  if (best == kBfloat16 && most == kAmx && has_amx()) best = kAmx;
  if (unknown) {
    std::fprintf(
        stderr, "g2lstm: G2LSTM_CPU_CAPABILITY must be default, avx2, avx512, avx512_vnni, avx512_bf16 or amx, got %s: "
        "taking %s\n",
        wanted, kNames[best]);
  }
  return most < best ? most : best;
}

int chosen() {
  static const int level = capability();
  return level;
}

}  // namespace

template <class F>
const Core<F>& core() {
  switch (chosen()) {
#ifdef G2LSTM_BUILDS_BFLOAT16
    case kAmx:
      return amx::get<F>();
    case kBfloat16:
      return avx512_bf16::get<F>();
#endif
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

bool makes_large_products() {
  static const bool makes = [] {
    const int level = chosen();
    const char* wanted = std::getenv("G2LSTM_CPU_PRODUCTS");
    if (wanted != nullptr && std::strcmp(wanted, "library") == 0) return false;
    if (wanted != nullptr && std::strcmp(wanted, "own") == 0) return true;
    if (wanted != nullptr) {
      std::fprintf(stderr, "g2lstm: G2LSTM_CPU_PRODUCTS must be own or library, got %s: ignored\n", wanted);
    }
    return level == kAmx || (level > 0 && !__builtin_cpu_is("intel"));
  }();
  return makes;
}

template const Core<float>& core<float>();
template const Core<double>& core<double>();

}  // namespace g2lstm
