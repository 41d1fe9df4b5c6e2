// Matrix products by torch, through its stable C interface: for `run_forward_by_columns` and its sister.
//
// On a GPU they are cuBLAS's, on the current stream, and heed torch's settings for TF32, reduced precision, determinism
// and graph capture. `Library` names the functions of one kind of device, so that a test can run this on a processor.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "by_columns.cuh"

namespace flowers_bench {

struct CudaLibrary {
  static constexpr auto mm = aoti_torch_cuda_mm_out;
  static constexpr auto addmm = aoti_torch_cuda_addmm_out;
  static constexpr auto bmm = aoti_torch_cuda_bmm_out;
  static constexpr auto baddbmm = aoti_torch_cuda_baddbmm_out;
};

template <typename T>
constexpr torch::headeronly::ScalarType scalar_type() {
  using torch::headeronly::ScalarType;
  return std::is_same_v<T, Half>       ? ScalarType::Half
         : std::is_same_v<T, BFloat16> ? ScalarType::BFloat16
         : std::is_same_v<T, double>   ? ScalarType::Double
                                       : ScalarType::Float;
}

template <typename Library>
struct TorchProducts {
  using Tensor = torch::stable::Tensor;
  torch::stable::Device device;

  // Computes to = a * b, plus `bias` (groups * columns) in each row where it is not null; each group for itself.
  template <typename T, typename U>
  void multiply(int64_t groups, const Operand<const T>& a, const Operand<const T>& b, const Operand<U>& to,
                const T* bias) const {
    const Tensor left = seen(a, groups), right = seen(b, groups), out = seen(to, groups);
    if constexpr (!std::is_same_v<T, U>) {
      STD_TORCH_CHECK(!bias, "deform_conv2d: a product in another type has no bias");
      multiply_wide(groups, left, right, out, scalar_type<U>());
    } else if (bias) {
      const auto add = groups == 1 ? Library::addmm : Library::baddbmm;
      check(add(out.get(), row_of_each(bias, groups, to.columns).get(), left.get(), right.get(), 1.0, 1.0));
    } else {
      const auto product = groups == 1 ? Library::mm : Library::bmm;
      check(product(out.get(), left.get(), right.get()));
    }
  }

 private:
  // Sees memory as a tensor (rows, columns), or (groups, rows, columns) of several.
  template <typename T>
  Tensor seen(const Operand<T>& m, int64_t groups) const {
    std::vector<int64_t> sizes = {m.rows, m.columns}, strides = {m.row, m.column};
    if (groups > 1) sizes.insert(sizes.begin(), groups), strides.insert(strides.begin(), m.group);
    auto* const data = const_cast<std::remove_const_t<T>*>(m.data);
    return torch::stable::from_blob(data, sizes, strides, device, scalar_type<std::remove_const_t<T>>());
  }

  template <typename T>
  Tensor row_of_each(const T* bias, int64_t groups, int64_t columns) const {
    return groups == 1 ? torch::stable::from_blob(const_cast<T*>(bias), {columns}, {1}, device, scalar_type<T>())
                       : seen(Operand<const T>{bias, 1, columns, columns, 1, columns}, groups);
  }

  // Multiplies half types into float32: rounded nowhere between.
  static void multiply_wide(int64_t groups, const Tensor& left, const Tensor& right, const Tensor& out,
                            torch::headeronly::ScalarType type) {
    using torch::stable::detail::from;
    std::array<StableIValue, 4> stack{from(left), from(right), from(type), from(out)};
    check(torch_call_dispatcher(groups == 1 ? "aten::mm" : "aten::bmm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
    (void)torch::stable::detail::to<Tensor>(stack[0]);  // the result is `out`
  }

  static void check(AOTITorchError code) {
    STD_TORCH_CHECK(code == 0, "deform_conv2d: torch's matrix product failed; the lines before tell why");
  }
};

}  // namespace flowers_bench
