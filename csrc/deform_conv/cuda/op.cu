// The CUDA operators: lay memory out, choose the type, enqueue on the current stream; nothing waits for the device.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../arguments.h"
#include "by_columns.cuh"
#include "torch_products.h"

namespace flowers_bench {
namespace {

using torch::headeronly::MemoryFormat;

// ---- Tensors ----

template <typename T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* written(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

Tensor rows(const Tensor& t) { return torch::stable::contiguous(t, MemoryFormat::ChannelsLast); }

Tensor empty_as(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type, bool channels_last = false) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

std::vector<int64_t> sizes_of(const Tensor& t) { return {t.size(0), t.size(1), t.size(2), t.size(3)}; }

// Allocates a gradient. Where it is not asked for, that is an empty tensor, each its own since outputs must not alias.
Tensor gradient_like(const Tensor& like, bool needed, bool channels_last = false) {
  if (!needed) return empty_as(like, {0}, like.scalar_type());
  return empty_as(like, sizes_of(like), like.scalar_type(), channels_last);
}

// Packs (OC, channels of a group, KH, KW) as (groups, taps, channels of a group, outputs of a group), or with the last
// two exchanged: the rows of either product then lie dense.
Tensor packed(const Tensor& weight, const Geometry& g, bool exchanged) {
  using torch::stable::transpose;
  const std::vector<int64_t> shape = {g.groups, g.out_channels / g.groups, g.channels / g.groups, g.taps()};
  Tensor t = transpose(torch::stable::reshape(weight, shape), 1, 3);
  if (exchanged) t = transpose(t, 2, 3);
  return torch::stable::contiguous(t);
}

// ---- Surroundings ----

Stream current_stream(const Tensor& t) {
  void* stream = nullptr;
  // The macro that checks such codes has had two names since torch 2.10.
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == AOTI_TORCH_SUCCESS,
                  "deform_conv2d: no current CUDA stream");
  return static_cast<Stream>(stream);
}

template <typename T>
constexpr ScalarType accumulator_type() {
  return sizeof(Accumulator<T>) == 8 ? ScalarType::Double : ScalarType::Float;
}

// Holds the problem, and the tensors that its pointers point into.
template <typename T>
struct Prepared {
  Problem<T> p;
  Tensor input, offset;
  std::optional<Tensor> mask;

