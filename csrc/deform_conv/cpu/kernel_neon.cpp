// The kernels for 64-bit ARM, whose processors all have NEON.
#include "kernel.h"

#if defined(__aarch64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC would bring loads forward before it gives registers away, and a microkernel would need more than there are.
#pragma GCC optimize("no-schedule-insns")
#endif
#define FB_ISA neon
#define FB_ELEMENTS
#include "body/kernels.inl"
#endif
