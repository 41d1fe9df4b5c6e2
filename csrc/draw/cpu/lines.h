// The loops over a line, of any processor and of those with AVX2: plain pointers, no torch, no allocation.
#pragma once

#include <cstdint>

namespace flowers_bench::draw {

// The weights of a resized line: output `at` is made of `taps` pixels of `size` from first[at] on, the last of which
// may weigh nothing and lie outside.
struct Line {
  int64_t size, side, taps;  // taps: a multiple of four
  const int32_t* first;
  const int16_t* weight;  // [side][taps]
};

// Weights of four taps of two pixels, each pair of them once for every channel: as AVX2 multiplies.
struct alignas(32) Pairs {
  int16_t near[16], far[16];
};
// Pixels that are made at once, and bytes that may be read behind a line.
constexpr int64_t kAtOnce = 8, kPadding = 64;

// Counts the pairs that a line needs.
inline int64_t pairs_of(const Line& line) {
  return (line.side + kAtOnce - 1) / kAtOnce * (kAtOnce / 2) * (line.taps / 4);
}

struct Kernels {
  // Brings weights into pairs.
  void (*prepare)(const Line& line, Pairs* to);
  // Sums rows from `from` on, `row` bytes apart, to one line of so many bytes: output row `at`.
  void (*down)(const uint8_t* from, int64_t row, const Line& line, int64_t at, int64_t bytes, uint8_t* to);
  // Resizes a line of pixels to line.side of them; adds up the channels of these.
  void (*across)(const uint8_t* from, const Line& line, const Pairs* pairs, uint8_t* to, int64_t (&sums)[3]);
  // Colours pixels by a matrix and by what is added, with kColourBits behind the point.
  void (*colour)(const uint8_t* from, int64_t count, const int32_t (&matrix)[9], const int32_t (&added)[3],
                 uint8_t* to);
};

Kernels plain_kernels();
Kernels avx2_kernels();

}  // namespace flowers_bench::draw
