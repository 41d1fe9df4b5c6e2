// Deformable convolution as products of tiles that are sampled, multiplied and forgotten in shared memory.
//
// All three kernels that multiply (forward, gradients of the columns, gradient of the weight) compute a 64 x 64 tile
// in steps of depth 32 with the same two tiles in shared memory and the same product: tensor cores for half and
// bfloat16 (float32 sums), fused multiply-adds for float and double. The column matrix never lies in device memory.
// Input and output gradient are channels-last, so that a sample's channels are loaded 128 bits at a time.
//
// Written without a GPU: compiled for sm_75 to sm_120 and run by tests/ops/test_cuda_emulated.py on the host, never
// on a device. Not done, each of which should pay there: asynchronous copies and a second buffer, so that sampling
// hides behind products; larger tiles for wide layers (every 64 outputs sample anew, from L2); several taps in one step
// where a layer has few channels (3 channels use 3 of 32 steps' depth); a kernel of its own for depthwise layers,
// which are correct here but slow; TF32; sums of the input's gradient in shared memory before they go out as atomics.
#pragma once

#include <cmath>
#include <cstdint>

#include "launch.h"

namespace flowers_bench {

constexpr int kTile = 64;   // rows and columns of a product's result
constexpr int kDepth = 32;  // what a product sums over, per step
constexpr int kWays = kThreads / kTile;  // threads that share a row of the result

// One call, all of it on the device. A = Accumulator<T>.
template <typename T>
struct Problem {
  using A = Accumulator<T>;
  Geometry g = {};
  // Channels that share a weight group and an offset group lie in segments of this length.
  int64_t segment = 0;
  // Whether 128-bit loads of channels, and of a group's outputs, are aligned.
  bool wide_channels = false, wide_outputs = false;
  // Whether four neighbouring sums of the input's gradient are.
  bool wide_sums = false;
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
  // Where blocks leave sums of a share of the positions each: weight_parts() times grad_weight in the order of
  // `weight`, then bias_parts() times grad_bias.
  A* parts = nullptr;
  // Sum the input's gradient in a fixed order: slower, since fewer blocks can work at once.
  bool deterministic = false;

  FB_HD int64_t group_channels() const { return g.channels / g.groups; }
  FB_HD int64_t group_outputs() const { return g.out_channels / g.groups; }
  FB_HD int64_t offset_channels() const { return g.channels / g.offset_groups; }
  FB_HD int64_t total() const { return g.batch * g.positions(); }
  FB_HD int64_t weight_size() const { return g.taps() * g.channels * group_outputs(); }
};

FB_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FB_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The end of the channels from `channel` on that one step may take: `width` at most, all of one segment.
template <typename T>
FB_HD int64_t slice_end(const Problem<T>& p, int64_t channel, int64_t width) {
  return least(channel + width, (channel / p.segment + 1) * p.segment);
}

// The slices of `kTile` channels that cover the input, counted.
template <typename T>
FB_HD int64_t slices(const Problem<T>& p) {
  return p.g.channels / p.segment * ceil_div(p.segment, kTile);
}

template <typename T>
FB_HD int64_t slice_begin(const Problem<T>& p, int64_t slice) {
  const int64_t each = ceil_div(p.segment, kTile);
  return slice / each * p.segment + slice % each * kTile;
}

// ---- Coordinates ----

// Where one tap at one position samples: computed once for all channels of an offset group.
template <typename A>
struct Point {
  int64_t image;     // the image's first element
  int32_t index[4];  // pixels: top-left, top-right, bottom-left, bottom-right; -1 outside the image
  A weight_y[2], weight_x[2];
  A scale;      // the mask, or 1; 0 past the last position
  bool finite;  // a NaN or infinite coordinate: the sample is NaN

