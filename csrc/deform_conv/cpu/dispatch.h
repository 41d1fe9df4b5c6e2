// Which kernels compute on this processor.
#pragma once

#include "kernel.h"

namespace flowers_bench {

// Returns what the operator `instruction_set` does: the place of the instruction set in INSTRUCTION_SETS of
// ops/_build.py.
int64_t instruction_set();

// Return the kernels that compute with a type.
const Kernel<float>& kernel_for(float);
const Kernel<double>& kernel_for(double);
const Kernel<BFloat16>& kernel_for(BFloat16);

// Says whether the instructions in use multiply pairs of bfloat16.
bool has_pairs();

// Says whether bfloat16 tensors of these shapes are multiplied in pairs, by kernel_for(BFloat16); else they are
// widened, and kernel_for(float) computes.
inline bool multiplies_pairs(const Geometry& g) {
  const auto whole = [](int64_t channels) { return channels % kPairedChannels == 0; };
  return has_pairs() && whole(g.channels / g.groups) && whole(g.out_channels / g.groups) &&
         whole(g.channels / g.offset_groups);
}

}  // namespace flowers_bench
