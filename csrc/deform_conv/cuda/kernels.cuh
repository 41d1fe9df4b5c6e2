// Deformable convolution as products of tiles that are sampled, multiplied and forgotten in shared memory.
//
// All three kernels that multiply (forward, gradients of the columns, gradient of the weight) compute tiles of 64 rows
// in steps with the same pair of factors in shared memory and the same product: tensor cores for half and bfloat16
// (float32 sums), fused multiply-adds for float and double. Pairs take turns, so that a step's loads travel while the
// step before is multiplied, and one barrier per step is enough. The column matrix never lies in device memory.
// Input and output gradient are channels-last, so that a sample's channels are loaded 128 bits at a time.
//
// Not done, each of which should pay: asynchronous copies; several taps in one step where a layer has few channels (3
// channels use 3 of 32 steps' depth); a kernel of its own for depthwise layers, which are correct here but slow; TF32;
// sums of the input's gradient in shared memory before they go out as atomics; weights in the order in which they come.
// docs/performance.md says what was measured.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>

#include "launch.h"

namespace flowers_bench {

constexpr int kTile = 64;  // rows of a product's result, and columns of most
constexpr int kWays = kThreads / kTile;  // threads that share a row of the result

// What a product sums over, per step.
template <typename T>
constexpr int kDepth = sizeof(T) == 8 ? 16 : 32;

// Blocks that a multiprocessor shall hold at once: what the compiler saves registers for.
template <typename T>
constexpr int kResidentProducts = sizeof(T) == 8 ? 1 : 2;

// Points that are located at once: what fits into 48 KiB beside the tiles.
template <typename T>
constexpr int kPoints = sizeof(T) == 8 ? kTile : kThreads;

// One call, all of it on the device. A = Accumulator<T>.
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
  // Where blocks leave sums of their share, as many of each as its plan has parts. Forward, of the taps: (N, OH * OW, OC)
  // each. Backward, of the positions: grad_weight's in the order of `weight`, then grad_bias's.
  A* parts = nullptr;
  // Sum the input's gradient in a fixed order: slower, since fewer blocks can work at once.
  bool deterministic = false;

  FB_HD int64_t total() const { return g.batch * g.positions(); }
  FB_HD int64_t weight_size() const { return g.taps() * g.channels * group_outputs; }
};

// How a kernel divides a problem among blocks; made on the host.
template <typename T>
struct Plan {
  Problem<T> p;
  int64_t slices;  // of channels
  int64_t tiles;   // of a group's outputs
  int64_t blocks;  // of each part
  int64_t parts;   // sums that are added up afterwards
};

FB_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FB_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
// What is left of a tile's `most`.
FB_HD int at_most(int most, int64_t rest) { return rest < most ? static_cast<int>(rest) : most; }

// The slices of `kTile` channels, all of one segment, that cover the input, counted.
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

// ---- Coordinates ----

// An output position, taken apart once for all taps.
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

// Where one tap at one position samples: computed once for all channels of an offset group.
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
    const bool inside = (corner >> 1 ? v.slope_high : v.slope_low) != A(0) &&
                        (corner & 1 ? h.slope_high : h.slope_low) != A(0);
    if (inside) point.index[corner] = (corner >> 1 ? v.high : v.low) * width + (corner & 1 ? h.high : h.low);
  }
  return point;
}

// Rows of `length` values; one multiplication of 32 bits gives all 64 of the address.
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
    T left[kTile * Strides<T, Columns>::kLeft];  // [row][depth], or transposed
    alignas(128) T right[kDepth<T> * Strides<T, Columns>::kRight];  // [depth][column]
  };
  union {
    Factors factors[2];  // of the even and of the odd steps
    A result[kTile * Strides<T, Columns>::kResult];  // [row][column]
  };
  Point<A> points[kPoints<T>];
};

// A thread's share of a matrix on its way from device to shared memory; zeros beyond the matrix's rows and columns.
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

// The same of samples: the pixels travel, and are weighed when they have come. Rows are positions.
template <typename T, int Positions, int Channels, int Stride, bool Wide, bool Transposed>
struct Samples {
  using A = Accumulator<T>;
  static constexpr bool kTransposed = Transposed;
  static constexpr int kCount = Pack<T>::kCount, kPacks = Channels / kCount, kItems = Positions * kPacks / kThreads;
  const Point<A>* points;
  Pack<T> pixels[kItems][4];