  FB_DEVICE A weight(int corner) const { return weight_y[corner >> 1] * weight_x[corner & 1]; }
};

template <typename T, typename A = Accumulator<T>>
FB_DEVICE Point<A> locate(const Problem<T>& p, int64_t position, int64_t end, int64_t tap, int64_t offset_group) {
  Point<A> point = {0, {-1, -1, -1, -1}, {0, 0}, {0, 0}, 0, true};
  if (position >= end) return point;
  const Geometry& g = p.g;
  const int64_t positions = g.positions(), image = position / positions, at = position % positions;
  const int64_t plane = (image * g.offset_groups + offset_group) * g.taps() + tap;
  const A y = A(tap_origin(at / g.out_width, g.stride_h, g.pad_h, tap / g.kernel_w, g.dilation_h)) +
              widen(p.offset[plane * 2 * positions + at]);
  const A x = A(tap_origin(at % g.out_width, g.stride_w, g.pad_w, tap % g.kernel_w, g.dilation_w)) +
              widen(p.offset[(plane * 2 + 1) * positions + at]);
  const AxisSample<A> v = sample_axis(y, static_cast<int32_t>(g.height));
  const AxisSample<A> h = sample_axis(x, static_cast<int32_t>(g.width));
  point.image = image * g.height * g.width * g.channels;
  point.scale = p.mask ? widen(p.mask[plane * positions + at]) : A(1);
  point.finite = y - y == A(0) && x - x == A(0);
  point.weight_y[0] = v.weight_low, point.weight_y[1] = v.weight_high;
  point.weight_x[0] = h.weight_low, point.weight_x[1] = h.weight_high;
  for (int corner = 0; corner < 4; ++corner) {
    // A slope of 0 marks what lies outside. Not the weight: a pixel that counts may have weight 0, and be NaN.
    const bool inside = (corner >> 1 ? v.slope_high : v.slope_low) != A(0) &&
                        (corner & 1 ? h.slope_high : h.slope_low) != A(0);
    const int32_t row = corner >> 1 ? v.high : v.low, column = corner & 1 ? h.high : h.low;
    if (inside) point.index[corner] = row * static_cast<int32_t>(g.width) + column;
  }
  return point;
}

template <typename T>
FB_DEVICE const T* pixel(const Problem<T>& p, const Point<Accumulator<T>>& point, int corner) {
  return p.input + point.image + point.index[corner] * p.g.channels;
}

// ---- Tiles in shared memory ----

// Rows are padded by 16 bytes: still aligned for vector loads and tensor cores, and in different banks.
template <typename T>
struct Strides {
  static constexpr int kPad = 16 / sizeof(T);
  static constexpr int kLeft = kDepth + kPad;
  static constexpr int kRight = kTile + kPad;
  static constexpr int kResult = kTile + 4;
};

template <typename T>
struct alignas(128) Tiles {
  using A = Accumulator<T>;
  struct alignas(128) Factors {
    T left[kTile * Strides<T>::kLeft];  // [row][depth]; transposed, in a product that says so: like `right`
    alignas(128) T right[kDepth * Strides<T>::kRight];  // [depth][column]
  };
  union {
    Factors factors;
    A result[kTile * Strides<T>::kResult];  // [row][column]
  };
  Point<A> points[kTile];
};

// A matrix in device memory into shared memory at to[row * row_step + column], zeros beyond its rows and columns.
template <int Rows, int Columns, typename T>
FB_DEVICE void load_matrix(const T* from, int64_t stride, int64_t rows, int64_t columns, bool wide, T* to, int row_step,
                           int thread) {
  constexpr int kCount = Pack<T>::kCount, kPacks = Columns / kCount;
  for (int item = thread; item < Rows * kPacks; item += kThreads) {
    const int row = item / kPacks, column = item % kPacks * kCount;
    const int count = row < rows ? static_cast<int>(least(kCount, columns - column)) : 0;
    const Pack<T> pack = load_pack(from + row * stride + column, count, wide && count == kCount);
    for (int i = 0; i < kCount; ++i) to[row * row_step + column + i] = pack.value[i];
  }
}

// Samples of `count` channels from `channel` on at the first `Positions` points, into
// to[position * step + channel]; zeros beyond `count`.
template <int Positions, int Channels, typename T>
FB_DEVICE void load_samples(const Problem<T>& p, const Point<Accumulator<T>>* points, int64_t channel, int64_t count,
                            T* to, int step, int thread) {
  using A = Accumulator<T>;
  constexpr int kCount = Pack<T>::kCount, kPacks = Channels / kCount;
  for (int item = thread; item < Positions * kPacks; item += kThreads) {
    const Point<A>& point = points[item / kPacks];
    const int first = item % kPacks * kCount, valid = static_cast<int>(least(kCount, count - first));
    A sum[kCount];
    for (int i = 0; i < kCount; ++i) sum[i] = point.finite || i >= valid ? A(0) : A(NAN);
    for (int corner = 0; corner < 4; ++corner) {
      if (point.index[corner] < 0 || valid <= 0) continue;
      const T* from = pixel(p, point, corner) + channel + first;
      const Pack<T> pack = load_pack(from, valid, p.wide_channels && valid == kCount);
      for (int i = 0; i < kCount; ++i) sum[i] += point.weight(corner) * widen(pack.value[i]);
    }
    for (int i = 0; i < kCount; ++i) {
      const A value = i < valid ? sum[i] * point.scale : A(0);
      to[item / kPacks * step + first + i] = narrowed<T>(value);
    }
  }
}

// ---- Products ----

// result += left * right, each thread a square of 4 x 4 values: as many loads of four as there are multiplications by 8.
template <typename T, bool Transposed>
struct ThreadProduct {
  using A = Accumulator<T>;
  static constexpr int kEach = kTile / 16;
  static constexpr int kAligned = kEach * sizeof(T) < 16 ? kEach * sizeof(T) : 16;
  A sum[kEach][kEach];

