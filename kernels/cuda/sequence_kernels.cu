// The kernels of a layer's whole sequence, launched cooperatively: all blocks of a launch run at the same time.
#include <cuda_pipeline.h>
#include <mma.h>

#include <cstdio>
#include <cuda/atomic>
#include <map>
#include <mutex>
#include <type_traits>

#include "device.cuh"
#include "sequence.h"

namespace g2lstm::cuda {
namespace {

constexpr int kSequenceThreads = 256;

template <class T>
struct Storage;  // the type that CUDA's own headers have for it
template <>
struct Storage<Half> {
  using type = __half;
};
template <>
struct Storage<BFloat16> {
  using type = __nv_bfloat16;
};

// Half types, on tensor cores.
template <class T, int kDown, int kAcross>
struct DeviceTile {
  static constexpr int kSide = 16;
  static constexpr int kRows = kSide * kDown, kColumns = kSide * kAcross, kDepth = kSide;
  using Number = typename Storage<T>::type;
  template <class Use, class... Layout>
  using Fragment = nvcuda::wmma::fragment<Use, kSide, kSide, kSide, Layout...>;

  Fragment<nvcuda::wmma::accumulator, float> sums[kDown][kAcross];

  template <class Block>
  __device__ void clear(const Block&) {
    for (auto& row : sums) {
      for (auto& sum : row) nvcuda::wmma::fill_fragment(sum, 0.0f);
    }
  }
  template <class Block>
  __device__ void multiply(const Block&, const T* left, int left_stride, const T* right, int right_stride) {
    Fragment<nvcuda::wmma::matrix_a, Number, nvcuda::wmma::row_major> a[kDown];
    Fragment<nvcuda::wmma::matrix_b, Number, nvcuda::wmma::col_major> b[kAcross];
    for (int i = 0; i < kDown; ++i) load(a[i], left + i * kSide * left_stride, left_stride);
    for (int j = 0; j < kAcross; ++j) load(b[j], right + j * kSide * right_stride, right_stride);
    for (int i = 0; i < kDown; ++i) {
      for (int j = 0; j < kAcross; ++j) nvcuda::wmma::mma_sync(sums[i][j], a[i], b[j], sums[i][j]);
    }
  }
  template <class Block>
  __device__ void store(const Block&, float* out, int stride) const {
    for (int i = 0; i < kDown; ++i) {
      for (int j = 0; j < kAcross; ++j) {
        float* const to = out + i * kSide * stride + j * kSide;
        nvcuda::wmma::store_matrix_sync(to, sums[i][j], stride, nvcuda::wmma::mem_row_major);
      }
    }
  }

 private:
  // From shared memory.
  template <class Use, class Layout>
  __device__ static void load(Fragment<Use, Number, Layout>& part, const T* from, int stride) {
    if constexpr (std::is_same_v<T, BFloat16>) {
      // For these the compiler would not find out which memory it is, and load number by number.
      static_assert(sizeof(part.x) == 4 * sizeof(unsigned), "four registers");
      auto* const to = reinterpret_cast<unsigned*>(part.x);
      const auto address = static_cast<unsigned>(__cvta_generic_to_shared(from));
      if constexpr (std::is_same_v<Use, nvcuda::wmma::matrix_a>) {
        asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address), "r"(stride)
                     : "memory");
      } else {
        asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address), "r"(stride)
                     : "memory");
      }
    } else {
      nvcuda::wmma::load_matrix_sync(part, reinterpret_cast<const Number*>(from), stride);
    }
  }
};

// float32: a lane has rows that lie 8 apart and columns that lie 4 apart, so that a warp's loads of 16 bytes meet in no
// bank.
template <int kDown, int kAcross>
struct DeviceTile<float, kDown, kAcross> {
  static constexpr int kRowsOfLane = 4 * kDown, kColumnsOfLane = 2 * kAcross;
  static constexpr int kRows = 8 * kRowsOfLane, kColumns = 4 * kColumnsOfLane, kDepth = 4;
  float sums[kRowsOfLane][kColumnsOfLane];

