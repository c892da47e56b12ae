// The kernels of a layer's whole sequence, one cooperative launch each: all their blocks run at the same time.
#include <cuda_pipeline.h>
#include <mma.h>

#include <cuda/atomic>

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
template <class T>
struct DeviceTile {
  static constexpr int kRows = 16, kColumns = 16, kDepth = 16;
  using Number = typename Storage<T>::type;
  template <class Use, class... Layout>
  using Fragment = nvcuda::wmma::fragment<Use, kRows, kColumns, kDepth, Layout...>;

  Fragment<nvcuda::wmma::accumulator, float> sums;

  template <class Block>
  __device__ void clear(const Block&) {
    nvcuda::wmma::fill_fragment(sums, 0.0f);
  }
  template <class Block>
  __device__ void multiply(const Block&, const T* left, int left_stride, const T* right, int right_stride) {
    Fragment<nvcuda::wmma::matrix_a, Number, nvcuda::wmma::row_major> a;
    Fragment<nvcuda::wmma::matrix_b, Number, nvcuda::wmma::col_major> b;
    nvcuda::wmma::load_matrix_sync(a, reinterpret_cast<const Number*>(left), left_stride);
    nvcuda::wmma::load_matrix_sync(b, reinterpret_cast<const Number*>(right), right_stride);
    nvcuda::wmma::mma_sync(sums, a, b, sums);
  }
  template <class Block>
  __device__ void store(const Block&, float* out, int stride) const {
    nvcuda::wmma::store_matrix_sync(out, sums, stride, nvcuda::wmma::mem_row_major);
  }
};

// float32: a lane has 4 rows, 8 apart, of 2 columns, 4 apart, so that a warp's loads of 16 bytes meet in no bank.
template <>
struct DeviceTile<float> {
  static constexpr int kRows = 32, kColumns = 8, kDepth = 4;
  float sums[4][2];

  template <class Block>
  __device__ void clear(const Block&) {
    for (auto& row : sums) row[0] = row[1] = 0;
  }
  template <class Block>
  __device__ void multiply(
      const Block& block, const float* left, int left_stride, const float* right, int right_stride) {
    const int lane = block.thread() % Block::kLanes, row = lane / 4, column = lane % 4;
    float4 a[4], b[2];
    for (int i = 0; i < 4; ++i) a[i] = *reinterpret_cast<const float4*>(left + (row + 8 * i) * left_stride);
    for (int j = 0; j < 2; ++j) b[j] = *reinterpret_cast<const float4*>(right + (column + 4 * j) * right_stride);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 2; ++j) {
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
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 2; ++j) out[(row + 8 * i) * stride + column + 4 * j] = sums[i][j];
    }
  }
};

struct DeviceGrid : DeviceBlock {
  static constexpr int kThreads = kSequenceThreads, kWarps = kThreads / kLanes;
  template <class T>
  using Tile = DeviceTile<T>;
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

template <int kRows, class Run>
__global__ void __launch_bounds__(kSequenceThreads, 1) run_sequence(const Run run) {
  extern __shared__ __align__(128) unsigned char shared[];
#if __CUDA_ARCH__ >= 800
  run_block<kRows>(run, DeviceGrid(), shared);
#endif
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("g2lstm: ") + what + ": " + cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "the device's limits cannot be read");
  return value;
}

DeviceLimits device_limits() {
  int device = 0;
  check(cudaGetDevice(&device), "no current CUDA device");
  if (attribute(cudaDevAttrComputeCapabilityMajor, device) < 8) return {};
  if (attribute(cudaDevAttrCooperativeLaunch, device) == 0) return {};
  return {
      attribute(cudaDevAttrMultiProcessorCount, device), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)};
}

template <class T, class Run>
void launch_sequence(const Run& run, StreamHandle stream, std::int64_t SequencePlan::*bytes) {
  const SequencePlan plan = plan_sequence<T>(device_limits(), run.n_steps, run.cell.n_rows, run.cell.h_size);
  with_rows<T>(plan.n_rows, [&](auto rows) {
    const auto kernel = &run_sequence<decltype(rows)::value, Run>;
    const auto shared = static_cast<std::size_t>(plan.*bytes);
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
        "the sequence kernel does not get its shared memory");
    Run argument = run;
    void* arguments[] = {&argument};
    const dim3 grid(static_cast<unsigned>(plan.blocks_x), static_cast<unsigned>(plan.blocks_y));
    check(
        cudaLaunchCooperativeKernel(
            kernel, grid, dim3(kSequenceThreads), arguments, shared, static_cast<cudaStream_t>(stream)),
        "the sequence kernel did not start");
  });
}

}  // namespace

template <class T>
bool fits_one_launch(std::int64_t n_steps, std::int64_t n_rows, std::int64_t h_size) {
  return plan_sequence<T>(device_limits(), n_steps, n_rows, h_size).n_rows > 0;
}

template <class T>
void launch(const ForwardSequence<T>& sequence, StreamHandle stream) {
  launch_sequence<T>(sequence, stream, &SequencePlan::forward_bytes);
}

template <class T>
void launch(const BackwardSequence<T>& sequence, StreamHandle stream) {
  launch_sequence<T>(sequence, stream, &SequencePlan::backward_bytes);
}

template bool fits_one_launch<float>(std::int64_t, std::int64_t, std::int64_t);
template bool fits_one_launch<Half>(std::int64_t, std::int64_t, std::int64_t);
template bool fits_one_launch<BFloat16>(std::int64_t, std::int64_t, std::int64_t);
template void launch(const ForwardSequence<float>&, StreamHandle);
template void launch(const ForwardSequence<Half>&, StreamHandle);
template void launch(const ForwardSequence<BFloat16>&, StreamHandle);
template void launch(const BackwardSequence<float>&, StreamHandle);
template void launch(const BackwardSequence<Half>&, StreamHandle);
template void launch(const BackwardSequence<BFloat16>&, StreamHandle);

}  // namespace g2lstm::cuda
