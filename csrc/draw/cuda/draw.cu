// The operator on a GPU: checks, allocates, enqueues on the current stream; nothing waits for the device. Parameters
// are read on the CPU and travel as arguments of the launches.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../arguments.h"
#include "kernels.cuh"

namespace flowers_bench::draw {
namespace {

Stream current_stream(const Tensor& t) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == AOTI_TORCH_SUCCESS,
                  "draw: no current CUDA stream");
  return static_cast<Stream>(stream);
}

Tensor draw(std::vector<Tensor> images, Tensor parameters, int64_t side) {
  const std::vector<Box> boxes = boxes_of(images, parameters, side);
  STD_TORCH_CHECK(!boxes.empty(), "draw: there are no images");
  const Tensor& any = images[0];
  const torch::stable::accelerator::DeviceGuard guard(any.get_device_index());
  Tensor out = empty_images(static_cast<int64_t>(boxes.size()), side, any.device());
  const Call call = {boxes.data(), static_cast<const Parameters*>(parameters.const_data_ptr()),
                     static_cast<int64_t>(boxes.size()), side, static_cast<uint8_t*>(out.mutable_data_ptr())};
  const Room room = Room::of(call);
  const Tensor memory = torch::stable::empty({room.bytes()}, ScalarType::Byte, std::nullopt, any.device());
  run_draw(call, room, memory.mutable_data_ptr(), current_stream(any));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace
}  // namespace flowers_bench::draw

STABLE_TORCH_LIBRARY_IMPL(flowers_bench_draw, CUDA, m) { m.impl("draw", TORCH_BOX(&flowers_bench::draw::draw)); }
