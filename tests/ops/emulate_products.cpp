// torch's matrix products as the CUDA operators ask for them, on a processor: test_cuda_products.py calls this.
//
// It stands here, not in csrc/, because the package must not compile it.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "cuda/torch_products.h"

namespace flowers_bench {
namespace {

struct CpuLibrary {
  static constexpr auto mm = aoti_torch_cpu_mm_out;
  static constexpr auto addmm = aoti_torch_cpu_addmm_out;
  static constexpr auto bmm = aoti_torch_cpu_bmm_out;
  static constexpr auto baddbmm = aoti_torch_cpu_baddbmm_out;
};

template <typename T>
Operand<T> operand(T* data, const int64_t* n) {
  return {data, n[0], n[1], n[2], n[3], n[4]};
}

template <typename T, typename U>
void multiply_as(int64_t groups, const void* a, const void* b, const void* bias, void* to, const int64_t* n) {
  const torch::stable::Device device(torch::headeronly::DeviceType::CPU);
  const TorchProducts<CpuLibrary> products{device};
  products.multiply(groups, operand(static_cast<const T*>(a), n), operand(static_cast<const T*>(b), n + 5),
                    operand(static_cast<U*>(to), n + 10), static_cast<const T*>(bias));
}

}  // namespace
}  // namespace flowers_bench

enum Kind { kFloat, kHalf, kHalfIntoFloat };

// `numbers`: rows, columns and the distances of row, column and group, of both factors and of the result.
extern "C" void multiply(int kind, int64_t groups, const void* a, const void* b, const void* bias, void* to,
                         const int64_t* numbers) {
  using namespace flowers_bench;
  const auto run = kind == kHalf            ? multiply_as<Half, Half>
                   : kind == kHalfIntoFloat ? multiply_as<Half, float>
                                            : multiply_as<float, float>;
  run(groups, a, b, bias, to, numbers);
}