  FB_DEVICE static int row(int thread) { return thread / 16 * kEach; }
  FB_DEVICE static int column(int thread) { return thread % 16 * kEach; }

  FB_DEVICE void clear(int) {
    for (int i = 0; i < kEach; ++i) {
      for (int j = 0; j < kEach; ++j) sum[i][j] = A(0);
    }
  }

  FB_DEVICE static void load(const T* from, A (&to)[kEach]) {
    from = static_cast<const T*>(__builtin_assume_aligned(from, kAligned));
    for (int i = 0; i < kEach; ++i) to[i] = widen(from[i]);
  }

  // Depths beyond `depth` hold zeros up to the next multiple of 4.
  FB_DEVICE void add(const typename Tiles<T>::Factors& f, int depth, int thread) {
    for (int k = 0; k < depth; k += kEach) {
      A left[kEach][kEach];  // [depth][row] if transposed, else [row][depth]
      for (int i = 0; i < kEach; ++i) {
        load(Transposed ? f.left + (k + i) * Strides<T>::kRight + row(thread)
                        : f.left + (row(thread) + i) * Strides<T>::kLeft + k,
             left[i]);
      }
      for (int at = 0; at < kEach; ++at) {
        A right[kEach];
        load(f.right + (k + at) * Strides<T>::kRight + column(thread), right);
        for (int i = 0; i < kEach; ++i) {
          for (int j = 0; j < kEach; ++j) sum[i][j] += (Transposed ? left[at][i] : left[i][at]) * right[j];
        }
      }
    }
  }

  FB_DEVICE void store(A* result, int thread) const {
    for (int i = 0; i < kEach; ++i) {
      A* const to = result + (row(thread) + i) * Strides<T>::kResult + column(thread);
      for (int j = 0; j < kEach; ++j) to[j] = sum[i][j];
    }
  }
};

// The same by tensor cores: each of 8 warps has 16 rows and 32 columns.
template <typename T, bool Transposed>
struct WarpProduct {
  static constexpr int kEach = kTile * kTile / (16 * 16) / (kThreads / kWarp);
  WarpSum sum[kEach];

