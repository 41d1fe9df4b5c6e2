// The kernel for products of bfloat16 with AMX. dispatch.cpp offers it only where processor and system have that.
#include "kernel.h"

#if defined(FB_HAS_AMX)
#include <immintrin.h>

#define FB_ISA avx512amx
#define FB_PAIRS
#define FB_AMX
FB_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c,amx-tile,amx-bf16")
#include "body/kernels.inl"
FB_END_TARGET
#endif
