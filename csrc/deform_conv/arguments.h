// What the operators take: tensors checked against each other once, for the CPU and the CUDA kernels.
//
// The Python side checks too, with better words and for symbolic shapes; this is the last gate before raw pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "geometry.h"

// The library's name for torch: float64 may have a library of its own (cpu/kernel.h).
#if defined(FB_PART) && FB_PART == 2
#define FB_LIBRARY flowers_bench_kernel_double
#else
#define FB_LIBRARY flowers_bench_kernel
#endif
// One more level, so that the name is put in before torch makes a text of it.
#define FB_EXPANDED_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define FB_EXPANDED_LIBRARY_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)
#define FB_DEFINE_LIBRARY(m) FB_EXPANDED_LIBRARY(FB_LIBRARY, m)
#define FB_LIBRARY_IMPL(key, m) FB_EXPANDED_LIBRARY_IMPL(FB_LIBRARY, key, m)

namespace flowers_bench {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Holds the arguments of `flowers_bench_kernel::forward`, in its order.
struct __attribute__((visibility("hidden"))) Call {
  Tensor input, offset, weight;
  std::optional<Tensor> bias, mask;
  std::vector<int64_t> stride, padding, dilation;
};

// Says which gradients `flowers_bench_kernel::backward` computes; the others come back as empty tensors.
struct Needs {
  bool input, offset, weight, bias, mask;
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // input, offset, weight, bias, mask

inline void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (int64_t size : shape) {
    same = same && tensor.size(axis) == size;
    ++axis;
  }
  STD_TORCH_CHECK(same, "deform_conv2d: ", name, " does not have the shape that the other arguments ask for");
}

inline void check_kind(const Tensor& tensor, const char* name, const Tensor& input) {
  STD_TORCH_CHECK(tensor.scalar_type() == input.scalar_type() && tensor.device() == input.device(),
                  "deform_conv2d: ", name, " must have the input's dtype and device");
}

// Rows and columns are counted in 32 bits, for the sake of vectors; pixels of an image too.
constexpr int64_t kLargest = int64_t(1) << 30;

// Returns how many positions an axis of the output has.
inline int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  STD_TORCH_CHECK(stride > 0 && pad >= 0 && dilation > 0 && stride < kLargest && pad < kLargest &&
                      dilation < kLargest && size < kLargest && kernel < kLargest,
                  "deform_conv2d: stride, padding, dilation or size out of range");
  const int64_t room = size + 2 * pad - dilation * (kernel - 1) - 1;
  STD_TORCH_CHECK(room >= 0, "deform_conv2d: the kernel does not fit the padded image");
  return room / stride + 1;
}

// Derives the shapes, and raises unless every argument fits; afterwards every index that a kernel derives from the
// Geometry is in range.
inline Geometry geometry_of(const Call& c) {
  STD_TORCH_CHECK(c.input.dim() == 4 && c.weight.dim() == 4 && c.offset.dim() == 4,
                  "deform_conv2d: input, weight and offset must have 4 dimensions");
  STD_TORCH_CHECK(c.stride.size() == 2 && c.padding.size() == 2 && c.dilation.size() == 2,
                  "deform_conv2d: stride, padding and dilation must be pairs");
  Geometry g = {};
  g.batch = c.input.size(0), g.channels = c.input.size(1);
  g.height = c.input.size(2), g.width = c.input.size(3);
  g.out_channels = c.weight.size(0);
  g.kernel_h = c.weight.size(2), g.kernel_w = c.weight.size(3);
  g.stride_h = c.stride[0], g.stride_w = c.stride[1];
  g.pad_h = c.padding[0], g.pad_w = c.padding[1];
  g.dilation_h = c.dilation[0], g.dilation_w = c.dilation[1];
  const int64_t group_channels = c.weight.size(1);
  STD_TORCH_CHECK(
      g.channels > 0 && g.height > 0 && g.width > 0 && c.weight.numel() > 0 && g.channels % group_channels == 0,
      "deform_conv2d: weight does not fit the input's channels");
  g.groups = g.channels / group_channels;
  STD_TORCH_CHECK(g.height * g.width <= INT32_MAX, "deform_conv2d: an image has more than 2^31 pixels");
  STD_TORCH_CHECK(g.out_channels % g.groups == 0, "deform_conv2d: groups do not divide the output's channels");
  g.out_height = out_size(g.height, g.kernel_h, g.stride_h, g.pad_h, g.dilation_h);
  g.out_width = out_size(g.width, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w);
  g.offset_groups = c.offset.size(1) / (2 * g.taps());
  STD_TORCH_CHECK(g.offset_groups > 0 && g.channels % g.offset_groups == 0,
                  "deform_conv2d: offset does not have a fitting number of channels");
  g.use_mask = c.mask.has_value();
  check_shape(c.offset, "offset", {g.batch, g.offset_groups * 2 * g.taps(), g.out_height, g.out_width});
  check_kind(c.offset, "offset", c.input);
  check_kind(c.weight, "weight", c.input);
  if (c.mask) {
    check_shape(*c.mask, "mask", {g.batch, g.offset_groups * g.taps(), g.out_height, g.out_width});
    check_kind(*c.mask, "mask", c.input);
  }
  if (c.bias) {
    check_shape(*c.bias, "bias", {g.out_channels});
    check_kind(*c.bias, "bias", c.input);
  }
  return g;
}

// Raises unless what a backward pass takes besides fits too.
inline void check_backward(const Tensor& grad, const Call& c, const Geometry& g, const Needs& needs) {
  check_shape(grad, "grad", {g.batch, g.out_channels, g.out_height, g.out_width});
  check_kind(grad, "grad", c.input);
  STD_TORCH_CHECK(c.mask || !needs.mask, "deform_conv2d: the gradient of a mask that is not there");
}

// Says whether a tensor is channels-last, and not contiguous too: the output and the input's gradient are then as well.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const int64_t sizes[4] = {w, h, c, t.size(0)}, strides[4] = {t.stride(3), t.stride(2), t.stride(1), t.stride(0)};
  const int64_t dense[4] = {c, c * w, 1, c * w * h};
  for (int axis = 0; axis < 4; ++axis) {
    if (sizes[axis] != 1 && strides[axis] != dense[axis]) return false;
  }
  return true;
}

}  // namespace flowers_bench
