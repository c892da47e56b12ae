// Counter-based random words, for host vectors and device scalars alike.
//
// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11. Which counter names
// which gate stands in fairseq_g2lstm/philox.py, whose bits these are.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define G2LSTM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define G2LSTM_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace g2lstm {

// Four words of each lane. A lane of Word has 64 bits of which the low 32 count; the high ones hold anything.
template <class Word>
struct Words {
  Word w[4];
};

// Math is what a backend brings: Math::Word, and Math::multiply_wide(Word, uint32_t), the low 32 bits of each lane
// times a constant, as 64 bits.
template <class Math>
G2LSTM_HOST_DEVICE Words<typename Math::Word> philox4x32(Words<typename Math::Word> counter, std::uint64_t key) {
  using Word = typename Math::Word;
  Word c0 = counter.w[0], c1 = counter.w[1], c2 = counter.w[2], c3 = counter.w[3];
  std::uint32_t k0 = static_cast<std::uint32_t>(key);
  std::uint32_t k1 = static_cast<std::uint32_t>(key >> 32);
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const Word p0 = Math::multiply_wide(c0, 0xD2511F53u);
    const Word p1 = Math::multiply_wide(c2, 0xCD9E8D57u);
    c0 = (p1 >> 32) ^ c1 ^ static_cast<std::uint64_t>(k0);
    c2 = (p0 >> 32) ^ c3 ^ static_cast<std::uint64_t>(k1);
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// How a forward pass draws its noise.
struct NoiseSpec {
  std::uint64_t seed = 0;
  std::uint64_t threshold = 0;  // floor(p 2^32): m = 1 where a word is below it; 0 means no noise at all
  std::uint32_t stream = 0;     // 2 * layer + direction
  bool share_mask = false;      // m taken at t = 0
  bool share_uniform = false;   // u taken at t = 0
};

}  // namespace g2lstm
