// Products with weights in integers: rows of the left side to integers of 16 bits, and sums back to numbers.
//
// A weight of 8 bits is widened on its way into a register; instructions that multiply pairs of 16 bits and add them in
// 32 are in every instruction set and never saturate, unlike those on pairs of 8 bits before VNNI.
#pragma once

#include "core.h"
#include "vec.h"

namespace g2lstm {
namespace {

template <class F>
struct IntegersOf;
template <>
struct IntegersOf<float> {
  using type = VecI;
};
template <>
struct IntegersOf<double> {
  using type = VecL;
};

// Whole numbers of at most 16 bits.
template <class F>
G2LSTM_INLINE void store_words(std::int16_t* to, Vec<F> whole) {
  typedef std::int16_t Words __attribute__((vector_size(kLanes<F> * 2)));
  const Words words = __builtin_convertvector(__builtin_convertvector(whole, typename IntegersOf<F>::type), Words);
  std::memcpy(to, &words, sizeof(words));
}

template <class F>
void quantize(const Quantize<F>& task, std::int64_t row_begin, std::int64_t row_end) {
  using V = Vec<F>;
  const std::int64_t whole = task.size - task.size % kLanes<F>;
  const std::size_t row_bytes = static_cast<std::size_t>(padded_size(task.size)) * sizeof(std::int16_t);
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const F* const x = task.x + row * task.stride;
    std::int16_t* const q = task.q + row * padded_size(task.size);
    std::int16_t* const q_rest = task.q_rest == nullptr ? nullptr : task.q_rest + row * padded_size(task.size);
    V high{}, odd{};
    for (std::int64_t k = 0; k < task.size; k += kLanes<F>) {
      const V value = load(x + k, k < whole ? kLanes<F> : static_cast<int>(task.size - k));
      const V size = value < 0 ? -value : value;
      high = size > high ? size : high;
      odd += value * 0;  // NaN of infinities and NaN
    }
    F highest = 0, probe = 0;
    for (int lane = 0; lane < kLanes<F>; ++lane) {
      highest = high[lane] > highest ? high[lane] : highest;
      probe += odd[lane];
    }
    task.scales[row] = highest > 0 ? highest / kLargest + probe : 1 + probe;
    const F inverse = highest > 0 ? kLargest / highest : 0;
    // not finite, or too small to be told from 0
    const bool none = probe != probe || !(inverse < static_cast<F>(HUGE_VAL));
    const std::int64_t last = task.size - task.size % kPaddedTo;
    if (none || last < task.size) {
      const std::size_t from = none ? 0 : static_cast<std::size_t>(last) * sizeof(std::int16_t);
      std::memset(reinterpret_cast<char*>(q) + from, 0, row_bytes - from);
      if (q_rest != nullptr) std::memset(reinterpret_cast<char*>(q_rest) + from, 0, row_bytes - from);
    }
    if (none) continue;
    const F magic = static_cast<F>(sizeof(F) == 4 ? 0x1.8p23 : 0x1.8p52);  // adding it rounds to an integer
    for (std::int64_t k = 0; k < task.size; k += kLanes<F>) {
      const V scaled = load(x + k, k < whole ? kLanes<F> : static_cast<int>(task.size - k)) * inverse;
      const V rounded = (scaled + magic) - magic;
      store_words<F>(q + k, rounded);
      if (q_rest != nullptr) store_words<F>(q_rest + k, ((scaled - rounded) * F(kRest) + magic) - magic);
    }
  }
}

// --- the products ---------------------------------------------------------------------------------------------------

constexpr int kStep = kBytes / 2;  // numbers of 16 bits in a vector
constexpr int kColumns = 4;        // whose sums go into one vector of 32 bits
static_assert(kPaddedTo % kStep == 0 && kSumsTo % kStep == 0, "rows are read in whole vectors");
#if G2LSTM_VECTOR_BYTES == 64
constexpr int kRowsAtOnce = 6;  // 24 of 32 registers for sums
#else
constexpr int kRowsAtOnce = 2;  // 8 of 16
#endif
constexpr std::int64_t kWeightsAtOnce = 1 << 18;  // that stay in the cache for all rows

typedef std::int32_t FourSums __attribute__((vector_size(16)));

using Pairs = VecI;  // sums of pairs of products, or pairs of numbers of 16 bits

#if G2LSTM_VECTOR_BYTES == 64
#define G2LSTM_PAIRS(instruction, a, b) \
  bits<Pairs>(_mm512_##instruction(bits<__m512i>(a), bits<__m512i>(b)))
G2LSTM_INLINE Pairs widen(const std::int8_t* p) {
  return bits<Pairs>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
G2LSTM_INLINE __m128i fold(Pairs sums) {
  const __m512i all = bits<__m512i>(sums);
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
#elif G2LSTM_VECTOR_BYTES == 32
#define G2LSTM_PAIRS(instruction, a, b) \
  bits<Pairs>(_mm256_##instruction(bits<__m256i>(a), bits<__m256i>(b)))
G2LSTM_INLINE Pairs widen(const std::int8_t* p) {
  return bits<Pairs>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
G2LSTM_INLINE __m128i fold(Pairs sums) {
  const __m256i all = bits<__m256i>(sums);
  return _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
#else
#define G2LSTM_PAIRS(instruction, a, b) bits<Pairs>(_mm_##instruction(bits<__m128i>(a), bits<__m128i>(b)))
G2LSTM_INLINE Pairs widen(const std::int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return bits<Pairs>(_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8));  // SSE2 has no widening of its own
}
G2LSTM_INLINE __m128i fold(Pairs sums) { return bits<__m128i>(sums); }
#endif

G2LSTM_INLINE Pairs load_words(const std::int16_t* p) { return load(reinterpret_cast<const std::int32_t*>(p)); }

G2LSTM_INLINE void multiply_add(Pairs& sum, Pairs a, Pairs b) {
#ifdef G2LSTM_VNNI
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));  // the intrinsic copies the sum at every step
#else
  sum += G2LSTM_PAIRS(madd_epi16, a, b);
#endif
}

// The sums of four vectors.
G2LSTM_INLINE FourSums sums_of(Pairs a, Pairs b, Pairs c, Pairs d) {
  const Pairs ab = G2LSTM_PAIRS(unpacklo_epi32, a, b) + G2LSTM_PAIRS(unpackhi_epi32, a, b);
  const Pairs cd = G2LSTM_PAIRS(unpacklo_epi32, c, d) + G2LSTM_PAIRS(unpackhi_epi32, c, d);
  return bits<FourSums>(fold(G2LSTM_PAIRS(unpacklo_epi64, ab, cd) + G2LSTM_PAIRS(unpackhi_epi64, ab, cd)));
}

// A row's weights from k on; the last row's may end within the vector.
G2LSTM_INLINE Pairs widen_before(const std::int8_t* p, const std::int8_t* end) {
  if (end - p >= kStep) return widen(p);
  std::int8_t some[kStep] = {};
  std::memcpy(some, p, static_cast<std::size_t>(end - p));
  return widen(some);
}

// `width` of four columns from `column` on, all of them where kWhole; kRows rows.
template <class F, int kRows, bool kWhole>
G2LSTM_INLINE void integer_tile(const IntegerProduct<F>& task, std::int64_t row, std::int64_t column, int width) {
  typedef F Four __attribute__((vector_size(kColumns * sizeof(F))));
  const std::int64_t stride = padded_size(task.size_k), whole = task.size_k - task.size_k % kStep;
  const std::int8_t* const end = task.weights + task.size_n * task.size_k;
  const std::int8_t* w[kColumns];
  for (int c = 0; c < kColumns; ++c) w[c] = task.weights + (column + (c < width ? c : 0)) * task.size_k;
  Four totals[kRows] = {};
  for (bool rest = task.q_rest != nullptr;; rest = false) {  // the smaller numbers first
    const std::int16_t* const x = (rest ? task.q_rest : task.q) + row * stride;
    for (std::int64_t begin = 0; begin < task.size_k; begin += kSumsTo) {
      const std::int64_t until = begin + kSumsTo < whole ? begin + kSumsTo : whole;
      Pairs sums[kRows][kColumns] = {};
      std::int64_t k = begin;
      for (; k < until; k += kStep) {
        Pairs right[kColumns];
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) right[c] = widen(w[c] + k);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const Pairs left = load_words(x + r * stride + k);
#pragma GCC unroll 4
          for (int c = 0; c < kColumns; ++c) multiply_add(sums[r][c], left, right[c]);
        }
      }
      if (k < begin + kSumsTo && k < task.size_k) {  // beyond the row's end the left side is 0
        Pairs right[kColumns];
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) right[c] = widen_before(w[c] + k, end);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
          const Pairs left = load_words(x + r * stride + k);
#pragma GCC unroll 4
          for (int c = 0; c < kColumns; ++c) multiply_add(sums[r][c], left, right[c]);
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        totals[r] += __builtin_convertvector(sums_of(sums[r][0], sums[r][1], sums[r][2], sums[r][3]), Four);
      }
    }
    if (!rest) break;
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) totals[r] *= F(1.0 / kRest);
  }
  const auto bytes = static_cast<std::size_t>(width) * sizeof(F);
  const auto load_four = [&](Four& four, const F* p) {
    kWhole ? std::memcpy(&four, p, sizeof(four)) : std::memcpy(&four, p, bytes);
  };
  Four scales{}, start{};
  load_four(scales, task.scales + column);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    if (task.start != nullptr) load_four(start, task.start + (row + r) * task.start_stride + column);
    const Four y = totals[r] * task.row_scales[row + r] * scales + start;
    F* const out = task.out + (row + r) * task.stride + column;
    kWhole ? std::memcpy(out, &y, sizeof(y)) : std::memcpy(out, &y, bytes);
  }
}