  // `count` channels from `channel` on at the first `Positions` points.
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

// ---- Products ----

// result += left * right, each thread a square of 4 x 4 values, or, of a wide result, two of them 64 columns apart: as
// many loads of four as there are multiplications by 8.
template <typename T, int Columns, bool Transposed>
struct ThreadProduct {
  using A = Accumulator<T>;
  using S = Strides<T, Columns>;
  static constexpr int kEach = kTile / 16, kSquares = Columns / kTile;
  static constexpr int kAligned = kEach * sizeof(T) < 16 ? kEach * sizeof(T) : 16;
  A sum[kSquares][kEach][kEach];

  FB_DEVICE static int row(int thread) { return thread / 16 * kEach; }
  FB_DEVICE static int column(int thread, int square) { return square * kTile + thread % 16 * kEach; }

  FB_DEVICE void clear(int) {
    for (int square = 0; square < kSquares; ++square) {
      for (int i = 0; i < kEach; ++i) {
        for (int j = 0; j < kEach; ++j) sum[square][i][j] = A(0);
      }
    }
  }

  FB_DEVICE static void load(const T* from, A (&to)[kEach]) {
    from = static_cast<const T*>(__builtin_assume_aligned(from, kAligned));
    for (int i = 0; i < kEach; ++i) to[i] = widen(from[i]);
  }

  FB_DEVICE void add(const typename Tiles<T, Columns>::Factors& f, int thread) {
    for (int k = 0; k < kDepth<T>; k += kEach) {
      A left[kEach][kEach];  // [depth][row] if transposed, else [row][depth]
      for (int i = 0; i < kEach; ++i) {
        load(Transposed ? f.left + (k + i) * S::kLeftTransposed + row(thread)
                        : f.left + (row(thread) + i) * S::kLeft + k,
             left[i]);
      }
      for (int square = 0; square < kSquares; ++square) add(f, k, left, square, thread);
    }
  }

  FB_DEVICE void add(const typename Tiles<T, Columns>::Factors& f, int k, const A (&left)[kEach][kEach], int square,
                     int thread) {
    for (int at = 0; at < kEach; ++at) {
      A right[kEach];
      load(f.right + (k + at) * S::kRight + column(thread, square), right);
      for (int i = 0; i < kEach; ++i) {
        for (int j = 0; j < kEach; ++j) sum[square][i][j] += (Transposed ? left[at][i] : left[i][at]) * right[j];
      }
    }
  }

  FB_DEVICE void store(A* result, int thread) const {
    for (int square = 0; square < kSquares; ++square) {
      for (int i = 0; i < kEach; ++i) {
        A* const to = result + (row(thread) + i) * S::kResult + column(thread, square);
        for (int j = 0; j < kEach; ++j) to[j] = sum[square][i][j];
      }
    }
  }
};

// The same by tensor cores: each of 8 warps has 32 columns, and 16 rows or, of a wide result, 32.
template <typename T, int Columns, bool Transposed>
struct WarpProduct {
  using S = Strides<T, Columns>;
  static constexpr int kAcross = Columns / 32;  // warps that share their rows
  static constexpr int kRows = kTile * kAcross / (kThreads / kWarp) / 16, kColumns = 2;  // squares of 16 of each
  WarpSum sum[kRows][kColumns];

  FB_DEVICE static int row(int thread) { return thread / kWarp / kAcross * 16 * kRows; }
  FB_DEVICE static int column(int thread) { return thread / kWarp % kAcross * 16 * kColumns; }

  FB_DEVICE void clear(int thread) {
    if (!speaks_for_warp(thread)) return;
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) sum[i][j].clear();
    }
  }

  FB_DEVICE void add(const typename Tiles<T, Columns>::Factors& f, int thread) {
    if (!speaks_for_warp(thread)) return;
    for (int k = 0; k < kDepth<T>; k += 16) {
      WarpLeft<T, Transposed> left[kRows];
      for (int i = 0; i < kRows; ++i) {
        const int at = row(thread) + 16 * i;
        if constexpr (Transposed) {
          left[i].load(f.left + k * S::kLeftTransposed + at, S::kLeftTransposed);
        } else {
          left[i].load(f.left + at * S::kLeft + k, S::kLeft);
        }
      }
      for (int j = 0; j < kColumns; ++j) {
        WarpRight<T> right;
        right.load(f.right + k * S::kRight + column(thread) + 16 * j, S::kRight);
        for (int i = 0; i < kRows; ++i) multiply_add(left[i], right, sum[i][j]);
      }
    }
  }

  FB_DEVICE void store(float* result, int thread) const {
    if (!speaks_for_warp(thread)) return;
    for (int i = 0; i < kRows; ++i) {
      float* const to = result + (row(thread) + 16 * i) * S::kResult + column(thread);
      for (int j = 0; j < kColumns; ++j) sum[i][j].store(to + 16 * j, S::kResult);
    }
  }
};

