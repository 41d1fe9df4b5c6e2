// The kernels for any processor: vectors of 128 bits, which compilers map to what there is.
#include "kernel.h"

#define FB_ISA generic
#include "body/kernels.inl"
