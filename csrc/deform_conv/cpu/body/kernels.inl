// The CPU kernels: the table of functions that op.cpp calls, compiled once for each instruction set; with FB_PAIRS, the
// one of products of bfloat16, in pairs or, with FB_AMX too, in squares of AMX.
//
// The files of this folder are compiled with FB_ISA defined as a namespace of instruction_sets.h. None of them may call
// an inline function that other translation units share: the linker keeps one copy of those, and it could be the one
// with instructions that this processor lacks. Hence no standard library, and everything in an unnamed namespace.
//
// How it works. Positions of the output (n, oh, ow) are cut into tiles that stay in the second-level cache. For a
// tile, the coordinates and bilinear weights of each tap are computed once (tabulate) and shared by all channels.
// Then, for one block of K = taps x channels after the other, the samples are gathered into columns (position, K),
// whole vectors of channels at a time since the input is channels-last, and multiplied at once with the packed
// weight. Backward runs the same tiles: columns of the gradient by a product, then in one sweep over the four
// neighbours the gradient of the input (scattered), of offset and mask (dot products), and the columns again for
// the gradient of the weight. csrc/README.md has a picture of it.
#pragma once

#include "backward.inl"
#include "forward.inl"
#include "rows.inl"
#include "weights.inl"

namespace flowers_bench::FB_ISA {
namespace {

template <typename T>
constexpr Kernel<T> kernel_of() {
  return {
      .panel = kPanel<T>,
      .wide_pixels = kWidePixels,
      .blocks = blocks<T>,
      .takes_unpacked = takes_unpacked<T>,
      .forward_scratch = forward_scratch<T>,
      .backward_scratch = backward_scratch<T>,
      .forward = forward<T>,
      .backward = backward<T>,
      .forward_units = forward_units<T>,
      .pack_forward = pack_forward<T>,
      .backward_units = backward_units<T>,
      .pack_backward = pack_backward<T>,
      .unpack_weight = unpack_weight<T>,
      .to_rows = to_rows<T>,
      .from_rows = from_rows<Sum<T>>,
  };
}

template <typename T, bool kHas>
constexpr Kernel<T> kernel_if() {
  if constexpr (kHas) return kernel_of<T>();
  return {};
}

#if defined(FB_PAIRS)
constexpr Kernel<BFloat16> kKernel = kernel_of<BFloat16>();
#else
constexpr Kernels kKernels = {kernel_if<float, FB_HAS_FLOAT>(), kernel_if<double, FB_HAS_DOUBLE>()};
#endif

}  // namespace

#if defined(FB_PAIRS)
const Kernel<BFloat16>& kernel() { return kKernel; }
#else
const Kernels& kernels() { return kKernels; }
#endif

}  // namespace flowers_bench::FB_ISA
