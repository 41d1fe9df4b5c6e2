// What the instruction-set-specific kernels take and give: plain pointers and shapes, no torch, no allocation.
//
// Translation units (kernel_generic.cpp, kernel_avx2.cpp, kernel_neon.cpp, ...) compile the same body/ for their
// instruction set; dispatch.cpp picks one at run time, op.cpp prepares memory and splits the work over threads.
#pragma once

#include <cstdint>

#include "../geometry.h"
#include "instruction_sets.h"

// What a library computes. On first use ops/_build.py compiles all but float64 (FB_PART 1), and float64 as a library of
// its own (FB_PART 2) when it is asked for. A wheel has all in one.
#if !defined(FB_PART)
#define FB_HAS_FLOAT 1
#define FB_HAS_DOUBLE 1
#elif FB_PART == 1
#define FB_HAS_FLOAT 1
#define FB_HAS_DOUBLE 0
#else
#define FB_HAS_FLOAT 0
#define FB_HAS_DOUBLE 1
#endif

namespace flowers_bench {

enum class Storage { kFloat32, kFloat64, kBFloat16, kFloat16 };

// A number of 16 bits: the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

// What products of T are summed in, and what coordinates, weights of samples and biases are: T, or float for bfloat16.
template <typename T>
struct SumOf {
  typedef T Type;
};
template <>
struct SumOf<BFloat16> {
  typedef float Type;
};
template <typename T>
using Sum = typename SumOf<T>::Type;

// Describes a tensor as it lies in memory, seen as (N, C, positions); a weight as (OC, C / groups, taps).
struct Strided {
  void* data = nullptr;
  int64_t stride[3] = {0, 0, 0};
  Storage storage = Storage::kFloat32;
};

// Describes one call. T is the type whose products it computes: float, double for double tensors, or BFloat16 where a
// processor multiplies pairs of these, and every count of channels is a multiple of kPairedChannels.
// K below is taps * (channels / groups), ordered [tap][channel]; "padded" means up to a multiple of the panel width.
template <typename T>
struct Problem {
  Geometry g;
  const T* input = nullptr;            // (N, H, W, C), dense
  const Sum<T>* wide_input = nullptr;  // the same, and what is read in its stead, where Kernel::wide_pixels
  Strided offset, mask;
  int64_t panel = 0;          // Kernel::panel
  const T* weight = nullptr;  // Kernel::pack_forward's; null where a forward pass takes the unpacked one
  Strided unpacked;
  const Sum<T>* bias = nullptr;    // (OC) or null
  Strided out;                     // (N, OC, OH, OW), dense or channels-last
  const T* weight_t = nullptr;     // Kernel::pack_backward's
  const T* grad = nullptr;         // (N, OH, OW, OC), dense
  Sum<T>* grad_input = nullptr;    // (N, H, W, C), dense, zeroed; null where not asked for
  Strided grad_offset, grad_mask;  // dense; null data where not asked for