  FB_DEVICE static int row(int thread) { return thread / kWarp / kEach * 16; }
  FB_DEVICE static int column(int thread) { return thread / kWarp % kEach * 16 * kEach; }

  FB_DEVICE void clear(int thread) {
    if (!speaks_for_warp(thread)) return;
    for (int j = 0; j < kEach; ++j) sum[j].clear();
  }

  // Depths beyond `depth` hold zeros up to the next multiple of 16.
  FB_DEVICE void add(const typename Tiles<T>::Factors& f, int depth, int thread) {
    if (!speaks_for_warp(thread)) return;
    for (int k = 0; k < depth; k += 16) {
      WarpLeft<T, Transposed> left;
      if constexpr (Transposed) {
        left.load(f.left + k * Strides<T>::kRight + row(thread), Strides<T>::kRight);
      } else {
        left.load(f.left + row(thread) * Strides<T>::kLeft + k, Strides<T>::kLeft);
      }
      for (int j = 0; j < kEach; ++j) {
        WarpRight<T> right;
        right.load(f.right + k * Strides<T>::kRight + column(thread) + 16 * j, Strides<T>::kRight);
        multiply_add(left, right, sum[j]);
      }
    }
  }

  FB_DEVICE void store(float* result, int thread) const {
    if (!speaks_for_warp(thread)) return;
    float* const to = result + row(thread) * Strides<T>::kResult + column(thread);
    for (int j = 0; j < kEach; ++j) sum[j].store(to + 16 * j, Strides<T>::kResult);
  }
};

template <typename T, bool Transposed, bool TensorCores>
struct ProductOf {
  using type = ThreadProduct<T, Transposed>;
};
template <typename T, bool Transposed>
struct ProductOf<T, Transposed, true> {
  using type = WarpProduct<T, Transposed>;
};
template <typename T, bool Transposed = false>
using Product = typename ProductOf<T, Transposed, HasTensorCores<T>::value>::type;

// ---- Forward ----

// A block: 64 positions of any images, 64 outputs of one weight group.
template <typename T>
struct Forward {
  using Params = Problem<T>;
  using Shared = Tiles<T>;
  struct Registers {
    Product<T> product;
  };

  static FB_HD int64_t tiles(const Params& p) { return ceil_div(p.group_outputs(), kTile); }
  static int64_t blocks(const Params& p) { return ceil_div(p.total(), kTile) * p.g.groups * tiles(p); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<Forward>& team) {
    // Neighbouring blocks sample at the same places.
    const int64_t output = block % tiles(p) * kTile, group = block / tiles(p) % p.g.groups;
    const int64_t first = block / (tiles(p) * p.g.groups) * kTile;
    team.phase([&](int thread, Registers& r) { r.product.clear(thread); });
    for (int64_t tap = 0; tap < p.g.taps(); ++tap) add_tap(p, first, group, output, tap, team);
    team.phase([&](int thread, Registers& r) { r.product.store(team.shared.result, thread); });
    team.phase([&](int thread, Registers&) { write(p, first, group, output, team.shared.result, thread); });
  }

  static FB_DEVICE void add_tap(const Params& p, int64_t first, int64_t group, int64_t output, int64_t tap,
                                const Team<Forward>& team) {
    Shared& s = team.shared;
    const int64_t begin = group * p.group_channels(), outputs = p.group_outputs();
    for (int64_t channel = begin, end; channel < begin + p.group_channels(); channel = end) {
      end = slice_end(p, channel, kDepth);
      if (channel == begin || channel % p.offset_channels() == 0) {
        team.phase([&](int thread, Registers&) {
          const int64_t offset_group = channel / p.offset_channels();
          if (thread < kTile) s.points[thread] = locate(p, first + thread, p.total(), tap, offset_group);
        });
      }
      const int64_t depth = end - channel;
      const T* weight = p.weight + ((group * p.g.taps() + tap) * p.group_channels() + channel - begin) * outputs;
      team.phase([&](int thread, Registers&) {
        load_samples<kTile, kDepth>(p, s.points, channel, depth, s.factors.left, Strides<T>::kLeft, thread);
        load_matrix<kDepth, kTile>(weight + output, outputs, depth, outputs - output, p.wide_outputs, s.factors.right,
                                   Strides<T>::kRight, thread);
      });
      team.phase([&](int thread, Registers& r) { r.product.add(s.factors, static_cast<int>(depth), thread); });
    }
  }