  Prepared(const Call& c, const Geometry& g) : input(rows(c.input)), offset(torch::stable::contiguous(c.offset)) {
    p.g = g;
    p.input = read<T>(input);
    p.offset = read<T>(offset);
    if (c.mask) {
      mask = torch::stable::contiguous(*c.mask);
      p.mask = read<T>(*mask);
    }
  }
};

// ---- Forward ----

template <typename T>
Tensor forward_as(const Call& c, const Geometry& g) {
  const bool out_rows = is_channels_last(c.input);
  const Tensor out =
      empty_as(c.input, {g.batch, g.out_channels, g.out_height, g.out_width}, c.input.scalar_type(), out_rows);
  Prepared<T> prepared(c, g);
  const Tensor weight = packed(c.weight, g, false);
  Problem<T>& p = prepared.p;
  p.weight = read<T>(weight);
  std::optional<Tensor> bias;
  if (c.bias) {
    bias = torch::stable::contiguous(*c.bias);
    p.bias = read<T>(*bias);
  }
  p.out = written<T>(out);
  p.out_rows = out_rows;
  complete(p);
  const Tensor parts = empty_as(c.input, {forward_parts_size(p)}, accumulator_type<T>());
  p.parts = written<Accumulator<T>>(parts);
  run_forward(p, current_stream(c.input));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

// ---- Backward ----

template <typename T>
Gradients backward_as(const Tensor& grad, const Call& c, const Geometry& g, const Needs& needs, bool deterministic) {
  const ScalarType type = c.input.scalar_type(), wide = accumulator_type<T>();
  const bool in_rows = is_channels_last(c.input);
  Tensor input = gradient_like(c.input, needs.input, in_rows);
  const Tensor offset = gradient_like(c.offset, needs.offset), weight = gradient_like(c.weight, needs.weight);
  const Tensor mask = gradient_like(c.mask.value_or(c.input), needs.mask);
  const Tensor bias = empty_as(c.input, {needs.bias ? g.out_channels : 0}, type);
  // Where the input's gradient is summed: in place if its memory is so, else beside it.
  const bool in_place = in_rows && type == wide;
  Tensor sum = needs.input && !in_place ? empty_as(c.input, sizes_of(c.input), wide, true) : input;

  Prepared<T> prepared(c, g);
  const Tensor grad_rows = rows(grad), weight_t = packed(c.weight, g, true);
  Problem<T>& p = prepared.p;
  p.grad = read<T>(grad_rows);
  p.weight_t = read<T>(weight_t);
  if (needs.input) p.grad_input = written<Accumulator<T>>(torch::stable::zero_(sum));
  if (needs.offset) p.grad_offset = written<T>(offset);
  if (needs.mask) p.grad_mask = written<T>(mask);
  if (needs.weight) p.grad_weight = written<T>(weight);
  if (needs.bias) p.grad_bias = written<T>(bias);
  p.deterministic = deterministic;
  complete(p);
  const Tensor parts = empty_as(c.input, {backward_parts_size(p)}, wide);
  p.parts = written<Accumulator<T>>(parts);
  run_backward(p, current_stream(c.input));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (needs.input && !in_place) torch::stable::copy_(input, sum);
  return {input, offset, weight, bias, mask};
}

// ---- By columns ----

Tensor bytes_beside(const Tensor& t, int64_t count) { return empty_as(t, {count}, ScalarType::Byte); }

// Holds a call by columns: its problem, its channels-last weight, and the memory beside its tensors.
template <typename T>
struct ByColumns {
  Prepared<T> prepared;
  Tensor weight, columns, index, sums, bias_sums;
  ColumnsRoom<T> room;
  ColumnsMemory memory;
  TorchProducts<CudaLibrary> products;

  ByColumns(const Call& c, const Geometry& g) : prepared(c, g), weight(rows(c.weight)), products{c.input.device()} {
    // A view may begin between two packs of 128 bits.
    if (reinterpret_cast<uintptr_t>(prepared.p.input) % 16 != 0) {
      prepared.input = torch::stable::clone(prepared.input);
      prepared.p.input = read<T>(prepared.input);
    }
  }

  // Allocates; to be called once the problem names its results.
  void allocate(const Tensor& like, bool need_input) {
    Problem<T>& p = prepared.p;
    complete(p);
    STD_TORCH_CHECK(takes_columns(p),
                    "deform_conv2d: columns need channels of a weight group and of an offset group in packs of 16 "
                    "bytes, an input below 2 GiB and columns of one image below 2 GiB");
    room = ColumnsRoom<T>::of(p, need_input, p.grad_weight != nullptr, p.grad_bias != nullptr, kColumnBytes);
    columns = bytes_beside(like, room.columns), index = bytes_beside(like, room.index());
    sums = bytes_beside(like, room.weight), bias_sums = bytes_beside(like, room.bias);
    memory = {columns.mutable_data_ptr(), index.mutable_data_ptr(), written<float>(sums), written<float>(bias_sums)};
  }
};

template <typename T>
Tensor forward_columns_as(const Call& c, const Geometry& g) {
  const ScalarType type = c.input.scalar_type();
  const std::vector<int64_t> shape = {g.batch, g.out_channels, g.out_height, g.out_width};
  const Tensor out_rows = empty_as(c.input, shape, type, true);
  ByColumns<T> call(c, g);
  Problem<T>& p = call.prepared.p;
  std::optional<Tensor> bias;
  if (c.bias) {
    bias = torch::stable::contiguous(*c.bias);
    p.bias = read<T>(*bias);
  }
  p.out = written<T>(out_rows);
  p.out_rows = true;
  call.allocate(c.input, false);
  run_forward_by_columns(p, read<T>(call.weight), call.room, call.memory, call.products, current_stream(c.input));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (is_channels_last(c.input)) return out_rows;
  Tensor out = empty_as(c.input, shape, type);
  return torch::stable::copy_(out, out_rows);
}

template <typename T>
Gradients backward_columns_as(const Tensor& grad, const Call& c, const Geometry& g, const Needs& needs) {
  const ScalarType type = c.input.scalar_type();
  const bool in_rows = is_channels_last(c.input);
  Tensor input = gradient_like(c.input, needs.input, in_rows);
  const Tensor offset = gradient_like(c.offset, needs.offset), weight = gradient_like(c.weight, needs.weight);
  const Tensor mask = gradient_like(c.mask.value_or(c.input), needs.mask);
  const Tensor bias = empty_as(c.input, {needs.bias ? g.out_channels : 0}, type);
  const Tensor input_rows = needs.input && !in_rows ? empty_as(c.input, sizes_of(c.input), type, true) : input;
  const Tensor grad_rows = rows(grad);
  ByColumns<T> call(c, g);
  Problem<T>& p = call.prepared.p;
  p.grad = read<T>(grad_rows);
  if (needs.offset) p.grad_offset = written<T>(offset);
  if (needs.mask) p.grad_mask = written<T>(mask);
  if (needs.weight) p.grad_weight = written<T>(weight);
  if (needs.bias) p.grad_bias = written<T>(bias);
  call.allocate(c.input, needs.input);
  run_backward_by_columns(p, read<T>(call.weight), needs.input ? written<T>(input_rows) : nullptr, call.room,
                          call.memory, call.products, current_stream(c.input));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (needs.input && !in_rows) torch::stable::copy_(input, input_rows);
  return {input, offset, weight, bias, mask};
}

// ---- Entry points ----

// Calls f with a value of the tensor's element type.
template <typename F>
auto dispatch(const Tensor& t, const F& f) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return f(double{});
    case ScalarType::Half: return f(Half{});
    case ScalarType::BFloat16: return f(BFloat16{});
    default: break;
  }
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "deform_conv2d: expected a floating-point tensor");
  return f(float{});
}

