// The CUDA operators on the CPU: the same operators and the same code of every thread, with fibers for threads.
//
// Builds as a stand-in for fairseq_g2lstm._kernels in which the CUDA operators have the CPU's key. What is left out is
// what only a device has: its arithmetic functions, its shuffles, its launches and streams, and true concurrency. A
// block's fibers take turns at random wherever they meet a barrier, so that a missing one shows.
#include <ATen/ATen.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "../kernels/binding/autograd.cpp"
#include "../kernels/binding/schema.cpp"
#include "../kernels/cuda/attention.h"
#include "../kernels/cuda/decoder.cpp"
#include "../kernels/cuda/decoder_step.cpp"
#include "../kernels/cuda/layer.cpp"
#include "../kernels/cuda/sequence.h"
#include "../kernels/cuda/step.cpp"

namespace g2lstm::cuda {

float read(const Half* from) { return c10::Half(from->bits, c10::Half::from_bits()); }
float read(const BFloat16* from) { return c10::BFloat16(from->bits, c10::BFloat16::from_bits()); }
void write(Half* to, float value) { to->bits = c10::Half(value).x; }
void write(BFloat16* to, float value) { to->bits = c10::BFloat16(value).x; }

namespace {

struct Barrier {
  int size, arrived = 0, generation = 0;
};

constexpr int kThreads = 8, kLanes = 4;  // of a block, of a warp

// What the threads of a block share.
struct HostShared {
  double values[kThreads];
  Barrier all{kThreads};
  std::vector<Barrier> warps = std::vector<Barrier>(kThreads / kLanes, Barrier{kLanes});
  alignas(128) unsigned char memory[1 << 19];
};

// The threads of some blocks, as fibers of this thread.
class Fibers {
 public:
  // Calls function(i) for i from 0 to n_threads - 1, at the same time.
  void run(int n_threads, const std::function<void(int)>& function) {
    while (static_cast<int>(fibers_.size()) < n_threads) fibers_.push_back(std::make_unique<Fiber>());
    body_ = &function;
    running_ = n_threads;
    for (int i = 0; i < n_threads; ++i) {
      Fiber& fiber = *fibers_[i];
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = &scheduler_;
      const auto address = reinterpret_cast<std::uintptr_t>(this);
      makecontext(
          &fiber.context, reinterpret_cast<void (*)()>(&Fibers::start), 3, static_cast<unsigned>(address >> 32),
          static_cast<unsigned>(address), i);
    }
    for (int turns = 0; running_ > 0; ++turns) {
      if (progress_) turns = 0;
      progress_ = false;
      if (turns > kMostIdleTurns * n_threads) {
        std::fputs("a barrier that not all threads reach\n", stderr);
        std::abort();
      }
      current_ = static_cast<int>(random_() % n_threads);
      if (!fibers_[current_]->done) swapcontext(&scheduler_, &fibers_[current_]->context);
    }
  }

  void arrive(Barrier& barrier) {
    const int generation = barrier.generation;
    progress_ = true;
    if (++barrier.arrived == barrier.size) {
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    wait([&] { return barrier.generation != generation; });
  }

  void add(unsigned& counter) {
    progress_ = true;
    ++counter;
  }

  // Lets others run until the condition holds.
  template <class Condition>
  void wait(const Condition& condition) {
    while (!condition()) swapcontext(&fibers_[current_]->context, &scheduler_);
  }

 private:
  static constexpr std::size_t kStackBytes = 1 << 18;
  static constexpr int kMostIdleTurns = 1000;  // of each thread: all have had theirs by then
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    bool done = true;
  };

  static void start(unsigned high, unsigned low, int thread) {
    auto* const self = reinterpret_cast<Fibers*>((static_cast<std::uintptr_t>(high) << 32) | low);
    (*self->body_)(thread);
    self->fibers_[thread]->done = true;
    self->progress_ = true;
    --self->running_;
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  ucontext_t scheduler_;
  const std::function<void(int)>* body_ = nullptr;
  std::minstd_rand random_;
  int running_ = 0, current_ = 0;
  bool progress_ = false;
};

Fibers fibers;

struct HostBlock {
  static constexpr int kLanes = cuda::kLanes;
  HostShared& shared;
  int place;

