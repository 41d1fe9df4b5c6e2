// The CPU kernels, compiled once for each instruction set with FB_ISA (a namespace), FB_VECTOR_BYTES and FB_ROWS
// (rows of a microkernel) defined. Nothing here may call an inline function that other translation units share: the
// linker keeps one copy of those, and it could be the one with instructions that this processor lacks. Hence no
// standard library, and everything in an unnamed namespace.
//
// How it works. Positions of the output (n, oh, ow) are cut into tiles that stay in the second-level cache. For a
// tile, the coordinates and bilinear weights of each tap are computed once (tabulate) and shared by all channels.
// Then, for one block of K = taps x channels after the other, the samples are gathered into columns (position, K),
// whole vectors of channels at a time since the input is channels-last, and multiplied at once with the packed
// weight. Backward runs the same tiles: columns of the gradient by a product, then in one sweep over the four
// neighbours the gradient of the input (scattered), of offset and mask (dot products), and the columns again for
// the gradient of the weight.

#define FB_INLINE inline __attribute__((always_inline))

namespace flowers_bench {
namespace FB_ISA {
namespace {

#include "body/vectors.h"
#include "body/turning.h"
#include "body/products.h"
#include "body/tiles.h"
#include "body/panels.h"
#include "body/forward.h"
#include "body/backward.h"
#include "body/orders.h"

template <typename T>
constexpr Kernel<T> kernel_of() {
  return {kPanel<T>,         blocks<T>,        takes_unpacked<T>, forward_scratch<T>, backward_scratch<T>,
          forward<T>,        backward<T>,      forward_units<T>,  pack_forward<T>,    backward_units<T>,
          pack_backward<T>,  unpack_weight<T>, to_rows<T>,        from_rows<T>};
}

constexpr Kernels kKernels = {kernel_of<float>(), kernel_of<double>()};

}  // namespace
}  // namespace FB_ISA
}  // namespace flowers_bench
