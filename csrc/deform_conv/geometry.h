// Where a deformable tap samples, and with which weights: the maths that every kernel shares.
//
// Dai et al. 2017 (arXiv:1703.06211), equations 2 to 4, with the modulation of Zhu et al. 2019
// (arXiv:1811.11168), equation 1. Scalar functions for host and device; no torch, no allocation.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FB_HD __host__ __device__ __forceinline__
#else
#define FB_HD inline
#endif

namespace flowers_bench {

// Shapes of one call, as torch names them. Every count is 64-bit: an image index times its size may pass 2^31.
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

// One bilinear sample: four neighbours as flat pixel indices (y * width + x) and their weights.
// A neighbour outside the image has weight 0 and index 0, so that it may be read and ignored.
// `finite` is false where the coordinate is NaN or infinite: the sample is then NaN by definition.
template <typename T>
struct Sample {
  int64_t index[4];  // top-left, top-right, bottom-left, bottom-right
  T weight[4];
  // d weight / d y and d weight / d x, for the gradient of the offsets; 0 outside the image.
  T weight_dy[4];
  T weight_dx[4];
  bool finite;
};

// Samples at (y, x) in pixels. Zero padding: a point at or beyond one pixel outside contributes nothing
// (torchvision's rule: y <= -1 or y >= height samples 0).
template <typename T>
FB_HD Sample<T> sample_at(T y, T x, int64_t height, int64_t width) {
  Sample<T> s = {};
  s.finite = (y - y == T(0)) && (x - x == T(0));
  // The comparison is written so that NaN fails it: nothing below converts a NaN to an integer.
  const bool inside = y > T(-1) && x > T(-1) && y < T(height) && x < T(width);
  if (!s.finite || !inside) return s;
  const int64_t top = static_cast<int64_t>(y + T(1)) - 1;  // floor, since y + 1 > 0
  const int64_t left = static_cast<int64_t>(x + T(1)) - 1;
  const T fy = y - T(top), fx = x - T(left);
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t down = corner >> 1, right = corner & 1;
    const int64_t row = top + down, column = left + right;
    if (row < 0 || row >= height || column < 0 || column >= width) continue;
    const T wy = down ? fy : T(1) - fy, wx = right ? fx : T(1) - fx;
    s.index[corner] = row * width + column;
    s.weight[corner] = wy * wx;
    s.weight_dy[corner] = down ? wx : -wx;
    s.weight_dx[corner] = right ? wy : -wy;
  }
  return s;
}

// The undeformed coordinate of a tap: output row (or column) times stride, minus padding, plus tap times dilation.
FB_HD int64_t tap_origin(int64_t out, int64_t stride, int64_t pad, int64_t tap, int64_t dilation) {
  return out * stride - pad + tap * dilation;
}

}  // namespace flowers_bench