  // Neighbouring threads write neighbouring values, whichever way the output lies.
  static FB_DEVICE void write(const Params& p, int64_t first, int64_t group, int64_t output,
                              const Accumulator<T>* result, int thread) {
    const int64_t positions = p.g.positions();
    for (int item = thread; item < kTile * kTile; item += kThreads) {
      const int row = p.out_rows ? item / kTile : item % kTile, column = p.out_rows ? item % kTile : item / kTile;
      const int64_t position = first + row;
      if (position >= p.total() || output + column >= p.group_outputs()) continue;
      const int64_t o = group * p.group_outputs() + output + column;
      const Accumulator<T> bias = p.bias ? widen(p.bias[o]) : Accumulator<T>(0);
      const int64_t image = position / positions, at = position % positions;
      T* const to = p.out + (p.out_rows ? position * p.g.out_channels + o
                                        : (image * p.g.out_channels + o) * positions + at);
      *to = narrowed<T>(result[row * Strides<T>::kResult + column] + bias);
    }
  }
};

// ---- Gradients of input, offset and mask ----

// The gradient of a column is a product of the output's gradient and the weight. From there, each channel's thread
// adds to the four pixels (the input's gradient), and each position's four threads sum over the channels (offset and
// mask). `Ordered` says who adds to the input:
// - false: a block has 64 positions, one tap, all channels of an offset group; blocks meet in atomics. Offsets and
//   masks belong to one block alone and are summed in a fixed order.
// - true: a block has an image, all taps, 64 channels, and goes through the positions in their order, each channel in
//   the hands of one thread: nobody else adds to its pixels. Only the input's gradient.
template <typename T, bool Ordered>
struct BackwardColumns {
  using A = Accumulator<T>;
  using Params = Problem<T>;
  using Shared = Tiles<T>;
  struct Registers {
    Product<T> product;
    A sum_y, sum_x, sum_mask;
  };
  using Crew = Team<BackwardColumns>;

  static int64_t blocks(const Params& p) {
    return Ordered ? p.g.batch * slices(p) : ceil_div(p.total(), kTile) * p.g.taps() * p.g.offset_groups;
  }

  static FB_DEVICE void run(const Params& p, int64_t block, const Crew& team) {
    if constexpr (Ordered) {
      const int64_t channel = slice_begin(p, block % slices(p)), image = block / slices(p);
      const int64_t begin = image * p.g.positions(), end = begin + p.g.positions();
      for (int64_t tap = 0; tap < p.g.taps(); ++tap) {
        for (int64_t first = begin; first < end; first += kTile) {
          add_tap(p, first, end, tap, channel, slice_end(p, channel, kTile), team);
        }
      }
    } else {
      const int64_t group = block % p.g.offset_groups, tap = block / p.g.offset_groups % p.g.taps();
      const int64_t first = block / (p.g.offset_groups * p.g.taps()) * kTile;
      const int64_t channel = group * p.offset_channels();
      add_tap(p, first, p.total(), tap, channel, channel + p.offset_channels(), team);
      if (p.grad_offset || p.grad_mask) finish(p, first, tap, group, team);
    }
  }

