// The kernels for AVX-512. op.cpp calls them only where the processor has it.
#include "kernel.h"

#if defined(__x86_64__)
#define FB_ISA avx512
FB_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#include "body/kernels.inl"
FB_END_TARGET
#endif