template <typename T, int Columns, bool Transposed, bool TensorCores>
struct ProductOf {
  using type = ThreadProduct<T, Columns, Transposed>;
};
template <typename T, int Columns, bool Transposed>
struct ProductOf<T, Columns, Transposed, true> {
  using type = WarpProduct<T, Columns, Transposed>;
};
template <typename T, int Columns, bool Transposed>
using Product = typename ProductOf<T, Columns, Transposed, HasTensorCores<T>::value>::type;

// What a thread carries from step to step. A step fetches `left` and `right`, then calls `step`.
template <typename T, int Columns, bool Wide, typename Left>
struct Work {
  Left left;
  Matrix<T, kDepth<T>, Columns, Strides<T, Columns>::kRight, Wide> right;
  Product<T, Columns, Left::kTransposed> product;

  // Multiplies what the step before has put, and puts what was fetched meanwhile.
  FB_DEVICE void step(Tiles<T, Columns>& s, int turn, int thread) {
    finish(s, turn, thread);
    left.put(s.factors[turn % 2].left, thread);
    right.put(s.factors[turn % 2].right, thread);
  }

  FB_DEVICE void finish(const Tiles<T, Columns>& s, int turns, int thread) {
    if (turns > 0) product.add(s.factors[(turns - 1) % 2], thread);
  }
};

// The first rows and columns of a result, each value as `finished(value, column)`, to rows of `length` values.
template <int Columns, typename A, typename To, typename F>
FB_DEVICE void write_rows(const A* result, To* to, int64_t length, int rows, int columns, int thread, const F& finished) {
  const int column = thread % Columns;
  if (column >= columns) return;
  for (int row = thread / Columns; row < rows; row += kThreads / Columns) {
    to[row * length + column] = finished(result[row * Strides<A, Columns>::kResult + column], column);
  }
}

template <int Columns, typename A>
FB_DEVICE void write_rows(const A* result, A* to, int64_t length, int rows, int columns, int thread) {
  write_rows<Columns>(result, to, length, rows, columns, thread, [](A value, int) { return value; });
}

// ---- Forward ----

// What the multiprocessors of a large GPU hold at once, two each.
constexpr int64_t kManyBlocks = 264;

// A block: 64 positions of any images, `Columns` outputs of one weight group, all taps or, where blocks are few, some.
template <typename T, int Columns, bool Wide>
struct Forward {
  using A = Accumulator<T>;
  using S = Strides<T, Columns>;
  using Params = Plan<T>;
  using Shared = Tiles<T, Columns>;
  static constexpr int kResident = kResidentProducts<T>;
  struct Registers : Work<T, Columns, Wide, Samples<T, kTile, kDepth<T>, S::kLeft, Wide, false>> {
    Place place;
  };
  using Crew = Team<Forward>;

  // Parts follow from shapes alone, so that a shape always sums in the same order.
  static Params plan(const Problem<T>& p) {
    const int64_t tiles = ceil_div(p.group_outputs, Columns), blocks = ceil_div(p.total(), kTile) * p.g.groups * tiles;
    const int64_t room = blocks == 0 ? 1 : kManyBlocks / blocks;
    return {p, 1, tiles, blocks, room == 0 ? 1 : least(p.g.taps(), room)};
  }

  static FB_DEVICE void run(const Params& q, int64_t block, const Crew& team) {
    const Problem<T>& p = q.p;
    // Neighbouring blocks sample at the same places.
    const int64_t part = block / q.blocks, tile = block - part * q.blocks, column = tile % (q.tiles * p.g.groups);
    const int64_t first = tile / (q.tiles * p.g.groups) * kTile;
    const int group = static_cast<int>(column / q.tiles), output = static_cast<int>(column % q.tiles) * Columns;
    team.phase([&](int thread, Registers& r) {
      r.product.clear(thread);
      r.place = place_of(p.g, first + thread % kTile, p.total());
    });
    int turn = 0;
    const int end = static_cast<int>((part + 1) * p.g.taps() / q.parts);
    for (int tap = static_cast<int>(part * p.g.taps() / q.parts); tap < end; tap += kPoints<T> / kTile) {
      add_taps(p, group, output, tap, at_most(tap + kPoints<T> / kTile, end), turn, team);
    }
    team.phase([&](int thread, Registers& r) { r.finish(team.shared, turn, thread); });
    team.phase([&](int thread, Registers& r) { r.product.store(team.shared.result, thread); });
    team.phase([&](int thread, Registers& r) {
      const int outputs = at_most(Columns, p.group_outputs - output), positions = at_most(kTile, p.total() - first);
      const int64_t o = int64_t(group) * p.group_outputs + output;
      if (q.parts > 1) {
        A* const to = p.parts + (part * p.total() + first) * p.g.out_channels + o;
        write_rows<Columns>(team.shared.result, to, p.g.out_channels, positions, outputs, thread);
      } else {
        write(p, first, r.place, o, positions, outputs, team.shared.result, thread);
      }
    });
  }

