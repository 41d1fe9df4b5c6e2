// The CUDA kernels as a host library, behind a plain C interface that test_cuda_emulated.py calls.
//
// It stands here, not in csrc/, because the package must not compile it.
#include <vector>

#include "cuda/kernels.cuh"

namespace flowers_bench {
namespace {

enum Type { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Tensors in the order of `Problem`; null where there is none or it is not asked for.
struct Pointers {
  const void *input, *offset, *mask, *weight, *weight_t, *bias, *grad;
  void *out, *grad_input, *grad_offset, *grad_mask, *grad_weight, *grad_bias;
};

template <typename T>
Problem<T> problem_of(const Geometry& g, const Pointers& t, bool out_rows, bool deterministic) {
  Problem<T> p;
  p.g = g;
  p.input = static_cast<const T*>(t.input), p.offset = static_cast<const T*>(t.offset);
  p.mask = static_cast<const T*>(t.mask), p.bias = static_cast<const T*>(t.bias);
  p.weight = static_cast<const T*>(t.weight), p.weight_t = static_cast<const T*>(t.weight_t);
  p.grad = static_cast<const T*>(t.grad), p.out = static_cast<T*>(t.out);
  p.out_rows = out_rows, p.deterministic = deterministic;
  p.grad_input = static_cast<Accumulator<T>*>(t.grad_input), p.grad_offset = static_cast<T*>(t.grad_offset);
  p.grad_mask = static_cast<T*>(t.grad_mask), p.grad_weight = static_cast<T*>(t.grad_weight);
  p.grad_bias = static_cast<T*>(t.grad_bias);
  complete(p);
  return p;
}

template <typename T>
void compute(Problem<T> p) {
  std::vector<Accumulator<T>> taps(forward_parts_size(p), Accumulator<T>(NAN));
  p.parts = taps.data();
  if (p.out) run_forward(p, {});
  std::vector<Accumulator<T>> positions(backward_parts_size(p), Accumulator<T>(NAN));
  p.parts = positions.data();
  if (p.grad) run_backward(p, {});
}

template <typename T>
void emulate_as(const Geometry& g, const Pointers& t, bool out_rows, bool deterministic) {
  compute(problem_of<T>(g, t, out_rows, deterministic));
}

}  // namespace
}  // namespace flowers_bench

// `counts`: Geometry's numbers in their order. `reversed`: threads and blocks run backwards.
extern "C" void emulate(int type, const int64_t* counts, const flowers_bench::Pointers* t, bool out_rows,
                        bool deterministic, bool reversed) {
  using namespace flowers_bench;
  emulation::reversed = reversed;
  const int64_t* n = counts;
  const Geometry g = {n[0], n[1],  n[2],  n[3],  n[4],  n[5],  n[6],  n[7],  n[8],
                      n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16], t->mask != nullptr};
  const auto run = type == kFloat64    ? emulate_as<double>
                   : type == kBFloat16 ? emulate_as<BFloat16>
                   : type == kFloat16  ? emulate_as<Half>
                                       : emulate_as<float>;
  run(g, *t, out_rows, deterministic);
}
