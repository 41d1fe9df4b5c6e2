// Where a deformable tap samples, and with which weights: the maths that every kernel shares.
//
// Dai et al. 2017 (arXiv:1703.06211), equations 2 to 4, with the modulation of Zhu et al. 2019
// (arXiv:1811.11168), equation 1. Scalar functions for host and device; no torch, no allocation.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FB_HD __host__ __device__ __forceinline__
#else
#define FB_HD inline __attribute__((always_inline))
#endif

namespace flowers_bench {

// Holds the shapes of one call, as torch names them. Every count is 64-bit: an image index times its size may pass
// 2^31.
struct Geometry {
  int64_t batch, channels, height, width;  // input (N, C, H, W)
  int64_t out_channels, out_height, out_width;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups, offset_groups;
  bool use_mask;

  FB_HD int64_t taps() const { return kernel_h * kernel_w; }
  FB_HD int64_t positions() const { return out_height * out_width; }
};

// Holds one axis of a bilinear sample: the pixels below and above a coordinate, their weights, and their slopes (d
// weight / d coordinate). A pixel outside the image has weight and slope 0, and an index inside, so that it may be read
// and ignored.
template <typename T>
struct AxisSample {
  int32_t low, high;
  T weight_low, weight_high;
  T slope_low, slope_high;
};

// Samples one axis at coordinate v, with zero padding: a point at or beyond one pixel outside contributes nothing
// (torchvision's rule: v <= -1 or v >= size samples 0). Selections of one condition each, no branches, so that
// compilers vectorise a loop over positions.
template <typename T>
FB_HD AxisSample<T> sample_axis(T v, int32_t size) {
  // A point outside, and NaN, which fails every comparison, is moved to where neither neighbour is a pixel.
  const T above = v > T(-1) ? v : T(-2);
  const T at = above < T(size) ? above : T(size);
  const int32_t truncated = static_cast<int32_t>(at);
  const int32_t low = truncated - (T(truncated) > at ? 1 : 0);  // floor
  const T fraction = at - T(low);
  const bool low_counts = static_cast<uint32_t>(low) < static_cast<uint32_t>(size);
  const bool high_counts = static_cast<uint32_t>(low + 1) < static_cast<uint32_t>(size);
  const int32_t last = size - 1;
  AxisSample<T> s;
  s.low = low < 0 ? 0 : low;
  s.low = s.low > last ? last : s.low;
  s.high = low + 1 < 0 ? 0 : low + 1;
  s.high = s.high > last ? last : s.high;
  s.weight_low = low_counts ? T(1) - fraction : T(0);
  s.weight_high = high_counts ? fraction : T(0);
  s.slope_low = low_counts ? T(-1) : T(0);
  s.slope_high = high_counts ? T(1) : T(0);
  return s;
}

// Returns the undeformed coordinate of a tap: output row (or column) times stride, minus padding, plus tap times
// dilation.
FB_HD int64_t tap_origin(int64_t out, int64_t stride, int64_t pad, int64_t tap, int64_t dilation) {
  return out * stride - pad + tap * dilation;
}

}  // namespace flowers_bench