  // Channels [channel, last) of one offset group.
  static FB_DEVICE void add_tap(const Params& p, int64_t first, int64_t end, int64_t tap, int64_t channel, int64_t last,
                                const Crew& team) {
    Shared& s = team.shared;
    team.phase([&](int thread, Registers& r) {
      r.sum_y = r.sum_x = r.sum_mask = A(0);
      if (thread < kTile) s.points[thread] = locate(p, first + thread, end, tap, channel / p.offset_channels());
    });
    for (int64_t stop; channel < last; channel = stop) {
      stop = slice_end(p, channel, kTile);
      multiply(p, first, end, tap, channel, stop, team);
      const int count = static_cast<int>(stop - channel);
      team.phase([&](int thread, Registers& r) {
        constexpr int kWidth = Ordered ? 1 : AtomicWidth<A>::value;
        if (p.grad_input && p.wide_sums) scatter<kWidth>(p, s, channel, count, thread);
        if (p.grad_input && !p.wide_sums) scatter<1>(p, s, channel, count, thread);
        if (!Ordered && (p.grad_offset || p.grad_mask)) sum_channels(p, s, channel, count, thread, r);
      });
    }
  }

  // The columns' gradients into s.result[position][channel].
  static FB_DEVICE void multiply(const Params& p, int64_t first, int64_t end, int64_t tap, int64_t channel, int64_t stop,
                                 const Crew& team) {
    Shared& s = team.shared;
    const int64_t group = channel / p.group_channels(), outputs = p.group_outputs();
    const T* grad = p.grad + first * p.g.out_channels + group * outputs;
    const T* weight = p.weight_t + (group * p.g.taps() + tap) * outputs * p.group_channels() +
                      channel - group * p.group_channels();
    team.phase([&](int thread, Registers& r) { r.product.clear(thread); });
    for (int64_t output = 0; output < outputs; output += kDepth) {
      const int64_t depth = least(kDepth, outputs - output);
      team.phase([&](int thread, Registers&) {
        load_matrix<kTile, kDepth>(grad + output, p.g.out_channels, end - first, depth, p.wide_outputs, s.factors.left,
                                   Strides<T>::kLeft, thread);
        load_matrix<kDepth, kTile>(weight + output * p.group_channels(), p.group_channels(), depth, stop - channel,
                                   p.wide_channels, s.factors.right, Strides<T>::kRight, thread);
      });
      team.phase([&](int thread, Registers& r) { r.product.add(s.factors, static_cast<int>(depth), thread); });
    }
    team.phase([&](int thread, Registers& r) { r.product.store(s.result, thread); });
  }

  // A warp's threads have neighbouring channels, `Width` each: their atomics to one pixel fill whole sectors.
  template <int Width>
  static FB_DEVICE void scatter(const Params& p, const Shared& s, int64_t channel, int count, int thread) {
    constexpr int kAcross = kTile / Width, kAtOnce = Ordered ? 1 : kThreads / kAcross;
    const int column = thread % kAcross * Width;
    if (column >= count || thread / kAcross >= kAtOnce) return;
    for (int row = thread / kAcross; row < kTile; row += kAtOnce) {
      const Point<A>& point = s.points[row];
      for (int corner = 0; corner < 4; ++corner) {
        if (point.index[corner] < 0) continue;
        A add[Width];
        for (int i = 0; i < Width; ++i) {
          add[i] = s.result[row * Strides<T>::kResult + column + i] * point.scale * point.weight(corner);
        }
        atomic_add(p.grad_input + point.image + point.index[corner] * p.g.channels + channel + column, add);
      }
    }
  }

  static FB_DEVICE void sum_channels(const Params& p, const Shared& s, int64_t channel, int count, int thread,
                                     Registers& r) {
    constexpr int kCount = Pack<T>::kCount;
    const int row = thread / kWays;
    const Point<A>& point = s.points[row];
    const A* const result = s.result + row * Strides<T>::kResult;
    for (int begin = thread % kWays * kCount; begin < count; begin += kWays * kCount) {
      const int valid = count - begin < kCount ? count - begin : kCount;
      for (int corner = 0; corner < 4; ++corner) {
        if (point.index[corner] < 0) continue;
        const Pack<T> pack =
            load_pack(pixel(p, point, corner) + channel + begin, valid, p.wide_channels && valid == kCount);
        A dot = A(0);
        for (int i = 0; i < valid; ++i) dot += result[begin + i] * widen(pack.value[i]);
        const A weight_x = point.weight_x[corner & 1], weight_y = point.weight_y[corner >> 1];
        r.sum_y += dot * (corner >> 1 ? weight_x : -weight_x);
        r.sum_x += dot * (corner & 1 ? weight_y : -weight_y);
        r.sum_mask += dot * weight_y * weight_x;
      }
    }
  }

