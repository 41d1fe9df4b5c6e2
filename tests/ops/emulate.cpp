// The CUDA kernels as a host library, behind a plain C interface that test_cuda_emulated.py calls.
//
// It stands here, not in csrc/, because the package must not compile it.
#include <vector>

#include "cuda/by_columns.cuh"

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

// ---- By columns ----

// Multiplies by plain loops, as cuBLAS is asked to: sums in float32, each rounded once.
struct HostProducts {
  template <typename T, typename U>
  void multiply(int64_t groups, const Operand<const T>& a, const Operand<const T>& b, const Operand<U>& to,
                const T* bias) const {
    for (int64_t i = 0; i < groups * to.rows * to.columns; ++i) {
      const int64_t column = i % to.columns, row = i / to.columns % to.rows, group = i / (to.columns * to.rows);
      float sum = bias ? widen(bias[group * to.columns + column]) : 0.0f;
      for (int64_t k = 0; k < a.columns; ++k) {
        sum += widen(a.data[group * a.group + row * a.row + k * a.column]) *
               widen(b.data[group * b.group + k * b.row + column * b.column]);
      }
      narrow(sum, to.data[group * to.group + row * to.row + column * to.column]);
    }
  }
};

// Gives memory full of NaNs, at an address of 16 bytes.
class Memory {
 public:
  explicit Memory(int64_t bytes) : words_(bytes / 16 + 1) { std::memset(words_.data(), 0xff, words_.size() * 16); }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(words_.data());
  }

 private:
  struct alignas(16) Word {
    char bytes[16];
  };
  std::vector<Word> words_;
};

template <typename T>
void emulate_columns_as(const Geometry& g, const Pointers& t, int64_t limit) {
  // The input's gradient has its own type here, and the weight lies as (OC, taps, channels of a group).
  Pointers others = t;
  others.grad_input = nullptr, others.weight = others.weight_t = nullptr;
  Problem<T> p = problem_of<T>(g, others, true, true);
  const auto* weight = static_cast<const T*>(t.weight);
  const auto room = ColumnsRoom<T>::of(p, t.grad_input, p.grad_weight, p.grad_bias, limit);
  Memory columns(room.columns), index(room.index()), sums(room.weight), bias(room.bias);
  const ColumnsMemory memory = {columns.as<void>(), index.as<void>(), sums.as<float>(), bias.as<float>()};
  if (p.out) run_forward_by_columns(p, weight, room, memory, HostProducts{}, {});
  std::memset(columns.as<char>(), 0xff, room.columns);
  if (p.grad) run_backward_by_columns(p, weight, static_cast<T*>(t.grad_input), room, memory, HostProducts{}, {});
}

Geometry geometry_from(const int64_t* n, const Pointers& t) {
  return {n[0], n[1],  n[2],  n[3],  n[4],  n[5],  n[6],  n[7],  n[8],
          n[9], n[10], n[11], n[12], n[13], n[14], n[15], n[16], t.mask != nullptr};
}

}  // namespace
}  // namespace flowers_bench

// `counts`: Geometry's numbers in their order. `reversed`: threads and blocks run backwards.
extern "C" void emulate(int type, const int64_t* counts, const flowers_bench::Pointers* t, bool out_rows,
                        bool deterministic, bool reversed) {
  using namespace flowers_bench;
  emulation::reversed = reversed;
  const Geometry g = geometry_from(counts, *t);
  const auto run = type == kFloat64    ? emulate_as<double>
                   : type == kBFloat16 ? emulate_as<BFloat16>
                   : type == kFloat16  ? emulate_as<Half>
                                       : emulate_as<float>;
  run(g, *t, out_rows, deterministic);
}

// The same by columns, of which at most `limit` bytes exist at once; not for float64.
extern "C" void emulate_columns(int type, const int64_t* counts, const flowers_bench::Pointers* t, int64_t limit,
                                bool reversed) {
  using namespace flowers_bench;
  emulation::reversed = reversed;
  const auto run = type == kBFloat16  ? emulate_columns_as<BFloat16>
                   : type == kFloat16 ? emulate_columns_as<Half>
                                      : emulate_columns_as<float>;
  run(geometry_from(counts, *t), *t, limit);
}

// Says whether a call can be computed by columns.
extern "C" bool can_take_columns(int type, const int64_t* counts) {
  using namespace flowers_bench;
  const Pointers none = {};
  const Geometry g = geometry_from(counts, none);
  return type == kFloat64    ? takes_columns(problem_of<double>(g, none, true, true))
         : type == kBFloat16 ? takes_columns(problem_of<BFloat16>(g, none, true, true))
         : type == kFloat16  ? takes_columns(problem_of<Half>(g, none, true, true))
                             : takes_columns(problem_of<float>(g, none, true, true));
}
