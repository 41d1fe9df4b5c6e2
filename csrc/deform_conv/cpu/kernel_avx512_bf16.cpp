// The kernel for products of bfloat16 with AVX512-BF16. dispatch.cpp offers it only where the processor has that.
#include "kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FB_ISA avx512bf16
#define FB_PAIRS
FB_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")
#include "body/kernels.inl"
FB_END_TARGET
#endif
