// Computes where taps sample, and brings values from device to shared memory.
#pragma once

#include <cmath>

#include "problem.cuh"

namespace flowers_bench {

// ---- Coordinates ----

// Holds an output position, taken apart once for all taps.
struct Place {
  int64_t image, at;  // which image, and which of its positions
  int32_t y, x;       // of the undeformed kernel's first tap, in pixels
  bool exists;        // false past the last position
};

FB_DEVICE Place place_of(const Geometry& g, int64_t position, int64_t end) {
  if (position >= end) return {0, 0, 0, 0, false};
  const int64_t image = position / g.positions(), at = position - image * g.positions();
  const int64_t row = at / g.out_width, column = at - row * g.out_width;
  return {image, at, static_cast<int32_t>(tap_origin(row, g.stride_h, g.pad_h, 0, g.dilation_h)),
          static_cast<int32_t>(tap_origin(column, g.stride_w, g.pad_w, 0, g.dilation_w)), true};
}

// Holds where one tap at one position samples: computed once for all channels of an offset group.
template <typename A>
struct Point {
  int64_t image;     // the image's first element
  int32_t index[4];  // pixels: top-left, top-right, bottom-left, bottom-right; -1 outside the image
  A weight_y[2], weight_x[2];
  A scale;      // the mask, or 1; 0 past the last position; NaN where the coordinate is not finite
  bool finite;  // whether the coordinate is

  FB_DEVICE A weight(int corner) const { return weight_y[corner >> 1] * weight_x[corner & 1]; }
};

template <typename T, typename A = Accumulator<T>>
FB_DEVICE Point<A> locate(const Problem<T>& p, const Place& place, int tap, int offset_group) {
  Point<A> point = {0, {-1, -1, -1, -1}, {0, 0}, {0, 0}, 0, true};
  if (!place.exists) return point;
  const Geometry& g = p.g;
  const int32_t width = static_cast<int32_t>(g.width), kernel_w = static_cast<int32_t>(g.kernel_w);
  const int32_t row = tap / kernel_w, column = tap - row * kernel_w;
  const int64_t plane = (place.image * g.offset_groups + offset_group) * g.taps() + tap;
  const T* const offset = p.offset + plane * 2 * g.positions() + place.at;
  const A y = A(place.y + row * static_cast<int32_t>(g.dilation_h)) + widen(offset[0]);
  const A x = A(place.x + column * static_cast<int32_t>(g.dilation_w)) + widen(offset[g.positions()]);
  const AxisSample<A> v = sample_axis(y, static_cast<int32_t>(g.height)), h = sample_axis(x, width);
  point.image = place.image * g.height * g.width * g.channels;
  point.finite = y - y == A(0) && x - x == A(0);
  point.scale = !point.finite ? A(NAN) : p.mask ? widen(p.mask[plane * g.positions() + place.at]) : A(1);
  point.weight_y[0] = v.weight_low, point.weight_y[1] = v.weight_high;
  point.weight_x[0] = h.weight_low, point.weight_x[1] = h.weight_high;
  for (int corner = 0; corner < 4; ++corner) {
    // A slope of 0 marks what lies outside. Not the weight: a pixel that counts may have weight 0, and be NaN.
    const bool inside =
        (corner >> 1 ? v.slope_high : v.slope_low) != A(0) && (corner & 1 ? h.slope_high : h.slope_low) != A(0);
    if (inside) point.index[corner] = (corner >> 1 ? v.high : v.low) * width + (corner & 1 ? h.high : h.low);
  }
  return point;
}

// Returns where a row of `length` values begins; one multiplication of 32 bits gives all 64 of the address.
template <typename T>
FB_DEVICE const T* row_of(const T* from, int row, int length) {
  const uint32_t bytes = static_cast<uint32_t>(length) * sizeof(T);
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(from) + uint64_t(static_cast<uint32_t>(row)) * bytes);
}

// ---- Tiles in shared memory ----