  // Taps [first, end), whose points fit into shared memory together, of all channels of a weight group.
  static FB_DEVICE void add_taps(const Problem<T>& p, int group, int output, int first, int end, int& turn,
                                 const Crew& team) {
    Shared& s = team.shared;
    const int channels = p.group_channels, outputs = p.group_outputs;
    for (int segment = 0; segment < channels; segment += p.segment) {
      team.phase([&](int thread, Registers& r) {
        const int tap = first + thread / kTile;
        if (tap < end) s.points[thread] = locate(p, r.place, tap, (group * channels + segment) / p.offset_channels);
      });
      for (int tap = first; tap < end; ++tap) {
        const T* weight = p.weight + ((group * p.g.taps() + tap) * channels + segment) * outputs + output;
        for (int channel = 0; channel < p.segment; channel += kDepth<T>, ++turn) {
          team.phase([&](int thread, Registers& r) {
            r.left.fetch(p, s.points + (tap - first) * kTile, group * channels + segment + channel, p.segment - channel,
                         thread);
            r.right.fetch(weight, outputs, p.segment - channel, outputs - output, thread);
            r.step(s, turn, thread);
          });
          weight += kDepth<T> * int64_t(outputs);
        }
      }
    }
  }

  // Neighbouring threads write neighbouring values, whichever way the output lies.
  static FB_DEVICE void write(const Problem<T>& p, int64_t first, const Place& place, int64_t o, int positions,
                              int outputs, const A* result, int thread) {
    const auto finished = [&](A value, int column) {
      return narrowed<T>(value + (p.bias ? widen(p.bias[o + column]) : A(0)));
    };
    if (p.out_rows) {
      T* const to = p.out + first * p.g.out_channels + o;
      write_rows<Columns>(result, to, p.g.out_channels, positions, outputs, thread, finished);
    } else if (thread % kTile < positions) {
      // `place` is that of row `thread % kTile`.
      T* const to = p.out + (place.image * p.g.out_channels + o) * p.g.positions() + place.at;
      for (int column = thread / kTile; column < outputs; column += kWays) {
        to[column * p.g.positions()] = finished(result[thread % kTile * S::kResult + column], column);
      }
    }
  }
};

// Adds the parts up in their order.
template <typename T>
struct AddTaps {
  using A = Accumulator<T>;
  struct Params {
    Problem<T> p;
    int64_t count;
    FB_HD int64_t size() const { return p.total() * p.g.out_channels; }
  };
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 1;

  static int64_t blocks(const Params& q) { return ceil_div(q.size(), kThreads); }

  static FB_DEVICE void run(const Params& q, int64_t block, const Team<AddTaps>& team) {
    team.phase([&](int thread, Registers&) {
      const Problem<T>& p = q.p;
      const int64_t i = block * kThreads + thread, outputs = p.g.out_channels;
      if (i >= q.size()) return;
      const int64_t position = i / outputs, o = i - position * outputs;
      A sum = p.bias ? widen(p.bias[o]) : A(0);
      for (int64_t part = 0; part < q.count; ++part) sum += p.parts[part * q.size() + i];
      const int64_t image = position / p.g.positions(), at = position - image * p.g.positions();
      p.out[p.out_rows ? i : (image * outputs + o) * p.g.positions() + at] = narrowed<T>(sum);
    });
  }
};

// ---- Gradients of input, offset and mask ----

// The gradient of a column is a product of the output's gradient and the weight. From there, each channel's thread
// adds to the four pixels (the input's gradient), and each position's four threads sum over the channels (offset and
// mask). `Ordered` says who adds to the input:
// - false: a block has 64 positions, one tap, all channels of an offset group; blocks meet in atomics. Offsets and
//   masks belong to one block alone and are summed in a fixed order.
// - true: a block has an image, all taps, 64 channels, and goes through the positions in their order, each pixel of a
//   channel in the hands of one thread: nobody else adds to it. Only the input's gradient.
template <typename T, bool Wide, bool Ordered>
struct BackwardColumns {
  using A = Accumulator<T>;
  using Params = Plan<T>;
  using S = Strides<T, kTile>;
  using Shared = Tiles<T>;
  static constexpr int kResident = kResidentProducts<T>;
  struct Registers : Work<T, kTile, Wide, Matrix<T, kTile, kDepth<T>, S::kLeft, Wide>> {
    A sum_y, sum_x, sum_mask;
  };
  using Crew = Team<BackwardColumns>;

