// What one image is drawn by, and the weights of a resize: whole numbers, so that every device computes the same bits.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FB_DRAW_INLINE __host__ __device__ inline
#else
#define FB_DRAW_INLINE inline
#endif

namespace flowers_bench::draw {

// Weights of pixels add up to 1 << kWeightBits; factors of colours have kColourBits behind the point.
constexpr int kWeightBits = 14, kColourBits = 11;
// What sums begin with, so that they are rounded when their bits behind the point are cut off.
constexpr int32_t kHalf = 1 << (kWeightBits - 1), kHalfColour = 1 << (kColourBits - 1);
// The shares of red, green and blue in a grey, in parts of 1 << kGreyBits.
constexpr int kGreyBits = 16, kGrey[3] = {19595, 38470, 7471};

// A row of the operator's `parameters`, in this order.
struct Parameters {
  int32_t top, left, height, width;  // the box that is cut out
  int32_t mirrored;
  int32_t matrix[9];  // of output red, green, blue: factors of red, green, blue
  int32_t offset[3];  // added to red, green, blue
  int32_t of_mean;    // how much of the mean grey is added to all three
};
constexpr int64_t kParameters = sizeof(Parameters) / sizeof(int32_t);

// Where an image's box lies in memory: its first pixel, and how many bytes are from one row to the next.
struct Box {
  const uint8_t* corner;
  int64_t row;
};

// Says whether colours are other than they were: where they are not, the arithmetic gives each back.
FB_DRAW_INLINE bool changes_colours(const Parameters& p) {
  constexpr int32_t kOne = 1 << kColourBits;
  bool same = p.of_mean == 0;
  for (int i = 0; i < 9; ++i) same = same && p.matrix[i] == (i % 4 == 0 ? kOne : 0);
  for (int i = 0; i < 3; ++i) same = same && p.offset[i] == 0;
  return !same;
}

// Returns the pixel of a sum of weighted pixels that began with kHalf.
FB_DRAW_INLINE uint8_t weighted(int32_t sum) { return static_cast<uint8_t>(sum >> kWeightBits); }

// Returns a channel of a coloured pixel: of its row of the matrix, and of what is added to it.
FB_DRAW_INLINE uint8_t coloured(const int32_t* factor, int32_t red, int32_t green, int32_t blue, int32_t added) {
  const int32_t sum = factor[0] * red + factor[1] * green + factor[2] * blue + added + kHalfColour;
  const int32_t value = sum >> kColourBits;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// The pixels of a line of `size` that one pixel of a line of `side` is made of: those whose distance from it is below
// `reach`, which is a pixel of the coarser of both lines. Distances are counted in 1 / (2 side) pixels of the longer.
struct Taps {
  int64_t size, side, reach, centre;
  int32_t first, count;
  int64_t total;  // of raw()

  FB_DRAW_INLINE Taps(int64_t size, int64_t side, int64_t at) : size(size), side(side), total(0) {
    reach = 2 * (size > side ? size : side);
    centre = (2 * at + 1) * size;
    // Pixel j lies at (2 j + 1) side.
    const int64_t from = (centre - reach) / side - 2, low = from < 0 ? 0 : from / 2;
    int64_t begin = low, end;
    while (begin < size && raw(begin) <= 0) ++begin;
    for (end = begin; end < size && raw(end) > 0; ++end) total += raw(end);
    first = static_cast<int32_t>(begin), count = static_cast<int32_t>(end - begin);
  }

  // Returns a pixel's weight in parts of `total`: what a triangle has there.
  FB_DRAW_INLINE int64_t raw(int64_t pixel) const {
    const int64_t away = (2 * pixel + 1) * side - centre;
    return reach - (away < 0 ? -away : away);
  }

  // Returns `sum` of `total` in parts of 1 << kWeightBits. Weights are differences of these, so that they add up.
  FB_DRAW_INLINE int64_t rounded(int64_t sum) const { return ((sum << (kWeightBits + 1)) + total) / (2 * total); }

  // Returns the weight of pixel first + i, in parts of 1 << kWeightBits; `sum` is raw() of those before it, and of it
  // afterwards.
  FB_DRAW_INLINE int16_t next_weight(int32_t i, int64_t& sum) const {
    const int64_t before = rounded(sum);
    sum += raw(first + i);
    return static_cast<int16_t>(rounded(sum) - before);
  }
};

// Returns what the mean grey adds to each channel of `pixels` whose channels add up to `sums`, with kColourBits behind
// the point.
FB_DRAW_INLINE int32_t added_grey(const int64_t (&sums)[3], int64_t pixels, int32_t of_mean) {
  const int64_t grey = kGrey[0] * sums[0] + kGrey[1] * sums[1] + kGrey[2] * sums[2];
  const int64_t mean = ((grey << 1) / pixels + 1) >> 1;  // with kGreyBits behind the point, at most 255 << 16
  return static_cast<int32_t>((mean * of_mean + (int64_t(1) << (kGreyBits - 1))) >> kGreyBits);
}

}  // namespace flowers_bench::draw