  // Always inlined (FB_HD): a copy shared by the linker could hold instructions that a processor lacks.
  FB_HD int64_t group_channels() const { return g.channels / g.groups; }
  FB_HD int64_t group_outputs() const { return g.out_channels / g.groups; }
  // Says whether each group has one channel in and one out: a scaling instead of a matrix product.
  FB_HD bool depthwise() const { return group_channels() == 1 && group_outputs() == 1; }
  FB_HD int64_t gemm_groups() const { return depthwise() ? 1 : g.groups; }
  FB_HD int64_t depth() const { return g.taps() * g.channels / gemm_groups(); }  // K
  FB_HD int64_t width() const { return g.out_channels / gemm_groups(); }         // outputs of a group
  FB_HD int64_t padded(int64_t n) const { return (n + panel - 1) / panel * panel; }
  FB_HD int64_t weight_size() const { return depthwise() ? depth() : g.groups * depth() * padded(width()); }
  FB_HD int64_t weight_t_size() const { return depthwise() ? depth() : g.groups * width() * padded(depth()); }
  // The gradient of the weight while it is summed: [group][K][padded width]; depthwise: [tap][channel].
  FB_HD int64_t grad_weight_size() const { return weight_size(); }
};

// Describes what one thread of a backward pass owns: a range of output positions (n, oh, ow), and where it sums.
template <typename T>
struct BackwardRange {
  int64_t begin = 0, end = 0;
  // Which K blocks (Kernel::blocks); all, unless threads split the gradient of the weight between them.
  int64_t first_block = 0, last_block = 0;
  Sum<T>* grad_weight = nullptr;  // summed into; null where not asked for
  Sum<T>* grad_bias = nullptr;    // (OC), summed into; null where not asked for
  Sum<T>* head = nullptr;         // (H, W, C), zeroed: gradient of an image whose first position is another thread's
  bool columns = true;            // compute the gradients of input, offset, mask (else of the weight only)
};

// Lists the functions of one instruction set. Ranges let the caller split the work over threads.
template <typename T>
struct Kernel {
  int64_t panel;     // columns that a microkernel computes at once
  bool wide_pixels;  // whether pixels are read as what samples are summed in: Problem::wide_input
  int64_t (*blocks)(const Problem<T>&);
  bool (*takes_unpacked)(const Problem<T>&, const Strided& weight, int64_t positions);  // forward, by one thread
  // Bytes of scratch memory for each thread.
  int64_t (*forward_scratch)(const Problem<T>&);
  int64_t (*backward_scratch)(const Problem<T>&);
  void (*forward)(const Problem<T>&, int64_t begin, int64_t end, void* scratch);
  void (*backward)(const Problem<T>&, const BackwardRange<T>&, void* scratch);
  // Weight (OC, C / groups, taps) into the order in which the products read it, in independent units.
  int64_t (*forward_units)(const Problem<T>&);
  void (*pack_forward)(const Problem<T>&, const Strided& weight, int64_t begin, int64_t end, T* packed);
  int64_t (*backward_units)(const Problem<T>&);
  void (*pack_backward)(const Problem<T>&, const Strided& weight, int64_t begin, int64_t end, T* packed);
  // Sums `parts` buffers of grad_weight_size() into the gradient of the weight, forward_units [begin, end).
  void (*unpack_weight)(const Problem<T>&, const Sum<T>* buffers, int64_t parts, int64_t begin, int64_t end,
                        const Strided& weight);
  // Positions [begin, end) of all images, (N, C, positions) with any strides -> (N, positions, C) dense; and sums back.
  void (*to_rows)(const Strided& from, int64_t channels, int64_t positions, int64_t begin, int64_t end, T* to);
  void (*from_rows)(const Sum<T>* from, int64_t channels, int64_t positions, int64_t begin, int64_t end,
                    const Strided& to);
};

// Channels of a weight group, of an offset group and outputs of a weight group, where bfloat16 is multiplied in pairs,
// are multiples of this: a vector of them. Whole panels of weights, and no remainders, then need no code.
constexpr int64_t kPairedChannels = 32;

// A type that this library does not compute has null pointers.
struct Kernels {
  Kernel<float> f32;
  Kernel<double> f64;
};

namespace generic {
const Kernels& kernels();
}
#if defined(__x86_64__)
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
// The products of bfloat16 that AVX512-BF16 and AMX add; what else there is to compute, avx512 does.
namespace avx512bf16 {
const Kernel<BFloat16>& kernel();
}
#if defined(FB_HAS_AMX)
namespace avx512amx {
const Kernel<BFloat16>& kernel();
}
#endif
#endif
#if defined(__aarch64__)
namespace neon {
const Kernels& kernels();
}
// The products of pairs of bfloat16 that FEAT_BF16 adds; what else there is to compute, neon does. Before version 16,
// clang has the instructions only where the whole file may use them.
#if !defined(__clang__) || __clang_major__ >= 16
#define FB_NEON_BF16
namespace neonbf16 {
const Kernel<BFloat16>& kernel();
}
#endif
#endif

}  // namespace flowers_bench
