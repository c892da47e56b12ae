// The operators under the CUDA key. Compiled only where torch is built for CUDA, but needs none of its CUDA headers.
#include "operators.h"

// torch's C interface, which keeps its binary form from version to version; declared there only for builds that have
// CUDA's headers. Returns 0 where it succeeds.
extern "C" std::int32_t aoti_torch_get_current_cuda_stream(std::int32_t device_index, void** stream);

namespace g2lstm::cuda {

StreamHandle current_stream(const at::Device& device) {
  void* stream = nullptr;
  TORCH_CHECK(
      aoti_torch_get_current_cuda_stream(device.index(), &stream) == 0, "g2lstm: no current stream of ", device);
  return stream;
}

}  // namespace g2lstm::cuda

TORCH_LIBRARY_FRAGMENT(g2lstm, m) { g2lstm::cuda::define_layer(m); }

TORCH_LIBRARY_IMPL(g2lstm, CUDA, m) {
  g2lstm::cuda::implement_step(m);
  g2lstm::cuda::implement_layer(m);
  g2lstm::cuda::implement_decoder(m);
  g2lstm::cuda::implement_decoder_step(m);
}
