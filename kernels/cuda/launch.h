// The CUDA kernels as host code sees them: what each takes and how it is launched. Needs neither CUDA's nor torch's
// headers.
//
// Symbols: T time steps, B rows of the batch, H units, S source positions. Matrices are row-major; pointers are to the
// device's memory. T as a template argument is the type in memory: float, double, Half or BFloat16; arithmetic and cell
// states are in State<T>. A launch returns before the kernel has run; it throws std::runtime_error if it cannot start.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/cell.h"

namespace g2lstm::cuda {

struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

template <class T>
using State = std::conditional_t<std::is_same_v<T, double>, double, float>;

using StreamHandle = void*;  // a cudaStream_t

// Whether what is launched goes into a CUDA graph.
bool is_captured(StreamHandle stream);

// A matrix whose rows lie `stride` elements apart.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0;
};

// What a step reads in both directions.
template <class T>
struct CellStep {
  const T* a = nullptr;         // (B, 4H) pre-activations without noise
  const State<T>* c = nullptr;  // (B, H)
  std::int64_t n_rows = 0;
  std::int64_t h_size = 0;
  std::int64_t t = 0;
  GateSpec<State<T>> gates;
  NoiseSpec noise;
  const std::int64_t* rows = nullptr;     // (B,) numbers of the batch rows for the noise; null for 0 to B - 1
  const std::int64_t* lengths = nullptr;  // (B,) rows with t >= length are not active; null where all are
};

template <class T>
struct ForwardStep : CellStep<T> {
  State<T>* c_next = nullptr;  // (B, H), c in rows that are not active
  T* h_next = nullptr;         // (B, H), 0 in rows that are not active
  Rows<T> h_state;             // (B, H) or null: h', left as it is in rows that are not active
  const T* dropout = nullptr;  // (B, H) factors, or null for 1
  Rows<T> above;               // (B, H) or null: h_next times dropout
  State<T>* z = nullptr;       // (B, 2H) or null: noise-free arguments of the sigmoids of i and f
};

template <class T>
struct BackwardStep : CellStep<T> {
  const State<T>* c_next = nullptr;  // (B, H)
  Rows<T> grad_h;                    // (B, H) or null: of h'; where there are lengths, set to 0 in active rows
  Rows<const T> grad_above;          // (B, H) or null: of h' times dropout, to be added
  const T* dropout = nullptr;        // (B, H) factors, or null for 1
  State<T>* grad_c = nullptr;        // (B, H) of c' on entry, of c on return
  T* grad_a = nullptr;               // (B, 4H), 0 in rows that are not active
};

// A layer's whole sequence, computed from its first step to its last or, where `reverse`, the other way.
// A step's pointers in `cell` are those of time 0, its `c` is c_0 and its `t` not read.
template <class T>
struct Sequence {
  CellStep<T> cell;
  const T* w_hh = nullptr;  // (4H, H)
  std::int64_t n_steps = 0;
  bool reverse = false;
  unsigned* arrived = nullptr;  // (counter_numbers(B),) zeros, a counter for each group of rows (sequence_plan.h)
  std::int64_t first_row = 0;   // of those that a launch computes
};

template <class T>
struct ForwardSequence : Sequence<T> {
  const T* h_0 = nullptr;     // (B, H)
  T* a = nullptr;             // cell.a, (T, B, 4H): the inputs' part on entry, all of it on return
  T* outputs = nullptr;       // (T, B, H)
  State<T>* cells = nullptr;  // (T, B, H)
  State<T>* z = nullptr;      // (T, B, 2H) or null
};

template <class T>
struct BackwardSequence : Sequence<T> {
  const State<T>* cells = nullptr;  // (T, B, H)
  const T* grad_outputs = nullptr;  // (T, B, H) or null
  T* grad_h = nullptr;              // (B, H) of h_n on entry, of h_0 on return
  State<T>* grad_c = nullptr;       // (B, H) of c_n on entry, of c_0 on return
  T* grad_a = nullptr;              // (T, B, 4H)
};

// Attention of h over S keys, and the output tanh(pre + sum over s of weights values), times dropout.
template <class T>
struct AttentionForward {
  const T* h = nullptr;           // (B, H)
  const T* keys = nullptr;        // (B', S, H)
  const T* values = nullptr;      // (B', S, H)
  const bool* padding = nullptr;  // (B', S) true at padding, or null
  const std::int64_t* source_rows = nullptr;  // (B,) rows of the three; null for 0 to B - 1
  std::int64_t n_sources = 0;     // B', read only where source_rows is set
  const T* pre = nullptr;         // (B, H), may be `out` or `undropped`
  State<T>* weights = nullptr;    // (B, S)
  T* undropped = nullptr;         // (B, H) or null: the output before dropout
  const T* dropout = nullptr;     // (B, H) factors, or null for 1
  T* out = nullptr;               // (B, H)
  Rows<T> feed;                   // (B, H) or null: the same once more
  std::int64_t n_rows = 0;
  std::int64_t s_size = 0;
  std::int64_t h_size = 0;
};

template <class T>
struct AttentionBackward {
  const T* grad_out = nullptr;             // (B, H) or null: of out
  Rows<const T> grad_feed;                 // (B, H) or null: of out
  const State<T>* grad_weights = nullptr;  // (B, S) or null: of weights
  const T* keys = nullptr;                 // (B, S, H)
  const T* values = nullptr;               // (B, S, H)
  const State<T>* weights = nullptr;       // (B, S)
  const T* undropped = nullptr;            // (B, H)
  const T* dropout = nullptr;              // (B, H) factors, or null for 1
  T* grad_pre = nullptr;                   // (B, H)
  State<T>* grad_scores = nullptr;         // (B, S)
  T* grad_h = nullptr;                     // (B, H), the part of the scores
  std::int64_t n_rows = 0;
  std::int64_t s_size = 0;
  std::int64_t h_size = 0;
};

// The random words of every gate, as fairseq_g2lstm/philox.py has them.
struct RandomWords {
  NoiseSpec noise;
  const std::int64_t* rows = nullptr;  // (B,) or null
  std::int64_t* out = nullptr;         // (4, T, B, H)
  std::int64_t n_steps = 0;
  std::int64_t n_rows = 0;
  std::int64_t h_size = 0;
};

template <class T>
void launch(const ForwardStep<T>& step, StreamHandle stream);
template <class T>
void launch(const BackwardStep<T>& step, StreamHandle stream);
template <class T>
void launch(const AttentionForward<T>& step, StreamHandle stream);
template <class T>
void launch(const AttentionBackward<T>& step, StreamHandle stream);
void launch(const RandomWords& words, StreamHandle stream);

// All steps of a sequence in one launch, or one for each part of the batch, for T float, Half or BFloat16 and pointers
// at multiples of 16 bytes, where it fits the current device. A launch returns false, and nothing is computed, where the
// process may use less of the device than the device has.
template <class T>
bool fits_persistent(std::int64_t n_steps, std::int64_t n_rows, std::int64_t h_size);
template <class T>
bool launch(const ForwardSequence<T>& sequence, StreamHandle stream);
template <class T>
bool launch(const BackwardSequence<T>& sequence, StreamHandle stream);

}  // namespace g2lstm::cuda
