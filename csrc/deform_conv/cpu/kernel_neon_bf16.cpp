// The kernel for products of bfloat16 with the instructions of FEAT_BF16. dispatch.cpp offers it only where the
// processor has them.
#include "kernel.h"

#if defined(FB_NEON_BF16)
#include <arm_neon.h>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns")  // see kernel_neon.cpp
#endif
#define FB_ISA neonbf16
#define FB_ELEMENTS
#define FB_PAIRS
FB_BEGIN_TARGET("arch=armv8.2-a+bf16")
#include "body/kernels.inl"
FB_END_TARGET
#endif
