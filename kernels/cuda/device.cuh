// What the kernels need of CUDA itself: half types, blocks of threads, and how they are launched.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "attention.h"

namespace g2lstm::cuda {

G2LSTM_DEVICE float read(const Half* from) {
  __half_raw raw;
  raw.x = from->bits;
  return __half2float(__half(raw));
}
G2LSTM_DEVICE float read(const BFloat16* from) {
  __nv_bfloat16_raw raw;
  raw.x = from->bits;
  return __bfloat162float(__nv_bfloat16(raw));
}
G2LSTM_DEVICE void write(Half* to, float value) { to->bits = static_cast<__half_raw>(__float2half_rn(value)).x; }
G2LSTM_DEVICE void write(BFloat16* to, float value) {
  to->bits = static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(value)).x;
}

struct DeviceBlock {
  static constexpr int kLanes = 32;
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }
  template <class S>
  __device__ S sum_lanes(S value) const {
    for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
  }
  template <class S>
  __device__ S max_lanes(S value) const {
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      const S other = __shfl_xor_sync(0xffffffffu, value, distance);
      value = value < other ? other : value;
    }
    return value;
  }
};

__device__ inline Place place_of_thread() {
  return {
      static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x,
      static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y,
      static_cast<std::int64_t>(gridDim.x) * blockDim.x, static_cast<std::int64_t>(gridDim.y) * blockDim.y};
}

template <class Step>
__global__ void __launch_bounds__(kUnitThreads) run_units(const Step step) {
  run(step, place_of_thread());
}

template <class T, class Step>
__global__ void __launch_bounds__(kAttentionThreads) run_rows(const Step step) {
  __shared__ State<T> scratch[kAttentionThreads / DeviceBlock::kLanes];
  for (std::int64_t row = blockIdx.x; row < step.n_rows; row += gridDim.x) run_row(step, row, DeviceBlock(), scratch);
}

inline dim3 blocks(const Grid& grid) {
  return {static_cast<unsigned>(grid.blocks_x), static_cast<unsigned>(grid.blocks_y)};
}
inline dim3 threads(const Grid& grid) {
  return {static_cast<unsigned>(grid.block_x), static_cast<unsigned>(grid.block_y)};
}

inline void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it is told here, and is not the next launch's
  throw std::runtime_error("g2lstm: " + what + ": " + cudaGetErrorString(error));
}

inline void check_launch(const char* kernel) {
  check(cudaGetLastError(), std::string("the ") + kernel + " kernel did not start");
}

}  // namespace g2lstm::cuda
