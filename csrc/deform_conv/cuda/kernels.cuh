// Computes deformable convolution as products of tiles that are sampled, multiplied and forgotten in shared memory.
//
// All three kernels that multiply (forward, gradients of the columns, gradient of the weight) compute tiles of 64 rows
// in steps with the same pair of factors in shared memory and the same product: tensor cores for half and bfloat16
// (float32 sums), fused multiply-adds for float and double. Pairs take turns, so that a step's loads travel while the
// step before is multiplied, and one barrier per step is enough. The column matrix never lies in device memory.
// Input and output gradient are channels-last, so that a sample's channels are loaded 128 bits at a time.
//
// Not done, each of which should pay: asynchronous copies; several taps in one step where a layer has few channels (3
// channels use 3 of 32 steps' depth); a kernel of its own for depthwise layers, which are correct here but slow; TF32;
// sums of the input's gradient in shared memory before they go out as atomics; weights in the order in which they come.
// docs/performance.md says what was measured.
#pragma once

#include <cstdint>
#include <numeric>

#include "backward.cuh"
#include "forward.cuh"

namespace flowers_bench {

// Derives what follows from shapes and addresses; to be called once they are set.
template <typename T>
void complete(Problem<T>& p) {
  p.group_channels = static_cast<int>(p.g.channels / p.g.groups);
  p.group_outputs = static_cast<int>(p.g.out_channels / p.g.groups);
  p.offset_channels = static_cast<int>(p.g.channels / p.g.offset_groups);
  p.segment = std::gcd(p.group_channels, p.offset_channels);
  const auto aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
  constexpr int kCount = Pack<T>::kCount, kSums = AtomicWidth<Accumulator<T>>::value;
  p.wide = p.segment % kCount == 0 && p.segment % kSums == 0 && p.group_outputs % kCount == 0 && aligned(p.input) &&
           aligned(p.weight) && aligned(p.weight_t) && aligned(p.grad) && aligned(p.grad_input);
}

// Calls f with the kernel that suits addresses and outputs: where tensor cores multiply, the one with more columns
// samples half as often.
template <template <typename, int, bool> class Kernel, typename T, typename F>
auto with_kernel(const Problem<T>& p, const F& f) {
  if (!p.wide) return f(Kernel<T, kTile, false>{});
  if constexpr (sizeof(T) == 2) {
    if (p.group_outputs > kTile) return f(Kernel<T, 2 * kTile, true>{});
  }
  return f(Kernel<T, kTile, true>{});
}

template <typename Kernel, typename T>
void launch_plan(const Plan<T>& plan, Stream stream) {
  launch<Kernel>(plan, plan.blocks * plan.parts, stream);
}

// Counts the values that `parts` must have room for.
template <typename T>
int64_t forward_parts_size(const Problem<T>& p) {
  const int64_t parts = with_kernel<Forward>(p, [&](auto kernel) { return decltype(kernel)::plan(p).parts; });
  return parts > 1 ? parts * p.total() * p.g.out_channels : 0;
}

template <typename T>
void run_forward(const Problem<T>& p, Stream stream) {
  with_kernel<Forward>(p, [&](auto kernel) {
    const Plan<T> plan = decltype(kernel)::plan(p);
    launch_plan<decltype(kernel)>(plan, stream);
    const typename AddTaps<T>::Params add = {p, plan.parts};
    if (plan.parts > 1) launch<AddTaps<T>>(add, AddTaps<T>::blocks(add), stream);
  });
}

template <typename T>
Plan<T> weight_plan(const Problem<T>& p) {
  return with_kernel<BackwardWeight>(p, [&](auto kernel) { return decltype(kernel)::plan(p); });
}

template <typename T>
int64_t backward_parts_size(const Problem<T>& p) {
  return (p.grad_weight ? weight_plan(p).parts * p.weight_size() : 0) +
         (p.grad_bias ? BackwardBias<T>::plan(p).parts * p.g.out_channels : 0);
}

template <typename T, bool Wide>
void run_backward_columns(Problem<T> p, Stream stream) {
  using Ordered = BackwardColumns<T, Wide, true>;
  using Unordered = BackwardColumns<T, Wide, false>;
  if (p.deterministic && p.grad_input) {
    launch_plan<Ordered>(Ordered::plan(p), stream);
    p.grad_input = nullptr;
  }
  if (p.grad_input || p.grad_offset || p.grad_mask) launch_plan<Unordered>(Unordered::plan(p), stream);
}

// Adds up the parts of the weight's gradient.
template <typename T>
void add_weight_parts(const Problem<T>& p, const Accumulator<T>* parts, int64_t count, Stream stream) {
  using Add = AddParts<T>;
  const typename Add::Params add = {parts,           count,        p.g.groups, p.g.taps(), p.group_channels,
                                    p.group_outputs, p.grad_weight};
  launch<Add>(add, Add::blocks(add), stream);
}

template <typename T>
void run_backward_bias(const Problem<T>& p, Stream stream) {
  using Add = AddParts<T>;
  const Plan<T> plan = BackwardBias<T>::plan(p);
  launch_plan<BackwardBias<T>>(plan, stream);
  const typename Add::Params add = {p.parts, plan.parts, 1, 1, 1, p.g.out_channels, p.grad_bias};
  launch<Add>(add, Add::blocks(add), stream);
}

template <typename T>
void run_backward(Problem<T> p, Stream stream) {
  p.wide ? run_backward_columns<T, true>(p, stream) : run_backward_columns<T, false>(p, stream);
  if (p.grad_weight) {
    const Plan<T> plan = weight_plan(p);
    with_kernel<BackwardWeight>(p, [&](auto kernel) { launch_plan<decltype(kernel)>(plan, stream); });
    add_weight_parts(p, p.parts, plan.parts, stream);
    p.parts += plan.parts * p.weight_size();
  }
  if (p.grad_bias) run_backward_bias(p, stream);
}

}  // namespace flowers_bench
