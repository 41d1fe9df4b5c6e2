// The kernels for AVX512; without it in the processor, op.cpp never calls them.
#include "kernel.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif

#define FB_ISA avx512
#define FB_VECTOR_BYTES 64
#define FB_ROWS 12
#include "kernel_body.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace flowers_bench {
const Kernels* kernels_avx512() { return &avx512::kKernels; }
}  // namespace flowers_bench

#else

namespace flowers_bench {
const Kernels* kernels_avx512() { return nullptr; }
}  // namespace flowers_bench

#endif
