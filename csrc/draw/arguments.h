// What the operator takes, checked once before raw pointers, for the CPU and CUDA.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "parameters.h"

namespace flowers_bench::draw {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Box box_of(const Tensor& image, const Parameters& p) {
  STD_TORCH_CHECK(image.dim() == 3 && image.size(0) == 3 && image.scalar_type() == ScalarType::Byte,
                  "draw: an image must be uint8 (3, H, W)");
  STD_TORCH_CHECK(image.stride(0) == 1 && (image.stride(2) == 3 || image.size(2) == 1),
                  "draw: an image's channels must lie beside each other");
  STD_TORCH_CHECK(p.top >= 0 && p.left >= 0 && p.height > 0 && p.width > 0 && p.height <= image.size(1) - p.top &&
                      p.width <= image.size(2) - p.left,
                  "draw: a box does not lie in its image");
  const int64_t row = image.stride(1);
  return {static_cast<const uint8_t*>(image.const_data_ptr()) + p.top * row + 3 * p.left, row};
}

// Finds where the boxes of all images lie; the images are on one device, their parameters on the CPU.
inline std::vector<Box> boxes_of(const std::vector<Tensor>& images, const Tensor& parameters, int64_t side) {
  const auto count = static_cast<int64_t>(images.size());
  STD_TORCH_CHECK(parameters.dim() == 2 && parameters.size(0) == count && parameters.size(1) == kParameters &&
                      parameters.scalar_type() == ScalarType::Int && parameters.is_contiguous() && parameters.is_cpu(),
                  "draw: the parameters must be int32 on the CPU, one row for each image");
  STD_TORCH_CHECK(side > 0 && side < (1 << 15), "draw: the side is out of range");
  const auto* const rows = static_cast<const Parameters*>(parameters.const_data_ptr());
  std::vector<Box> boxes;
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(images[i].device() == images[0].device(), "draw: the images must be on one device");
    boxes.push_back(box_of(images[i], rows[i]));
  }
  return boxes;
}

// Allocates what is drawn to: uint8 (N, 3, side, side), channels-last.
inline Tensor empty_images(int64_t count, int64_t side, const torch::stable::Device& device) {
  const std::vector<int64_t> sizes = {count, 3, side, side};
  return torch::stable::empty(sizes, ScalarType::Byte, std::nullopt, device, std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace flowers_bench::draw