  static Params plan(const Problem<T>& p) {
    const int64_t tiles = ceil_div(p.total(), kTile) * p.g.taps() * p.g.offset_groups;
    return {p, slices(p), 1, Ordered ? p.g.batch * slices(p) : tiles, 1};
  }

  static FB_DEVICE void run(const Params& q, int64_t block, const Crew& team) {
    const Problem<T>& p = q.p;
    if constexpr (Ordered) {
      const int64_t image = block / q.slices, begin = image * p.g.positions(), end = begin + p.g.positions();
      const int channel = slice_begin(p, static_cast<int>(block - image * q.slices)), stop = slice_end(p, channel);
      for (int tap = 0; tap < p.g.taps(); ++tap) {
        for (int64_t first = begin; first < end; first += kTile) add_tap(p, first, end, tap, channel, stop, team);
      }
    } else {
      const int64_t tile = block / (p.g.offset_groups * p.g.taps()), first = tile * kTile;
      const int rest = static_cast<int>(block - tile * p.g.offset_groups * p.g.taps());
      const int tap = rest / static_cast<int>(p.g.offset_groups), group = rest % static_cast<int>(p.g.offset_groups);
      const int channel = group * p.offset_channels;
      add_tap(p, first, p.total(), tap, channel, channel + p.offset_channels, team);
      if (p.grad_offset || p.grad_mask) finish(p, first, tap, group, team);
    }
  }

  // Channels [channel, last) of one offset group.
  static FB_DEVICE void add_tap(const Problem<T>& p, int64_t first, int64_t end, int tap, int channel, int last,
                                const Crew& team) {
    Shared& s = team.shared;
    team.phase([&](int thread, Registers& r) {
      r.sum_y = r.sum_x = r.sum_mask = A(0);
      if (thread >= kTile) return;
      s.points[thread] = locate(p, place_of(p.g, first + thread, end), tap, channel / p.offset_channels);
    });
    for (int stop; channel < last; channel = stop) {
      stop = slice_end(p, channel);
      multiply(p, first, at_most(kTile, end - first), tap, channel, stop - channel, team);
      team.phase([&](int thread, Registers& r) {
        if (p.grad_input) scatter<Wide && !Ordered ? AtomicWidth<A>::value : 1>(p, s, channel, stop - channel, thread);
        if (!Ordered && (p.grad_offset || p.grad_mask)) sum_channels(p, s, channel, stop - channel, thread, r);
      });
    }
  }

  // The columns' gradients into s.result[position][channel], of `count` channels from `channel` on.
  static FB_DEVICE void multiply(const Problem<T>& p, int64_t first, int positions, int tap, int channel, int count,
                                 const Crew& team) {
    Shared& s = team.shared;
    const int group = channel / p.group_channels, channels = p.group_channels, outputs = p.group_outputs;
    const T* grad = p.grad + first * p.g.out_channels + int64_t(group) * outputs;
    const T* weight = p.weight_t + (group * p.g.taps() + tap) * outputs * channels + channel - group * channels;
    team.phase([&](int thread, Registers& r) { r.product.clear(thread); });
    int turn = 0;
    for (int output = 0; output < outputs; output += kDepth<T>, ++turn) {
      team.phase([&](int thread, Registers& r) {
        r.left.fetch(grad, static_cast<int>(p.g.out_channels), positions, outputs - output, thread);
        r.right.fetch(weight, channels, outputs - output, count, thread);
        r.step(s, turn, thread);
      });
      grad += kDepth<T>, weight += kDepth<T> * int64_t(channels);
    }
    team.phase([&](int thread, Registers& r) { r.finish(s, turn, thread); });
    team.phase([&](int thread, Registers& r) { r.product.store(s.result, thread); });
  }

  // A warp's threads have neighbouring channels, `Width` each: their atomics to one pixel fill whole sectors. Threads of
  // one channel share the rows or, where the order counts, the pixels: each has every fourth to itself.
  template <int Width>
  static FB_DEVICE void scatter(const Problem<T>& p, const Shared& s, int channel, int count, int thread) {
    constexpr int kAcross = kTile / Width, kShared = kThreads / kAcross;
    const int column = thread % kAcross * Width, mine = thread / kAcross;
    if (column >= count) return;
    for (int row = Ordered ? 0 : mine; row < kTile; row += Ordered ? 1 : kShared) {
      const Point<A>& point = s.points[row];
      for (int corner = 0; corner < 4; ++corner) {
        if (point.index[corner] < 0 || (Ordered && point.index[corner] % kShared != mine)) continue;
        A add[Width];
        for (int i = 0; i < Width; ++i) {
          add[i] = s.result[row * S::kResult + column + i] * point.scale * point.weight(corner);
        }
        atomic_add(p.grad_input + point.image + point.index[corner] * p.g.channels + channel + column, add);
      }
    }
  }

