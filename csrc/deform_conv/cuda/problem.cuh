// Describes one call, and how kernels divide it.
#pragma once

#include <cstdint>

#include "values.h"

namespace flowers_bench {

constexpr int kTile = 64;                // rows of a product's result, and columns of most
constexpr int kWays = kThreads / kTile;  // threads that share a row of the result

// What a product sums over, per step.
template <typename T>
constexpr int kDepth = sizeof(T) == 8 ? 16 : 32;

// Blocks that a multiprocessor shall hold at once: what the compiler saves registers for.
template <typename T>
constexpr int kResidentProducts = sizeof(T) == 8 ? 1 : 2;

// What the multiprocessors of a large GPU hold at once, two each.
constexpr int64_t kManyBlocks = 264;

// Points that are located at once: what fits into 48 KiB beside the tiles.
template <typename T>
constexpr int kPoints = sizeof(T) == 8 ? kTile : kThreads;

// Describes one call, all of it on the device. A = Accumulator<T>.
template <typename T>
struct Problem {
  using A = Accumulator<T>;
  Geometry g = {};
  // Of one weight group, and of one offset group. Here because a division costs the device as much as a sample.
  int group_channels = 0, group_outputs = 0, offset_channels = 0;
  // Channels that share a weight group and an offset group lie in segments of this length.
  int segment = 0;
  // Whether 128-bit accesses to channels, to a group's outputs and to sums of the input's gradient are all aligned.
  bool wide = false;
  const T* input = nullptr;     // (N, H, W, C)
  const T* offset = nullptr;    // (N, offset groups, taps, 2, OH * OW)
  const T* mask = nullptr;      // (N, offset groups, taps, OH * OW) or null
  const T* weight = nullptr;    // forward: (groups, taps, channels of a group, outputs of a group)
  const T* weight_t = nullptr;  // backward: (groups, taps, outputs of a group, channels of a group)
  const T* bias = nullptr;      // (OC) or null
  const T* grad = nullptr;      // (N, OH * OW, OC)
  T* out = nullptr;             // (N, OC, OH * OW), or (N, OH * OW, OC) where `out_rows`
  bool out_rows = false;
  // Null where not asked for.
  A* grad_input = nullptr;   // (N, H, W, C), zeroed
  T* grad_offset = nullptr;  // like offset
  T* grad_mask = nullptr;    // like mask
  T* grad_weight = nullptr;  // (OC, channels of a group, taps)
  T* grad_bias = nullptr;    // (OC)
  // Where blocks leave sums of their share, as many of each as its plan has parts. Forward, of the taps: (N, OH * OW,
  // OC) each. Backward, of the positions: grad_weight's in the order of `weight`, then grad_bias's.
  A* parts = nullptr;
  // Sum the input's gradient in a fixed order: slower, since fewer blocks can work at once.
  bool deterministic = false;

  FB_HD int64_t total() const { return g.batch * g.positions(); }
  FB_HD int64_t weight_size() const { return g.taps() * g.channels * group_outputs; }
};

// Says how a kernel divides a problem among blocks; made on the host.
template <typename T>
struct Plan {
  Problem<T> p;
  int64_t slices;  // of channels
  int64_t tiles;   // of a group's outputs, or of an image's rows
  int64_t blocks;  // of each part
  int64_t parts;   // sums that are added up afterwards
};

FB_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FB_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
// Returns what is left of a tile's `most`.
FB_HD int at_most(int most, int64_t rest) { return rest < most ? static_cast<int>(rest) : most; }

// Counts the slices of `kTile` channels, all of one segment, that cover the input.
template <typename T>
int64_t slices(const Problem<T>& p) {
  return p.g.channels / p.segment * ceil_div(p.segment, kTile);
}

template <typename T>
FB_DEVICE int slice_begin(const Problem<T>& p, int slice) {
  const int each = (p.segment + kTile - 1) / kTile;
  return slice / each * p.segment + slice % each * kTile;
}

template <typename T>
FB_DEVICE int slice_end(const Problem<T>& p, int channel) {
  const int end = (channel / p.segment + 1) * p.segment;
  return channel + kTile < end ? channel + kTile : end;
}

}  // namespace flowers_bench