  template <class Block>
  __device__ void clear(const Block&) {
    for (auto& row : sums) {
      for (float& sum : row) sum = 0;
    }
  }
  template <class Block>
  __device__ void multiply(
      const Block& block, const float* left, int left_stride, const float* right, int right_stride) {
    const int lane = block.thread() % Block::kLanes, row = lane / 4, column = lane % 4;
    float4 a[kRowsOfLane], b[kColumnsOfLane];
    for (int i = 0; i < kRowsOfLane; ++i) a[i] = load(left + (row + 8 * i) * left_stride);
    for (int j = 0; j < kColumnsOfLane; ++j) b[j] = load(right + (column + 4 * j) * right_stride);
    for (int i = 0; i < kRowsOfLane; ++i) {
      for (int j = 0; j < kColumnsOfLane; ++j) {
        sums[i][j] = fmaf(a[i].x, b[j].x, sums[i][j]);
        sums[i][j] = fmaf(a[i].y, b[j].y, sums[i][j]);
        sums[i][j] = fmaf(a[i].z, b[j].z, sums[i][j]);
        sums[i][j] = fmaf(a[i].w, b[j].w, sums[i][j]);
      }
    }
  }
  template <class Block>
  __device__ void store(const Block& block, float* out, int stride) const {
    const int lane = block.thread() % Block::kLanes, row = lane / 4, column = lane % 4;
    for (int i = 0; i < kRowsOfLane; ++i) {
      for (int j = 0; j < kColumnsOfLane; ++j) out[(row + 8 * i) * stride + column + 4 * j] = sums[i][j];
    }
  }

 private:
  __device__ static float4 load(const float* from) { return *reinterpret_cast<const float4*>(from); }
};

struct DeviceGrid : DeviceBlock {
  static constexpr int kThreads = kSequenceThreads, kWarps = kThreads / kLanes;
  template <class T, int kDown, int kAcross>
  using Tile = DeviceTile<T, kDown, kAcross>;
  using Counter = ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device>;

  __device__ std::int64_t place_x() const { return blockIdx.x; }
  __device__ std::int64_t place_y() const { return blockIdx.y; }
  __device__ std::int64_t blocks_x() const { return gridDim.x; }
  // 16 bytes at a time pass by the first-level cache, which other multiprocessors' writes do not reach.
  template <class T>
  __device__ void copy(T* to, const T* from) const {
    __pipeline_memcpy_async(to, from, 16);
  }
  __device__ void commit() const { __pipeline_commit(); }
  template <int kPending>
  __device__ void wait_copies() const {
    __pipeline_wait_prior(kPending);
  }
  __device__ void arrive(unsigned* counter) const {
    __syncthreads();
    if (threadIdx.x == 0) Counter(*counter).fetch_add(1, ::cuda::memory_order_release);
  }
  __device__ void wait(unsigned* counter, unsigned arrivals) const {
    if (threadIdx.x == 0) {
      while (Counter(*counter).load(::cuda::memory_order_acquire) < arrivals) {
      }
    }
    __syncthreads();
  }
};

constexpr int kOldest = 80;  // the compute capability whose copies and half types these kernels need

template <int kRows, class Direction>
__global__ void __launch_bounds__(kSequenceThreads, 1) run_sequence(const Direction sequence) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) unsigned char shared[];
  run_block<kRows>(sequence, DeviceGrid(), shared);
#else
  __trap();  // device_limits() keeps it from being launched
#endif
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "the device's limits cannot be read");
  return value;
}