  static FB_DEVICE void sum_channels(const Problem<T>& p, const Shared& s, int channel, int count, int thread,
                                     Registers& r) {
    constexpr int kCount = Pack<T>::kCount;
    const int row = thread / kWays;
    const Point<A>& point = s.points[row];
    const A* const result = s.result + row * S::kResult;
    for (int begin = thread % kWays * kCount; begin < count; begin += kWays * kCount) {
      for (int corner = 0; corner < 4; ++corner) {
        if (point.index[corner] < 0) continue;
        const int pixel = static_cast<int>(p.g.channels);
        const T* const from = row_of(p.input + point.image + (channel + begin), point.index[corner], pixel);
        A value[kCount], dot = A(0);
        widen_pack(load_pack<Wide>(from, count - begin), value);
        for (int i = 0; i < kCount; ++i) dot += i < count - begin ? result[begin + i] * value[i] : A(0);
        const A weight_x = point.weight_x[corner & 1], weight_y = point.weight_y[corner >> 1];
        r.sum_y += dot * (corner >> 1 ? weight_x : -weight_x);
        r.sum_x += dot * (corner & 1 ? weight_y : -weight_y);
        r.sum_mask += dot * weight_y * weight_x;
      }
    }
  }

  // The four threads of each position put their sums together, always in the same order.
  static FB_DEVICE void finish(const Problem<T>& p, int64_t first, int tap, int group, const Crew& team) {
    A(*const sums)[3] = reinterpret_cast<A(*)[3]>(team.shared.result);
    team.phase([&](int thread, Registers& r) {
      sums[thread][0] = r.sum_y, sums[thread][1] = r.sum_x, sums[thread][2] = r.sum_mask;
    });
    team.phase([&](int thread, Registers&) {
      if (thread >= kTile) return;
      const Place place = place_of(p.g, first + thread, p.total());
      if (!place.exists) return;
      const Point<A>& point = team.shared.points[thread];
      A total[3] = {A(0), A(0), A(0)};
      for (int way = 0; way < kWays; ++way) {
        for (int i = 0; i < 3; ++i) total[i] += sums[thread * kWays + way][i];
      }
      for (int i = 0; i < 3; ++i) total[i] = point.finite ? total[i] * (i < 2 ? point.scale : A(1)) : A(NAN);
      const int64_t plane = (place.image * p.g.offset_groups + group) * p.g.taps() + tap, positions = p.g.positions();
      if (p.grad_offset) p.grad_offset[plane * 2 * positions + place.at] = narrowed<T>(total[0]);
      if (p.grad_offset) p.grad_offset[(plane * 2 + 1) * positions + place.at] = narrowed<T>(total[1]);
      if (p.grad_mask) p.grad_mask[plane * positions + place.at] = narrowed<T>(total[2]);
    });
  }
};

// ---- Gradients of weight and bias ----

// How many blocks share the positions: some 500 in all, none with less than 256 positions. Of shapes alone, so that
// a shape always sums in the same order.
FB_HD int64_t share_positions(int64_t total, int64_t blocks) {
  const int64_t most = ceil_div(total, 256), wanted = ceil_div(512, blocks);
  return most < 1 ? 1 : least(most, wanted);
}

// A block: 64 channels of a segment, `Columns` outputs of their weight group, one tap, a share of the positions.
template <typename T, int Columns, bool Wide>
struct BackwardWeight {
  using S = Strides<T, Columns>;
  using Params = Plan<T>;
  using Shared = Tiles<T, Columns>;
  static constexpr int kResident = kResidentProducts<T>;
  using Registers = Work<T, Columns, Wide, Samples<T, kDepth<T>, kTile, S::kLeftTransposed, Wide, true>>;

  static Params plan(const Problem<T>& p) {
    const int64_t tiles = ceil_div(p.group_outputs, Columns), blocks = tiles * p.g.taps() * slices(p);
    return {p, slices(p), tiles, blocks, share_positions(p.total(), blocks)};
  }

