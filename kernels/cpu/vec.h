// Vectors of one instruction set: types, loads and stores, and the functions that common/cell.h asks for.
//
// Included once by each cpu/isa_*.cpp, which sets G2LSTM_VECTOR_BYTES and its target before. Everything stands in the
// unnamed namespace, so that no function of one instruction set is ever linked into another's code.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/cell.h"

namespace g2lstm {
namespace {

constexpr int kBytes = G2LSTM_VECTOR_BYTES;

typedef float VecF __attribute__((vector_size(kBytes)));
typedef double VecD __attribute__((vector_size(kBytes)));
typedef std::int32_t VecI __attribute__((vector_size(kBytes)));
typedef std::uint32_t VecU __attribute__((vector_size(kBytes)));
typedef std::int64_t VecL __attribute__((vector_size(kBytes)));
typedef std::uint64_t VecW __attribute__((vector_size(kBytes)));

#define G2LSTM_INLINE inline __attribute__((always_inline))

template <class Scalar>
struct VecOf;
template <>
struct VecOf<float> {
  using type = VecF;
};
template <>
struct VecOf<double> {
  using type = VecD;
};
template <>
struct VecOf<std::int32_t> {
  using type = VecI;
};
template <class Scalar>
using Vec = typename VecOf<Scalar>::type;
template <class Scalar>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(Scalar));

template <class Scalar>
G2LSTM_INLINE Vec<Scalar> load(const Scalar* p) {
  Vec<Scalar> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class Scalar>
G2LSTM_INLINE void store(Scalar* p, Vec<Scalar> v) {
  std::memcpy(p, &v, sizeof(v));
}

// The first n lanes alone; the others are 0.
template <class Scalar>
G2LSTM_INLINE Vec<Scalar> load(const Scalar* p, int n) {
  if (n == kLanes<Scalar>) return load(p);
  Vec<Scalar> v{};
  std::memcpy(&v, p, n * sizeof(Scalar));
  return v;
}

template <class Scalar>
G2LSTM_INLINE void store(Scalar* p, Vec<Scalar> v, int n) {
  if (n == kLanes<Scalar>) return store(p, v);
  std::memcpy(p, &v, n * sizeof(Scalar));
}

template <class To, class From>
G2LSTM_INLINE To bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  return reinterpret_cast<To>(v);
}

// --- functions of float vectors -------------------------------------------------------------------------------------

// e^x to 2 ulp for finite x; beyond +-87 the value at +-87, and NaN for NaN.
G2LSTM_INLINE VecF exp(VecF x) {
  x = x > 87.0f ? VecF{} + 87.0f : x;
  x = x < -87.0f ? VecF{} - 87.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const VecF shifted = x * 1.44269504f + magic;
  const VecF n = shifted - magic;
  const VecF r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  VecF p = VecF{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const VecI exponent = (bits<VecI>(shifted) << 23);
  const VecF scaled = bits<VecF>(bits<VecI>(p) + exponent);
  return x == x ? scaled : x;  // a NaN's payload must not reach the exponent
}

G2LSTM_INLINE VecF sigmoid(VecF x) { return 1.0f / (1.0f + exp(-x)); }

G2LSTM_INLINE VecF tanh(VecF x) {
  const VecF square = x * x;
  VecF p = VecF{} - 5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const VecF small = x + x * square * p;
  const VecF large = 1.0f - 2.0f / (exp(x + x) + 1.0f);
  return square < 0.390625f ? small : large;
}

// The natural logarithm of positive normal numbers, to 2 ulp.
G2LSTM_INLINE VecF log(VecF x) {
  const VecI raw = bits<VecI>(x) - 0x3f3504f3;  // so that the mantissa comes to [sqrt(1/2), sqrt(2))
  const VecI e = raw >> 23;
  const VecF m = bits<VecF>((raw & 0x007fffff) + 0x3f3504f3);
  const VecF r = m - 1.0f;
  const VecF square = r * r;
  VecF p = VecF{} + 7.0376836292e-2f;
  p = p * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const VecF n = __builtin_convertvector(e, VecF);
  VecF y = r * square * p;
  y = y - n * 2.12194440e-4f - 0.5f * square;
  return (r + y) + n * 0.693359375f;
}

G2LSTM_INLINE VecF one_where_not_negative(VecF x) { return x >= 0.0f ? VecF{} + 1.0f : VecF{}; }

// --- functions of double vectors: the C library's, lane by lane -----------------------------------------------------

template <class Function>
G2LSTM_INLINE VecD each_lane(VecD x, Function function) {
  double lanes[kLanes<double>];
  std::memcpy(lanes, &x, sizeof(x));
  for (double& lane : lanes) lane = function(lane);
  std::memcpy(&x, lanes, sizeof(x));
  return x;
}

G2LSTM_INLINE VecD exp(VecD x) {
  return each_lane(x, [](double v) { return std::exp(v); });
}
G2LSTM_INLINE VecD sigmoid(VecD x) { return 1.0 / (1.0 + exp(-x)); }
G2LSTM_INLINE VecD tanh(VecD x) {
  return each_lane(x, [](double v) { return std::tanh(v); });
}
G2LSTM_INLINE VecD log(VecD x) {
  return each_lane(x, [](double v) { return std::log(v); });
}
G2LSTM_INLINE VecD one_where_not_negative(VecD x) { return x >= 0.0 ? VecD{} + 1.0 : VecD{}; }

// --- random words ---------------------------------------------------------------------------------------------------

G2LSTM_INLINE VecW multiply_wide(VecW a, std::uint32_t b) {
#if G2LSTM_VECTOR_BYTES == 64
  return bits<VecW>(_mm512_mul_epu32(bits<__m512i>(a), _mm512_set1_epi64(b)));
#elif G2LSTM_VECTOR_BYTES == 32
  return bits<VecW>(_mm256_mul_epu32(bits<__m256i>(a), _mm256_set1_epi64x(b)));
#else
  return bits<VecW>(_mm_mul_epu32(bits<__m128i>(a), _mm_set1_epi64x(b)));
#endif
}

// The words of a vector of floats: those of its even and of its odd lanes, each in 64 bits.
struct WordF {
  VecW even, odd;
};
G2LSTM_INLINE WordF multiply_wide(WordF a, std::uint32_t b) {
  return {multiply_wide(a.even, b), multiply_wide(a.odd, b)};
}
G2LSTM_INLINE WordF operator>>(WordF a, int n) { return {a.even >> n, a.odd >> n}; }
G2LSTM_INLINE WordF operator^(WordF a, WordF b) { return {a.even ^ b.even, a.odd ^ b.odd}; }
G2LSTM_INLINE WordF operator^(WordF a, std::uint64_t b) { return {a.even ^ b, a.odd ^ b}; }

template <class Scalar>
struct WordOf;
template <>
struct WordOf<float> {
  using type = WordF;
};
template <>
struct WordOf<double> {
  using type = VecW;
};

constexpr std::uint64_t kLow = 0xffffffffu;

// 32-bit words in the order of the lanes
G2LSTM_INLINE VecU in_order(WordF w) { return bits<VecU>((w.even & kLow) | (w.odd << 32)); }

G2LSTM_INLINE std::int64_t word_of_lane(WordF w, int lane) { return in_order(w)[lane]; }
G2LSTM_INLINE std::int64_t word_of_lane(VecW w, int lane) { return w[lane] & kLow; }

G2LSTM_INLINE VecF uniform(WordF w, VecF) {
  return __builtin_convertvector(bits<VecI>(in_order(w) >> 8), VecF) * 0x1p-24f;
}
G2LSTM_INLINE VecD uniform(VecW w, VecD) {
  return __builtin_convertvector(bits<VecL>((w & kLow) >> 8), VecD) * 0x1p-24;
}

G2LSTM_INLINE VecF where_below(WordF w, std::uint64_t bound, VecF v) {
  if (bound > kLow) return v;
  return in_order(w) < static_cast<std::uint32_t>(bound) ? v : VecF{};
}
G2LSTM_INLINE VecD where_below(VecW w, std::uint64_t bound, VecD v) {
  return (w & kLow) < bound ? v : VecD{};
}

// unit, unit + 1, ...
template <class Word>
Word count_units(std::uint64_t unit);
template <class Word>
Word fill(std::uint64_t value);

alignas(64) constexpr std::uint64_t kCount[] = {0, 1, 2, 3, 4, 5, 6, 7};

template <>
G2LSTM_INLINE VecW count_units<VecW>(std::uint64_t unit) {
  VecW count;
  std::memcpy(&count, kCount, sizeof(count));
  return count + unit;
}
template <>
G2LSTM_INLINE WordF count_units<WordF>(std::uint64_t unit) {
  const VecW even = count_units<VecW>(0) * 2 + unit;
  return {even, even + 1};
}
template <>
G2LSTM_INLINE VecW fill<VecW>(std::uint64_t value) {
  return VecW{} + value;
}
template <>
G2LSTM_INLINE WordF fill<WordF>(std::uint64_t value) {
  return {VecW{} + value, VecW{} + value};
}

// What common/cell.h and common/philox.h ask for.
template <class F>
struct VecMath {
  using Scalar = F;
  using Value = Vec<F>;
  using Word = typename WordOf<F>::type;
  static G2LSTM_INLINE Word multiply_wide(Word a, std::uint32_t b) { return g2lstm::multiply_wide(a, b); }
  static G2LSTM_INLINE Value sigmoid(Value x) { return g2lstm::sigmoid(x); }
  static G2LSTM_INLINE Value tanh(Value x) { return g2lstm::tanh(x); }
  static G2LSTM_INLINE Value log(Value x) { return g2lstm::log(x); }
  static G2LSTM_INLINE Value one_where_not_negative(Value x) { return g2lstm::one_where_not_negative(x); }
  static G2LSTM_INLINE Value uniform(Word w) { return g2lstm::uniform(w, Value{}); }
  static G2LSTM_INLINE Value where_below(Word w, std::uint64_t bound, Value v) {
    return g2lstm::where_below(w, bound, v);
  }
};

}  // namespace
}  // namespace g2lstm
