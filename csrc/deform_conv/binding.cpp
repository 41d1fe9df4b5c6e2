// The operators' schemas, on libtorch's stable ABI: one build serves every torch >= 2.10 and every Python.
//
// Autograd, fake tensors and the rest live in Python (harness/flowers_bench/ops/_deform_conv.py); these are
// what it calls once the arguments are checked. CUDA registers itself in cuda/ where it is built.
#include "arguments.h"

FB_DEFINE_LIBRARY(m) {
  m.def(
      "forward(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[] stride, "
      "int[] padding, int[] dilation) -> Tensor");
  m.def(
      "backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, "
      "int[] padding, int[] dilation, bool need_input, bool need_offset, bool need_weight, bool need_bias, "
      "bool need_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // The CUDA backward pass with sums in a fixed order, for torch.use_deterministic_algorithms; the CPU's always are.
  m.def(
      "backward_deterministic(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, "
      "int[] padding, int[] dilation, bool need_input, bool need_offset, bool need_weight, bool need_bias, "
      "bool need_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // CUDA alone: through a column matrix and a library's products, of chunks of images, with sums in a fixed order.
  m.def(
      "forward_columns(Tensor input, Tensor offset, Tensor weight, Tensor? bias, Tensor? mask, int[] stride, "
      "int[] padding, int[] dilation) -> Tensor");
  m.def(
      "backward_columns(Tensor grad, Tensor input, Tensor offset, Tensor weight, Tensor? mask, int[] stride, "
      "int[] padding, int[] dilation, bool need_input, bool need_offset, bool need_weight, bool need_bias, "
      "bool need_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // What the CPU kernels run on here, or are told to by FLOWERS_BENCH_KERNEL: a place in INSTRUCTION_SETS of
  // ops/_build.py.
  m.def("instruction_set() -> int");
  // Whether float64 is computed here too, or by a library of its own.
  m.def("has_double() -> bool");
}