  static FB_DEVICE void run(const Params& q, int64_t block, const Team<BackwardWeight>& team) {
    const Problem<T>& p = q.p;
    const int64_t part = block / q.blocks;
    const int64_t share = ceil_div(p.total(), q.parts), end = least((part + 1) * share, p.total());
    const int rest = static_cast<int>(block - part * q.blocks), tiles = static_cast<int>(q.tiles);
    const int taps = static_cast<int>(p.g.taps()), tap = rest / tiles % taps, output = rest % tiles * Columns;
    const int channel = slice_begin(p, rest / (tiles * taps)), count = slice_end(p, channel) - channel;
    const int group = channel / p.group_channels, outputs = p.group_outputs;
    Shared& s = team.shared;
    team.phase([&](int thread, Registers& r) { r.product.clear(thread); });
    int turn = 0;
    for (int64_t located = part * share; located < end; located += kPoints<T>) {
      team.phase([&](int thread, Registers&) {
        if (thread >= kPoints<T>) return;
        s.points[thread] = locate(p, place_of(p.g, located + thread, end), tap, channel / p.offset_channels);
      });
      const int positions = at_most(kPoints<T>, end - located);
      const T* grad = p.grad + located * p.g.out_channels + int64_t(group) * outputs + output;
      for (int first = 0; first < positions; first += kDepth<T>, ++turn) {
        team.phase([&](int thread, Registers& r) {
          r.left.fetch(p, s.points + first, channel, count, thread);
          r.right.fetch(grad, static_cast<int>(p.g.out_channels), positions - first, outputs - output, thread);
          r.step(s, turn, thread);
        });
        grad += kDepth<T> * p.g.out_channels;
      }
    }
    team.phase([&](int thread, Registers& r) { r.finish(s, turn, thread); });
    team.phase([&](int thread, Registers& r) { r.product.store(s.result, thread); });
    team.phase([&](int thread, Registers&) {
      const int64_t row = (group * p.g.taps() + tap) * p.group_channels + channel - group * p.group_channels;
      Accumulator<T>* const to = p.parts + part * p.weight_size() + row * outputs + output;
      write_rows<Columns>(s.result, to, outputs, count, outputs - output, thread);
    });
  }
};

// A block: 64 outputs, a share of the positions.
template <typename T>
struct BackwardBias {
  using A = Accumulator<T>;
  using Params = Plan<T>;
  struct Shared {
    A sums[kThreads];
  };
  struct Registers {};
  static constexpr int kResident = 1;

  static Params plan(const Problem<T>& p) {
    const int64_t tiles = ceil_div(p.g.out_channels, kTile);
    return {p, 1, tiles, tiles, share_positions(p.total(), tiles)};
  }

  static FB_DEVICE void run(const Params& q, int64_t block, const Team<BackwardBias>& team) {
    const Problem<T>& p = q.p;
    const int64_t part = block / q.blocks, first = (block - part * q.blocks) * kTile;
    const int64_t share = ceil_div(p.total(), q.parts), end = least((part + 1) * share, p.total());
    team.phase([&](int thread, Registers&) {
      const int64_t o = first + thread % kTile;
      A sum = A(0);
      for (int64_t i = part * share + thread / kTile; i < end && o < p.g.out_channels; i += kWays) {
        sum += widen(p.grad[i * p.g.out_channels + o]);
      }
      team.shared.sums[thread] = sum;
    });
    team.phase([&](int thread, Registers&) {
      if (thread >= kTile || first + thread >= p.g.out_channels) return;
      A sum = A(0);
      for (int way = 0; way < kWays; ++way) sum += team.shared.sums[way * kTile + thread];
      p.parts[part * p.g.out_channels + first + thread] = sum;
    });
  }
};

// Adds the parts up in their order, from (groups, taps, channels, outputs) to (groups * outputs, channels, taps).
template <typename T>
struct AddParts {
  using A = Accumulator<T>;
  struct Params {
    const A* parts;
    int64_t count, groups, taps, channels, outputs;
    T* to;
    FB_HD int64_t size() const { return groups * taps * channels * outputs; }
  };
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 1;

  static int64_t blocks(const Params& p) { return ceil_div(p.size(), kThreads); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<AddParts>& team) {
    team.phase([&](int thread, Registers&) {
      const int64_t i = block * kThreads + thread;
      if (i >= p.size()) return;
      A sum = A(0);
      for (int64_t part = 0; part < p.count; ++part) sum += p.parts[part * p.size() + i];
      const int64_t output = i % p.outputs, channel = i / p.outputs % p.channels;
      const int64_t tap = i / (p.outputs * p.channels) % p.taps, group = i / (p.outputs * p.channels * p.taps);
      p.to[((group * p.outputs + output) * p.channels + channel) * p.taps + tap] = narrowed<T>(sum);
    });
  }
};

