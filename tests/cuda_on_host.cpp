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

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "../kernels/binding/schema.cpp"
#include "../kernels/cuda/attention.h"
#include "../kernels/cuda/decoder.cpp"
#include "../kernels/cuda/decoder_step.cpp"
#include "../kernels/cuda/layer.cpp"
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

// Threads of one block, as fibers of this thread.
class Fibers {
 public:
  static constexpr int kThreads = 8, kLanes = 4;
  double values[kThreads];
  Barrier all{kThreads}, warps[kThreads / kLanes];

  void run(const std::function<void(int)>& function) {
    for (Barrier& warp : warps) warp = {kLanes};
    body_ = &function;
    running_ = kThreads;
    for (int i = 0; i < kThreads; ++i) {
      Fiber& fiber = fibers_[i];
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
      if (turns > kMostIdleTurns) {
        std::fputs("a barrier that not all threads reach\n", stderr);
        std::abort();
      }
      current_ = static_cast<int>(random_() % kThreads);
      if (!fibers_[current_].done) swapcontext(&scheduler_, &fibers_[current_].context);
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
    while (barrier.generation == generation) swapcontext(&fibers_[current_].context, &scheduler_);
  }

 private:
  static constexpr std::size_t kStackBytes = 1 << 17;
  static constexpr int kMostIdleTurns = 10000;  // all eight have had theirs by then
  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStackBytes]};
    bool done = true;
  };

  static void start(unsigned high, unsigned low, int thread) {
    auto* const self = reinterpret_cast<Fibers*>((static_cast<std::uintptr_t>(high) << 32) | low);
    (*self->body_)(thread);
    self->fibers_[thread].done = true;
    self->progress_ = true;
    --self->running_;
  }

  Fiber fibers_[kThreads];
  ucontext_t scheduler_;
  const std::function<void(int)>* body_ = nullptr;
  std::minstd_rand random_;
  int running_ = 0, current_ = 0;
  bool progress_ = false;
};

struct HostBlock {
  static constexpr int kLanes = Fibers::kLanes;
  Fibers& fibers;
  int place;

  int thread() const { return place; }
  int threads() const { return Fibers::kThreads; }
  void sync() const { fibers.arrive(fibers.all); }
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
    fibers.values[place] = value;
    fibers.arrive(fibers.warps[warp]);
    S result = static_cast<S>(fibers.values[warp * kLanes]);
    for (int lane = 1; lane < kLanes; ++lane) {
      result = function(result, static_cast<S>(fibers.values[warp * kLanes + lane]));
    }
    fibers.arrive(fibers.warps[warp]);
    return result;
  }
};

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
  static Fibers fibers;
  State<T> scratch[Fibers::kThreads / Fibers::kLanes];
  fibers.run([&](int thread) {
    for (std::int64_t row = 0; row < step.n_rows; ++row) run_row(step, row, HostBlock{fibers, thread}, scratch);
  });
}

}  // namespace

StreamHandle current_stream(const at::Device&) { return nullptr; }

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

}  // namespace g2lstm::cuda

TORCH_LIBRARY_IMPL(g2lstm, CPU, m) {
  g2lstm::cuda::implement_step(m);
  g2lstm::cuda::implement_layer(m);
  g2lstm::cuda::implement_decoder(m);
  g2lstm::cuda::implement_decoder_step(m);
}
