// The operators' signatures, torch.ops.g2lstm; fairseq_g2lstm/operators.py documents them and adds what Python adds.
#include <Python.h>
#include <torch/library.h>
#include <torch/version.h>

// Common to all that compute gates: seed, a 0-dim int64 CPU tensor (needed where noise_prob > 0); rows, (B,) int64 CPU
// numbers of the batch rows for the noise; stream, 2 * layer + direction.
#define G2LSTM_GATES \
  "float temperature, float noise_prob, str noise_sharing, bool hard"

TORCH_LIBRARY(g2lstm, m) {
  m.def(
      "noise_words(Tensor seed, int n_steps, int n_rows, int hidden_size, int stream, Tensor? rows=None, "
      "ScalarType dtype=float) -> Tensor");
  m.def(
      "step(Tensor a, Tensor c, Tensor? seed, Tensor? rows, SymInt t, int stream, " G2LSTM_GATES
      ") -> (Tensor h, Tensor c_next, Tensor gates)");
  m.def(
      "step_backward(Tensor grad_h, Tensor grad_c, Tensor gates, Tensor c, Tensor c_next, Tensor? seed, Tensor? rows, "
      "SymInt t, int stream, " G2LSTM_GATES ") -> (Tensor grad_a, Tensor grad_c_prev)");
  m.def(
      "layer(Tensor x, Tensor h_0, Tensor c_0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? lengths, "
      "Tensor? seed, Tensor? rows, int stream, " G2LSTM_GATES
      ", bool need_gates) -> (Tensor outputs, Tensor h_n, Tensor c_n, Tensor z, Tensor gates, Tensor cells)");
  m.def(
      "layer_backward(Tensor? grad_outputs, Tensor? grad_h_n, Tensor? grad_c_n, Tensor x, Tensor h_0, Tensor c_0, "
      "Tensor w_ih, Tensor w_hh, Tensor outputs, Tensor gates, Tensor cells, Tensor? lengths, Tensor? seed, "
      "Tensor? rows, int stream, " G2LSTM_GATES
      ", bool need_x) -> (Tensor grad_x, Tensor grad_h_0, Tensor grad_c_0, Tensor grad_w_ih, Tensor grad_w_hh, "
      "Tensor grad_bias)");
  m.def(
      "decoder(Tensor x, Tensor h_0, Tensor c_0, Tensor feed_0, Tensor[] w_ih, Tensor[] w_hh, Tensor[] bias, "
      "Tensor? source, Tensor? source_padding, Tensor? w_query, Tensor? w_out, Tensor? dropout_mask, Tensor? seed, "
      "Tensor? rows, " G2LSTM_GATES
      ", bool need_gates) -> (Tensor outputs, Tensor h_n, Tensor c_n, Tensor feed_n, Tensor attention, Tensor z, "
      "Tensor gates, Tensor cells, Tensor hiddens, Tensor undropped, Tensor keys, Tensor values)");
  m.def(
      "decoder_backward(Tensor? grad_outputs, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_feed_n, "
      "Tensor? grad_attention, Tensor x, Tensor h_0, Tensor c_0, Tensor feed_0, Tensor[] w_ih, Tensor[] w_hh, "
      "Tensor? source, Tensor? source_padding, Tensor? w_query, Tensor? w_out, Tensor? dropout_mask, Tensor outputs, "
      "Tensor attention, Tensor gates, Tensor cells, Tensor hiddens, Tensor undropped, Tensor keys, Tensor values, "
      "Tensor? seed, Tensor? rows, " G2LSTM_GATES
      ") -> (Tensor grad_x, Tensor grad_h_0, Tensor grad_c_0, Tensor grad_feed_0, Tensor[] grad_w_ih, "
      "Tensor[] grad_w_hh, Tensor[] grad_bias, Tensor grad_source, Tensor grad_w_query, Tensor grad_w_out)");
  m.def(
      "decoder_step(Tensor x, Tensor h, Tensor c, Tensor feed, Tensor[] w_ih, Tensor[] w_hh, Tensor[] bias, "
      "Tensor? keys, Tensor? values, Tensor? source_padding, Tensor? source_rows, Tensor? w_out, float temperature, "
      "bool hard) -> (Tensor out, Tensor h_next, Tensor c_next, Tensor attention)");
  // Packed weights: the tensors of all factors and their layout, as cpu/packed.h reads them; w_ih before w_hh, cell by
  // cell.
  m.def("packed_linear(Tensor x, Tensor[] weights, int[] layout, Tensor? bias, bool fine=False) -> Tensor");
  m.def(
      "packed_layer(Tensor x, Tensor h_0, Tensor c_0, Tensor[] weights, int[] layout, Tensor? bias, Tensor? lengths, "
      "bool reverse, float temperature, bool hard, bool need_gates) -> (Tensor outputs, Tensor h_n, Tensor c_n, "
      "Tensor z)");
  m.def(
      "packed_decoder_step(Tensor x, Tensor h, Tensor c, Tensor feed, Tensor[] weights, int[] layout, Tensor[] bias, "
      "Tensor? keys, Tensor? values, Tensor? source_padding, Tensor? source_rows, Tensor? w_out, float temperature, "
      "bool hard) -> (Tensor out, Tensor h_next, Tensor c_next, Tensor attention)");
  m.def("matmul(Tensor a, Tensor b, Tensor? bias) -> Tensor");
  m.def("dropout(Tensor x, Tensor seed, float p) -> Tensor");
  m.def(
      "cross_entropy(Tensor logits, Tensor targets, int ignore_index) -> (Tensor nll, Tensor smooth, Tensor "
      "log_normalizer)");
  m.def(
      "cross_entropy_backward(Tensor? grad_nll, Tensor? grad_smooth, Tensor logits, Tensor targets, Tensor "
      "log_normalizer, int ignore_index) -> Tensor");
}

// Importing fairseq_g2lstm._kernels loads the library, which is all that is wanted of it.
PyMODINIT_FUNC PyInit__kernels(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_kernels", "The compiled operators of torch.ops.g2lstm.", -1, nullptr, nullptr, nullptr,
      nullptr, nullptr};
  PyObject* const module = PyModule_Create(&definition);
  // Another torch's library may load and then fail: Python compares.
  if (module != nullptr) PyModule_AddStringConstant(module, "TORCH_VERSION", TORCH_VERSION);
  return module;
}