// Rows are padded by 16 bytes: still aligned for vector loads and tensor cores, and in different banks.
template <typename T, int Columns>
struct Strides {
  static constexpr int kPad = 16 / sizeof(T);
  static constexpr int kLeft = kDepth<T> + kPad, kLeftTransposed = kTile + kPad;
  static constexpr int kRight = Columns + kPad;
  static constexpr int kResult = Columns + 4;
};

template <typename T, int Columns = kTile>
struct alignas(128) Tiles {
  using A = Accumulator<T>;
  struct alignas(128) Factors {
    T left[kTile * Strides<T, Columns>::kLeft];                     // [row][depth], or transposed
    alignas(128) T right[kDepth<T> * Strides<T, Columns>::kRight];  // [depth][column]
  };
  union {
    Factors factors[2];                              // of the even and of the odd steps
    A result[kTile * Strides<T, Columns>::kResult];  // [row][column]
  };
  Point<A> points[kPoints<T>];
};

// Carries a thread's share of a matrix on its way from device to shared memory; zeros beyond the matrix's rows and
// columns.
template <typename T, int Rows, int Columns, int Stride, bool Wide>
struct Matrix {
  static constexpr bool kTransposed = false;
  static constexpr int kCount = Pack<T>::kCount, kPacks = Columns / kCount, kItems = Rows * kPacks / kThreads;
  Pack<T> pack[kItems];

  FB_DEVICE void fetch(const T* from, int length, int rows, int columns, int thread) {
    for (int i = 0; i < kItems; ++i) {
      const int item = thread + i * kThreads, row = item / kPacks, column = item % kPacks * kCount;
      pack[i] = load_pack<Wide>(row_of(from + column, row, length), row < rows ? columns - column : 0);
    }
  }

  FB_DEVICE void put(T* to, int thread) const {
    for (int i = 0; i < kItems; ++i) {
      const int item = thread + i * kThreads;
      store_pack(to + item / kPacks * Stride + item % kPacks * kCount, pack[i]);
    }
  }
};

// Carries the same of samples: the pixels travel, and are weighed when they have come. Rows are positions.
template <typename T, int Positions, int Channels, int Stride, bool Wide, bool Transposed>
struct Samples {
  using A = Accumulator<T>;
  static constexpr bool kTransposed = Transposed;
  static constexpr int kCount = Pack<T>::kCount, kPacks = Channels / kCount, kItems = Positions * kPacks / kThreads;
  const Point<A>* points;
  Pack<T> pixels[kItems][4];

  // Fetches `count` channels from `channel` on at the first `Positions` points.
  FB_DEVICE void fetch(const Problem<T>& p, const Point<A>* at, int channel, int count, int thread) {
    points = at;
    const int pixel = static_cast<int>(p.g.channels);
    for (int i = 0; i < kItems; ++i) {
      const int item = thread + i * kThreads, first = item % kPacks * kCount;
      const Point<A>& point = points[item / kPacks];
      const T* const from = p.input + point.image + (channel + first);
      for (int corner = 0; corner < 4; ++corner) {
        const int index = point.index[corner];
        pixels[i][corner] = load_pack<Wide>(row_of(from, index, pixel), index < 0 ? 0 : count - first);
      }
    }
  }

  FB_DEVICE void put(T* to, int thread) const {
    for (int i = 0; i < kItems; ++i) {
      const int item = thread + i * kThreads;
      const Point<A>& point = points[item / kPacks];
      A sum[kCount] = {};
      for (int corner = 0; corner < 4; ++corner) {
        const A weight = point.weight(corner) * point.scale;
        A value[kCount];
        widen_pack(pixels[i][corner], value);
        for (int j = 0; j < kCount; ++j) sum[j] += weight * value[j];
      }
      store_pack(to + item / kPacks * Stride + item % kPacks * kCount, narrowed_pack<T>(sum));
    }
  }
};

}  // namespace flowers_bench
