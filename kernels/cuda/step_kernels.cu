// The kernels of a time step: one thread for each unit of each row.
#include "device.cuh"

namespace g2lstm::cuda {

bool is_captured(StreamHandle stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "no state of the stream");
  return status != cudaStreamCaptureStatusNone;
}

template <class T>
void launch(const ForwardStep<T>& step, StreamHandle stream) {
  const Grid grid = unit_grid(step.n_rows, step.h_size);
  run_units<<<blocks(grid), threads(grid), 0, static_cast<cudaStream_t>(stream)>>>(step);
  check_launch("forward step");
}

template <class T>
void launch(const BackwardStep<T>& step, StreamHandle stream) {
  const Grid grid = unit_grid(step.n_rows, step.h_size);
  run_units<<<blocks(grid), threads(grid), 0, static_cast<cudaStream_t>(stream)>>>(step);
  check_launch("backward step");
}

void launch(const RandomWords& words, StreamHandle stream) {
  const Grid grid = unit_grid(words.n_steps * words.n_rows, words.h_size);
  run_units<<<blocks(grid), threads(grid), 0, static_cast<cudaStream_t>(stream)>>>(words);
  check_launch("random words");
}

template void launch(const ForwardStep<float>&, StreamHandle);
template void launch(const ForwardStep<double>&, StreamHandle);
template void launch(const ForwardStep<Half>&, StreamHandle);
template void launch(const ForwardStep<BFloat16>&, StreamHandle);
template void launch(const BackwardStep<float>&, StreamHandle);
template void launch(const BackwardStep<double>&, StreamHandle);
template void launch(const BackwardStep<Half>&, StreamHandle);
template void launch(const BackwardStep<BFloat16>&, StreamHandle);

}  // namespace g2lstm::cuda