template <class F, int kRows>
void integer_tiles(
    const IntegerProduct<F>& task, std::int64_t row, std::int64_t column_begin, std::int64_t column_end) {
  std::int64_t column = column_begin;
  for (; column + kColumns <= column_end; column += kColumns) integer_tile<F, kRows, true>(task, row, column, kColumns);
  if (column < column_end) integer_tile<F, kRows, false>(task, row, column, static_cast<int>(column_end - column));
}

template <class F>
void multiply_integers(
    const IntegerProduct<F>& task, std::int64_t column_begin, std::int64_t column_end, std::int64_t row_begin,
    std::int64_t row_end) {
  const std::int64_t at_once = (kWeightsAtOnce / task.size_k + kColumns) / kColumns * kColumns;
  for (std::int64_t column = column_begin; column < column_end; column += at_once) {
    const std::int64_t until = column + at_once < column_end ? column + at_once : column_end;
    std::int64_t row = row_begin;
    for (; row + kRowsAtOnce <= row_end; row += kRowsAtOnce) integer_tiles<F, kRowsAtOnce>(task, row, column, until);
    switch (row_end - row) {
#if G2LSTM_VECTOR_BYTES == 64
      case 5:
        integer_tiles<F, 5>(task, row, column, until);
        break;
      case 4:
        integer_tiles<F, 4>(task, row, column, until);
        break;
      case 3:
        integer_tiles<F, 3>(task, row, column, until);
        break;
      case 2:
        integer_tiles<F, 2>(task, row, column, until);
        break;
#endif
      case 1:
        integer_tiles<F, 1>(task, row, column, until);
        break;
      default:
        break;
    }
  }
}

}  // namespace
}  // namespace g2lstm