// ---- What the host calls ----

// Derives what follows from shapes and addresses; to be called once they are set.
template <typename T>
void complete(Problem<T>& p) {
  p.group_channels = static_cast<int>(p.g.channels / p.g.groups);
  p.group_outputs = static_cast<int>(p.g.out_channels / p.g.groups);
  p.offset_channels = static_cast<int>(p.g.channels / p.g.offset_groups);
  p.segment = std::gcd(p.group_channels, p.offset_channels);
  const auto aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
  constexpr int kCount = Pack<T>::kCount, kSums = AtomicWidth<Accumulator<T>>::value;
  p.wide = p.segment % kCount == 0 && p.segment % kSums == 0 && p.group_outputs % kCount == 0 && aligned(p.input) &&
           aligned(p.weight) && aligned(p.weight_t) && aligned(p.grad) && aligned(p.grad_input);
}

// Calls f with the kernel that suits addresses and outputs: where tensor cores multiply, the one with more columns
// samples half as often.
template <template <typename, int, bool> class Kernel, typename T, typename F>
auto with_kernel(const Problem<T>& p, const F& f) {
  if (!p.wide) return f(Kernel<T, kTile, false>{});
  if constexpr (sizeof(T) == 2) {
    if (p.group_outputs > kTile) return f(Kernel<T, 2 * kTile, true>{});
  }
  return f(Kernel<T, kTile, true>{});
}

template <typename Kernel, typename T>
void launch_plan(const Plan<T>& plan, Stream stream) {
  launch<Kernel>(plan, plan.blocks * plan.parts, stream);
}

// How many values `parts` must have room for.
template <typename T>
int64_t forward_parts_size(const Problem<T>& p) {
  const int64_t parts = with_kernel<Forward>(p, [&](auto kernel) { return decltype(kernel)::plan(p).parts; });
  return parts > 1 ? parts * p.total() * p.g.out_channels : 0;
}

template <typename T>
void run_forward(const Problem<T>& p, Stream stream) {
  with_kernel<Forward>(p, [&](auto kernel) {
    const Plan<T> plan = decltype(kernel)::plan(p);
    launch_plan<decltype(kernel)>(plan, stream);
    const typename AddTaps<T>::Params add = {p, plan.parts};
    if (plan.parts > 1) launch<AddTaps<T>>(add, AddTaps<T>::blocks(add), stream);
  });
}

template <typename T>
Plan<T> weight_plan(const Problem<T>& p) {
  return with_kernel<BackwardWeight>(p, [&](auto kernel) { return decltype(kernel)::plan(p); });
}

template <typename T>
int64_t backward_parts_size(const Problem<T>& p) {
  return (p.grad_weight ? weight_plan(p).parts * p.weight_size() : 0) +
         (p.grad_bias ? BackwardBias<T>::plan(p).parts * p.g.out_channels : 0);
}

template <typename T, bool Wide>
void run_backward_columns(Problem<T> p, Stream stream) {
  using Ordered = BackwardColumns<T, Wide, true>;
  using Unordered = BackwardColumns<T, Wide, false>;
  if (p.deterministic && p.grad_input) {
    launch_plan<Ordered>(Ordered::plan(p), stream);
    p.grad_input = nullptr;
  }
  if (p.grad_input || p.grad_offset || p.grad_mask) launch_plan<Unordered>(Unordered::plan(p), stream);
}

template <typename T>
void run_backward(Problem<T> p, Stream stream) {
  using Add = AddParts<T>;
  p.wide ? run_backward_columns<T, true>(p, stream) : run_backward_columns<T, false>(p, stream);
  if (p.grad_weight) {
    const Plan<T> plan = weight_plan(p);
    with_kernel<BackwardWeight>(p, [&](auto kernel) { launch_plan<decltype(kernel)>(plan, stream); });
    const typename Add::Params add = {p.parts, plan.parts, p.g.groups, p.g.taps(), p.group_channels, p.group_outputs,
                                      p.grad_weight};
    launch<Add>(add, Add::blocks(add), stream);
    p.parts += plan.parts * p.weight_size();
  }
  if (p.grad_bias) {
    const Plan<T> plan = BackwardBias<T>::plan(p);
    launch_plan<BackwardBias<T>>(plan, stream);
    const typename Add::Params add = {p.parts, plan.parts, 1, 1, 1, p.g.out_channels, p.grad_bias};
    launch<Add>(add, Add::blocks(add), stream);
  }
}

}  // namespace flowers_bench