  int thread() const { return place; }
  int threads() const { return kThreads; }
  void sync() const { fibers.arrive(shared.all); }
  template <class S>
  S sum_lanes(S value) const {
    return reduce(value, [](S x, S y) { return x + y; });
  }
  template <class S>
  S max_lanes(S value) const {
    return reduce(value, [](S x, S y) { return x < y ? y : x; });
  }

 private:
  template <class S, class Function>
  S reduce(S value, const Function& function) const {
    const int warp = place / kLanes;
    shared.values[place] = value;
    fibers.arrive(shared.warps[warp]);
    S result = static_cast<S>(shared.values[warp * kLanes]);
    for (int lane = 1; lane < kLanes; ++lane) {
      result = function(result, static_cast<S>(shared.values[warp * kLanes + lane]));
    }
    fibers.arrive(shared.warps[warp]);
    return result;
  }
};

// A tile, each lane's part of it in `sums` and the others' not touched.
template <class T, int kDown, int kAcross>
struct HostTile {
  static constexpr bool kHalf = sizeof(T) == 2;
  static constexpr int kRows = (kHalf ? 16 : 32) * kDown, kColumns = (kHalf ? 16 : 8) * kAcross;
  static constexpr int kDepth = kHalf ? 16 : 4;
  float sums[kRows * kColumns];

  void clear(const HostBlock&) { std::fill(std::begin(sums), std::end(sums), 0.0f); }
  void multiply(const HostBlock& block, const T* left, int left_stride, const T* right, int right_stride) {
    each(block, [&](int row, int column) {
      for (int k = 0; k < kDepth; ++k) {
        sums[row * kColumns + column] += read(left + row * left_stride + k) * read(right + column * right_stride + k);
      }
    });
  }
  void store(const HostBlock& block, float* out, int stride) const {
    each(block, [&](int row, int column) { out[row * stride + column] = sums[row * kColumns + column]; });
  }

 private:
  template <class Function>
  static void each(const HostBlock& block, const Function& function) {
    for (int i = block.thread() % kLanes; i < kRows * kColumns; i += kLanes) function(i / kColumns, i % kColumns);
  }
};

// One block of a grid whose blocks all run at the same time. A copy is done at once, or only when it is waited for.
struct HostGrid : HostBlock {
  static constexpr int kThreads = cuda::kThreads, kWarps = kThreads / kLanes;
  template <class T, int kDown, int kAcross>
  using Tile = HostTile<T, kDown, kAcross>;
  struct Copy {
    void* to;
    const void* from;
  };

  std::int64_t x, y, n_x;
  mutable std::deque<std::vector<Copy>> copies = std::deque<std::vector<Copy>>(1);
  mutable std::minstd_rand random{static_cast<unsigned>(1 + thread() + 8 * (x + n_x * y))};