// None where the device, or the code that the build holds for it, is too old.
DeviceLimits limits_of(int device) {
  if (10 * attribute(cudaDevAttrComputeCapabilityMajor, device) < kOldest) return {};
  if (attribute(cudaDevAttrCooperativeLaunch, device) == 0) return {};
  cudaFuncAttributes built;
  check(
      cudaFuncGetAttributes(&built, run_sequence<kMostRows, ForwardSequence<float>>),
      "the sequence kernel cannot be asked what it was built for");
  if (built.ptxVersion < kOldest) return {};
  return {
      attribute(cudaDevAttrMultiProcessorCount, device), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)};
}

// Limits of the current device, which is asked once. None where `refused`, from then on.
DeviceLimits device_limits(bool refused = false) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  int device = 0;
  check(cudaGetDevice(&device), "no current CUDA device");
  const std::lock_guard<std::mutex> lock(mutex);
  if (refused) return known[device] = {};
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, limits_of(device)).first->second;
}

template <class T, class Direction>
bool launch_sequence(const Direction& sequence, StreamHandle stream, std::int64_t SequencePlan::*bytes) {
  const DeviceLimits device = device_limits();
  const SequencePlan plan =
      plan_sequence<T>(device, sequence.n_steps, sequence.cell.n_rows, sequence.cell.h_size);
  if (plan.n_rows == 0) throw std::runtime_error("g2lstm: the device has no persistent kernel for this sequence");
  bool fits = true;
  with_rows<T>(plan.n_rows, [&](auto rows) {
    const auto kernel = &run_sequence<decltype(rows)::value, Direction>;
    // The most there is, whatever this launch needs: other threads may be about to launch the kernel with more.
    check(
        cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(device.shared_bytes)),
        "the sequence kernel does not get its shared memory");
    for_launches(plan, sequence, [&](Direction& part, std::int64_t blocks_y) {
      if (!fits) return;
      void* arguments[] = {&part};
      const dim3 grid(static_cast<unsigned>(plan.blocks_x), static_cast<unsigned>(blocks_y));
      const cudaError_t error = cudaLaunchCooperativeKernel(
          kernel, grid, dim3(kSequenceThreads), arguments, static_cast<std::size_t>(plan.*bytes),
          static_cast<cudaStream_t>(stream));
      if (error == cudaErrorCooperativeLaunchTooLarge && part.first_row == 0) {  // later ones are not larger
        cudaGetLastError();
        device_limits(/*refused=*/true);  // the process may use less of it than there is
        std::fprintf(
            stderr, "g2lstm: the device refuses a layer's whole sequence in one launch; from now on its steps "
            "are launched one by one\n");
        fits = false;
        return;
      }
      check(error, "the sequence kernel did not start");
    });
  });
  return fits;
}

}  // namespace

template <class T>
bool fits_persistent(std::int64_t n_steps, std::int64_t n_rows, std::int64_t h_size) {
  return plan_sequence<T>(device_limits(), n_steps, n_rows, h_size).n_rows > 0;
}

template <class T>
bool launch(const ForwardSequence<T>& sequence, StreamHandle stream) {
  return launch_sequence<T>(sequence, stream, &SequencePlan::forward_bytes);
}

template <class T>
bool launch(const BackwardSequence<T>& sequence, StreamHandle stream) {
  return launch_sequence<T>(sequence, stream, &SequencePlan::backward_bytes);
}

template bool fits_persistent<float>(std::int64_t, std::int64_t, std::int64_t);
template bool fits_persistent<Half>(std::int64_t, std::int64_t, std::int64_t);
template bool fits_persistent<BFloat16>(std::int64_t, std::int64_t, std::int64_t);
template bool launch(const ForwardSequence<float>&, StreamHandle);
template bool launch(const ForwardSequence<Half>&, StreamHandle);
template bool launch(const ForwardSequence<BFloat16>&, StreamHandle);
template bool launch(const BackwardSequence<float>&, StreamHandle);
template bool launch(const BackwardSequence<Half>&, StreamHandle);
template bool launch(const BackwardSequence<BFloat16>&, StreamHandle);

}  // namespace g2lstm::cuda
