// The kernels for any processor: 128-bit vectors, which compilers map to SSE2 and NEON.
#include "kernel.h"

#define FB_ISA generic
#define FB_VECTOR_BYTES 16
#define FB_ROWS 6
#include "kernel_body.h"

namespace flowers_bench {
const Kernels& kernels_generic() { return generic::kKernels; }
}  // namespace flowers_bench
