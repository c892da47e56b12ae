// The kernels of the decoder's attention: one block for each batch row.
#include "device.cuh"

namespace g2lstm::cuda {

template <class T>
void launch(const AttentionForward<T>& step, StreamHandle stream) {
  const Grid grid = row_grid(step.n_rows);
  run_rows<T><<<blocks(grid), threads(grid), 0, static_cast<cudaStream_t>(stream)>>>(step);
  check_launch("attention");
}

template <class T>
void launch(const AttentionBackward<T>& step, StreamHandle stream) {
  const Grid grid = row_grid(step.n_rows);
  run_rows<T><<<blocks(grid), threads(grid), 0, static_cast<cudaStream_t>(stream)>>>(step);
  check_launch("attention's gradient");
}

template void launch(const AttentionForward<float>&, StreamHandle);
template void launch(const AttentionForward<double>&, StreamHandle);
template void launch(const AttentionForward<Half>&, StreamHandle);
template void launch(const AttentionForward<BFloat16>&, StreamHandle);
template void launch(const AttentionBackward<float>&, StreamHandle);
template void launch(const AttentionBackward<double>&, StreamHandle);
template void launch(const AttentionBackward<Half>&, StreamHandle);
template void launch(const AttentionBackward<BFloat16>&, StreamHandle);

}  // namespace g2lstm::cuda