  // The four threads of each position put their sums together, always in the same order.
  static FB_DEVICE void finish(const Params& p, int64_t first, int64_t tap, int64_t group, const Crew& team) {
    A(*const sums)[3] = reinterpret_cast<A(*)[3]>(team.shared.result);
    team.phase([&](int thread, Registers& r) {
      sums[thread][0] = r.sum_y, sums[thread][1] = r.sum_x, sums[thread][2] = r.sum_mask;
    });
    team.phase([&](int thread, Registers&) {
      const int64_t position = first + thread, positions = p.g.positions();
      if (thread >= kTile || position >= p.total()) return;
      const Point<A>& point = team.shared.points[thread];
      A total[3] = {A(0), A(0), A(0)};
      for (int way = 0; way < kWays; ++way) {
        for (int i = 0; i < 3; ++i) total[i] += sums[thread * kWays + way][i];
      }
      for (int i = 0; i < 3; ++i) total[i] = point.finite ? total[i] * (i < 2 ? point.scale : A(1)) : A(NAN);
      const int64_t image = position / positions, at = position % positions;
      const int64_t plane = (image * p.g.offset_groups + group) * p.g.taps() + tap;
      if (p.grad_offset) p.grad_offset[plane * 2 * positions + at] = narrowed<T>(total[0]);
      if (p.grad_offset) p.grad_offset[(plane * 2 + 1) * positions + at] = narrowed<T>(total[1]);
      if (p.grad_mask) p.grad_mask[plane * positions + at] = narrowed<T>(total[2]);
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

// A block: 64 channels of a segment, 64 outputs of their weight group, one tap, a share of the positions.
template <typename T>
struct BackwardWeight {
  using Params = Problem<T>;
  using Shared = Tiles<T>;
  struct Registers {
    Product<T, true> product;  // of samples [position][channel]
  };

  static FB_HD int64_t tiles(const Params& p) { return ceil_div(p.group_outputs(), kTile); }
  static FB_HD int64_t blocks_of_part(const Params& p) { return tiles(p) * p.g.taps() * slices(p); }
  static FB_HD int64_t parts(const Params& p) { return share_positions(p.total(), blocks_of_part(p)); }
  static int64_t blocks(const Params& p) { return blocks_of_part(p) * parts(p); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<BackwardWeight>& team) {
    const int64_t output = block % tiles(p) * kTile, tap = block / tiles(p) % p.g.taps();
    const int64_t channel = slice_begin(p, block / (tiles(p) * p.g.taps()) % slices(p));
    const int64_t part = block / blocks_of_part(p), count = slice_end(p, channel, kTile) - channel;
    const int64_t share = ceil_div(p.total(), parts(p)), end = least((part + 1) * share, p.total());
    const int64_t group = channel / p.group_channels();
    Shared& s = team.shared;
    team.phase([&](int thread, Registers& r) { r.product.clear(thread); });
    for (int64_t first = part * share; first < end; first += kDepth) {
      team.phase([&](int thread, Registers&) {
        if (thread >= kDepth) return;
        s.points[thread] = locate(p, first + thread, end, tap, channel / p.offset_channels());
      });
      team.phase([&](int thread, Registers&) {
        load_samples<kDepth, kTile>(p, s.points, channel, count, s.factors.left, Strides<T>::kRight, thread);
        load_matrix<kDepth, kTile>(p.grad + first * p.g.out_channels + group * p.group_outputs() + output,
                                   p.g.out_channels, end - first, p.group_outputs() - output, p.wide_outputs,
                                   s.factors.right, Strides<T>::kRight, thread);
      });
      team.phase([&](int thread, Registers& r) {
        r.product.add(s.factors, static_cast<int>(least(kDepth, end - first)), thread);
      });
    }
    team.phase([&](int thread, Registers& r) { r.product.store(s.result, thread); });
    team.phase([&](int thread, Registers&) {
      const int64_t row = (group * p.g.taps() + tap) * p.group_channels() + channel - group * p.group_channels();
      Accumulator<T>* const to = p.parts + part * p.weight_size() + row * p.group_outputs() + output;
      for (int item = thread; item < kTile * kTile; item += kThreads) {
        const int c = item / kTile, o = item % kTile;
        if (c < count && output + o < p.group_outputs()) {
          to[c * p.group_outputs() + o] = s.result[c * Strides<T>::kResult + o];
        }
      }
    });
  }
};

// A block: 64 outputs, a share of the positions.
template <typename T>
struct BackwardBias {
  using A = Accumulator<T>;
  using Params = Problem<T>;
  struct Shared {
    A sums[kThreads];
  };
  struct Registers {};

  static FB_HD int64_t tiles(const Params& p) { return ceil_div(p.g.out_channels, kTile); }
  static FB_HD int64_t parts(const Params& p) { return share_positions(p.total(), tiles(p)); }
  static int64_t blocks(const Params& p) { return tiles(p) * parts(p); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<BackwardBias>& team) {
    const int64_t part = block / tiles(p), first = block % tiles(p) * kTile;
    const int64_t share = ceil_div(p.total(), parts(p)), end = least((part + 1) * share, p.total());
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
  int64_t a = p.group_channels(), b = p.offset_channels();
  while (b != 0) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  p.segment = a;
  const auto aligned = [](const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; };
  p.wide_channels = p.segment % Pack<T>::kCount == 0 && aligned(p.input) && aligned(p.weight_t);
  p.wide_sums = p.segment % 4 == 0 && aligned(p.grad_input);
  p.wide_outputs = p.group_outputs() % Pack<T>::kCount == 0 && aligned(p.weight) && aligned(p.grad);
}

template <typename T>
void run_forward(const Problem<T>& p, Stream stream) {
  launch<Forward<T>>(p, Forward<T>::blocks(p), stream);
}

// How many values `parts` must have room for.
template <typename T>
int64_t parts_size(const Problem<T>& p) {
  return (p.grad_weight ? BackwardWeight<T>::parts(p) * p.weight_size() : 0) +
         (p.grad_bias ? BackwardBias<T>::parts(p) * p.g.out_channels : 0);
}

template <typename T>
void run_backward_columns(Problem<T> p, Stream stream) {
  if (p.deterministic && p.grad_input) {
    launch<BackwardColumns<T, true>>(p, BackwardColumns<T, true>::blocks(p), stream);
    p.grad_input = nullptr;
  }
  if (!p.grad_input && !p.grad_offset && !p.grad_mask) return;
  launch<BackwardColumns<T, false>>(p, BackwardColumns<T, false>::blocks(p), stream);
}

template <typename T>
void run_backward(Problem<T> p, Stream stream) {
  using Add = AddParts<T>;
  run_backward_columns(p, stream);
  if (p.grad_weight) {
    launch<BackwardWeight<T>>(p, BackwardWeight<T>::blocks(p), stream);
    const typename Add::Params add = {p.parts, BackwardWeight<T>::parts(p), p.g.groups, p.g.taps(),
                                      p.group_channels(), p.group_outputs(), p.grad_weight};
    launch<Add>(add, Add::blocks(add), stream);
    p.parts += BackwardWeight<T>::parts(p) * p.weight_size();
  }
  if (p.grad_bias) {
    launch<BackwardBias<T>>(p, BackwardBias<T>::blocks(p), stream);
    const typename Add::Params add = {p.parts, BackwardBias<T>::parts(p), 1, 1, 1, p.g.out_channels, p.grad_bias};
    launch<Add>(add, Add::blocks(add), stream);
  }
}

}  // namespace flowers_bench