  std::int64_t place_x() const { return x; }
  std::int64_t place_y() const { return y; }
  std::int64_t blocks_x() const { return n_x; }
  template <class T>
  void copy(T* to, const T* from) const {
    TORCH_INTERNAL_ASSERT(reinterpret_cast<std::uintptr_t>(to) % 16 == 0);
    TORCH_INTERNAL_ASSERT(reinterpret_cast<std::uintptr_t>(from) % 16 == 0);
    if (random() % 2 == 0) {
      std::memcpy(to, from, 16);
    } else {
      copies.back().push_back({to, from});
    }
  }
  void commit() const { copies.emplace_back(); }
  template <int kPending>
  void wait_copies() const {
    while (copies.size() > kPending + 1) {  // the last is still open
      for (const Copy& one : copies.front()) std::memcpy(one.to, one.from, 16);
      copies.pop_front();
    }
  }
  void arrive(unsigned* counter) const {
    sync();
    if (thread() == 0) fibers.add(*counter);
  }
  void wait(const unsigned* counter, unsigned arrivals) const {
    if (thread() == 0) fibers.wait([&] { return *counter >= arrivals; });
    sync();
  }
};

// Few blocks, so that there are sizes that do not fit, or not at once.
constexpr DeviceLimits kLimits{12, sizeof(HostShared::memory)};

template <class T, class Run>
void launch_part(const SequencePlan& plan, const Run& run, std::int64_t blocks_y, std::int64_t SequencePlan::*bytes) {
  const auto n_blocks = static_cast<int>(plan.blocks_x * blocks_y);
  TORCH_INTERNAL_ASSERT(n_blocks <= kLimits.blocks);
  std::vector<std::unique_ptr<HostShared>> shared;
  for (int i = 0; i < n_blocks; ++i) {
    shared.push_back(std::make_unique<HostShared>());
    // NaN, in every type: what is read before it is written shows
    std::memset(shared[i]->memory, 0xff, sizeof(HostShared::memory));
  }
  with_rows<T>(plan.n_rows, [&](auto rows) {
    fibers.run(n_blocks * kThreads, [&](int i) {
      const int block = i / kThreads;
      const HostGrid grid{
          {*shared[block], i % kThreads}, block % plan.blocks_x, block / plan.blocks_x, plan.blocks_x};
      run_block<decltype(rows)::value>(run, grid, shared[block]->memory);
    });
  });
  for (const auto& block : shared) {
    for (auto at = plan.*bytes; at < static_cast<std::int64_t>(sizeof(HostShared::memory)); ++at) {
      TORCH_INTERNAL_ASSERT(block->memory[at] == 0xff, "shared memory that the block does not have");
    }
  }
}

template <class T, class Run>
bool launch_sequence(const Run& run, std::int64_t SequencePlan::*bytes) {
  if (std::getenv("G2LSTM_HOST_REFUSES") != nullptr) return false;
  const SequencePlan plan = plan_sequence<T>(kLimits, run.n_steps, run.cell.n_rows, run.cell.h_size);
  for_launches(plan, run, [&](const Run& part, std::int64_t blocks_y) { launch_part<T>(plan, part, blocks_y, bytes); });
  return true;
}

// A grid smaller than the work, as where it reaches the device's limits.
template <class Step>
void launch_units(const Step& step) {
  constexpr std::int64_t kExtentX = 5, kExtentY = 3;
  for (std::int64_t y = 0; y < kExtentY; ++y) {
    for (std::int64_t x = 0; x < kExtentX; ++x) run(step, Place{x, y, kExtentX, kExtentY});
  }
}

template <class T, class Step>
void launch_rows(const Step& step) {
  static HostShared shared;
  State<T> scratch[kThreads / kLanes];
  fibers.run(kThreads, [&](int thread) {
    for (std::int64_t row = 0; row < step.n_rows; ++row) run_row(step, row, HostBlock{shared, thread}, scratch);
  });
}

}  // namespace

StreamHandle current_stream(const at::Device&) { return nullptr; }
bool is_captured(StreamHandle) { return std::getenv("G2LSTM_HOST_CAPTURES") != nullptr; }

template <class T>
void launch(const ForwardStep<T>& step, StreamHandle) {
  launch_units(step);
}
template <class T>
void launch(const BackwardStep<T>& step, StreamHandle) {
  launch_units(step);
}
template <class T>
void launch(const AttentionForward<T>& step, StreamHandle) {
  launch_rows<T>(step);
}
template <class T>
void launch(const AttentionBackward<T>& step, StreamHandle) {
  launch_rows<T>(step);
}
void launch(const RandomWords& words, StreamHandle) { launch_units(words); }

template <class T>
bool fits_persistent(std::int64_t n_steps, std::int64_t n_rows, std::int64_t h_size) {
  return plan_sequence<T>(kLimits, n_steps, n_rows, h_size).n_rows > 0;
}
template <class T>
bool launch(const ForwardSequence<T>& sequence, StreamHandle) {
  return launch_sequence<T>(sequence, &SequencePlan::forward_bytes);
}
template <class T>
bool launch(const BackwardSequence<T>& sequence, StreamHandle) {
  return launch_sequence<T>(sequence, &SequencePlan::backward_bytes);
}

}  // namespace g2lstm::cuda

TORCH_LIBRARY_FRAGMENT(g2lstm, m) { g2lstm::cuda::define_layer(m); }

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) {
  g2lstm::cuda::implement_step(m);
  g2lstm::cuda::implement_layer(m);
  g2lstm::cuda::implement_decoder(m);
  g2lstm::cuda::implement_decoder_step(m);
}