// The same, for what has no float64.
template <typename F>
auto dispatch_narrow(const Tensor& t, const F& f) {
  STD_TORCH_CHECK(t.scalar_type() != ScalarType::Double, "deform_conv2d: columns are not for float64");
  switch (t.scalar_type()) {
    case ScalarType::Half: return f(Half{});
    case ScalarType::BFloat16: return f(BFloat16{});
    default: break;
  }
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "deform_conv2d: expected a floating-point tensor");
  return f(float{});
}

template <bool ByColumns>
Tensor forward(Tensor input, Tensor offset, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> mask,
               std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const Call c = {input, offset, weight, bias, mask, stride, padding, dilation};
  const Geometry g = geometry_of(c);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  if constexpr (ByColumns) {
    return dispatch_narrow(input, [&](auto value) { return forward_columns_as<decltype(value)>(c, g); });
  } else {
    return dispatch(input, [&](auto value) { return forward_as<decltype(value)>(c, g); });
  }
}

enum class Way { kAnyOrder, kDeterministic, kColumns };

template <Way way>
Gradients backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, std::optional<Tensor> mask,
                   std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                   bool need_input, bool need_offset, bool need_weight, bool need_bias, bool need_mask) {
  const Call c = {input, offset, weight, std::nullopt, mask, stride, padding, dilation};
  const Geometry g = geometry_of(c);
  const Needs needs = {need_input, need_offset, need_weight, need_bias, need_mask};
  check_backward(grad, c, g, needs);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  if constexpr (way == Way::kColumns) {
    return dispatch_narrow(input, [&](auto value) { return backward_columns_as<decltype(value)>(grad, c, g, needs); });
  } else {
    constexpr bool kOrdered = way == Way::kDeterministic;
    return dispatch(input, [&](auto value) { return backward_as<decltype(value)>(grad, c, g, needs, kOrdered); });
  }
}

}  // namespace
}  // namespace flowers_bench

STABLE_TORCH_LIBRARY_IMPL(flowers_bench_kernel, CUDA, m) {
  using namespace flowers_bench;
  m.impl("forward", TORCH_BOX(&forward<false>));
  m.impl("forward_columns", TORCH_BOX(&forward<true>));
  m.impl("backward", TORCH_BOX(&backward<Way::kAnyOrder>));
  m.impl("backward_deterministic", TORCH_BOX(&backward<Way::kDeterministic>));
  m.impl("backward_columns", TORCH_BOX(&backward<Way::kColumns>));
}
