// The kernels for AVX2. op.cpp calls them only where the processor has it.
#include "kernel.h"

#if defined(__x86_64__)
#define FB_ISA avx2
FB_BEGIN_TARGET("avx2,fma,f16c")
#include "body/kernels.inl"
FB_END_TARGET
#endif
