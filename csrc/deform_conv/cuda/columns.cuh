// Columns in device memory: samples of whole images as a matrix, which a library's product turns into the output.
//
// A row of the matrix is one output position, [tap][channel]; each weight group has a matrix of its own. A
// channels-last weight has the same order, so that products take it as it is. Neighbouring lanes have neighbouring
// channels: a warp's 128-bit loads and stores fill whole sectors.
#pragma once

#include <cmath>

#include "tiles.cuh"

namespace flowers_bench {

// Points that a block of the kernels below locates at once: 32 positions of a 3x3 kernel.
constexpr int kColumnPoints = 288;
constexpr int kMostPositions = 32, kFewestPositions = 4;

// Names one sample for `Gather`: which of its image's samples (position times taps plus tap), where between the four
// pixels of its cell (fractions), and its mask.
struct alignas(16) Entry {
  int32_t sample;
  float y, x, scale;
};

// Describes some whole images of a call, whose columns lie in device memory at once. Everything that counts samples of
// a chunk fits 32 bits: `takes_columns` and `images_at_once` see to it.
template <typename T>
struct Chunk {
  Problem<T> p;
  int64_t first = 0;   // image
  int32_t images = 0;  // how many
  // Threads that share a point, a power of two; packs of 128 bits that an offset group's channels of a pixel make.
  int32_t lanes = 0, packs = 0;
  // Forward: the columns. Backward: their gradient, which the columns then replace. (groups, images * positions, taps,
  // channels of a group)
  T* columns = nullptr;
  T* grad_input = nullptr;    // (N, H, W, C) or null; overwritten
  int32_t* starts = nullptr;  // (images, offset groups, cells + 1): first counts, then where a cell's entries begin
  int32_t* ranks = nullptr;   // (images, offset groups, taps, positions): who came when to a cell; -1 outside
  int32_t* found = nullptr;   // (images, offset groups, samples): each cell's samples, in the order of `ranks`
  Entry* entries = nullptr;   // (images, offset groups, samples): each cell's samples, in their own order

  FB_HD int32_t rows() const { return images * static_cast<int32_t>(p.g.positions()); }
  // Of one image and offset group.
  FB_HD int32_t samples() const { return static_cast<int32_t>(p.g.positions() * p.g.taps()); }
  FB_HD int32_t cells() const { return static_cast<int32_t>((p.g.height + 1) * (p.g.width + 1)); }
  FB_HD int32_t lists() const { return images * static_cast<int32_t>(p.g.offset_groups); }
  // Each has 16 bytes of columns at least.
  FB_HD int32_t all_samples() const { return lists() * samples(); }
};

// Says whether the kernels of this file and of cells.cuh can compute a call: packs of one weight group and one offset
// group, and bytes that 32 bits count.
template <typename T>
bool takes_columns(const Problem<T>& p) {
  constexpr int64_t kMost = int64_t(1) << 31;
  const int64_t size = sizeof(T), image = p.g.positions() * p.g.taps() * p.g.channels * size;
  return size < 8 && p.segment * size % 16 == 0 && image < kMost &&
         p.g.batch * p.g.height * p.g.width * p.g.channels * size < kMost;
}

// Counts the whole images whose columns take at most `limit` bytes: one at least, all at most.
template <typename T>
int64_t images_at_once(const Problem<T>& p, int64_t limit) {
  const int64_t image = p.g.positions() * p.g.taps() * p.g.channels * static_cast<int64_t>(sizeof(T));
  return image >= limit ? least(1, p.g.batch) : least(limit / image, p.g.batch);
}

template <typename T>
int32_t packs_of_a_point(const Problem<T>& p) {
  return p.offset_channels / Pack<T>::kCount;
}

inline int32_t lanes_for(int32_t packs) {
  int32_t lanes = 1;
  while (lanes < packs && lanes < kWarp) lanes *= 2;
  return lanes;
}

// ---- Points ----

// Holds where one sample lies: the top-left pixel of its cell, -1 being one above or left of the image, the fractions
// from there, and the mask. Outside the image there is no cell; where the coordinate is not finite, fractions are NaN.
struct Spot {
  int32_t row, column;
  float y, x, scale;
  bool inside;
};

// Takes a position of the chunk apart, with divisions of 32 bits.
template <typename T>
FB_DEVICE Place place_in(const Chunk<T>& c, uint32_t position) {
  const Geometry& g = c.p.g;
  const auto positions = static_cast<uint32_t>(g.positions()), width = static_cast<uint32_t>(g.out_width);
  const uint32_t image = position / positions, at = position - image * positions, row = at / width;
  const uint32_t column = at - row * width;
  return {c.first + image, at, static_cast<int32_t>(tap_origin(row, g.stride_h, g.pad_h, 0, g.dilation_h)),
          static_cast<int32_t>(tap_origin(column, g.stride_w, g.pad_w, 0, g.dilation_w)), true};
}

template <typename T>
FB_DEVICE Spot spot_of(const Problem<T>& p, const Place& place, int tap, int offset_group) {
  const Geometry& g = p.g;
  const int32_t kernel_w = static_cast<int32_t>(g.kernel_w), down = tap / kernel_w, over = tap - down * kernel_w;
  const int64_t plane = (place.image * g.offset_groups + offset_group) * g.taps() + tap;
  const T* const offset = p.offset + plane * 2 * g.positions() + place.at;
  const float y = float(place.y + down * static_cast<int32_t>(g.dilation_h)) + widen(offset[0]);
  const float x = float(place.x + over * static_cast<int32_t>(g.dilation_w)) + widen(offset[g.positions()]);
  Spot spot = {0, 0, 0.0f, 0.0f, p.mask ? widen(p.mask[plane * g.positions() + place.at]) : 1.0f, false};
  if (y - y != 0.0f || x - x != 0.0f) spot.y = spot.x = NAN;
  spot.inside = y > -1.0f && y < float(g.height) && x > -1.0f && x < float(g.width);
  if (!spot.inside) return spot;
  spot.row = static_cast<int32_t>(y) - (y < 0.0f ? 1 : 0), spot.column = static_cast<int32_t>(x) - (x < 0.0f ? 1 : 0);
  spot.y = y - float(spot.row), spot.x = x - float(spot.column);
  return spot;
}

// Holds how a sample is read: four pixels as bytes from the input's first, -1 outside the image.
struct Pixels {
  int32_t at[4];  // top-left, top-right, bottom-left, bottom-right
};

template <typename T>
FB_DEVICE Pixels pixels_of(const Problem<T>& p, const Place& place, const Spot& spot) {
  const auto height = static_cast<int32_t>(p.g.height), width = static_cast<int32_t>(p.g.width);
  const int32_t bytes = static_cast<int32_t>(p.g.channels * sizeof(T));
  Pixels pixels;
  for (int corner = 0; corner < 4; ++corner) {
    const int32_t row = spot.row + corner / 2, column = spot.column + corner % 2;
    const bool there = spot.inside && row >= 0 && row < height && column >= 0 && column < width;
    const int32_t image = static_cast<int32_t>(place.image) * height;
    pixels.at[corner] = there ? ((image + row) * width + column) * bytes : -1;
  }
  return pixels;
}

FB_DEVICE float corner_weight(float y, float x, int corner) {
  return (corner / 2 ? y : 1.0f - y) * (corner % 2 ? x : 1.0f - x);
}

template <typename T>
FB_DEVICE Pack<T> load_pixel(const T* from, int32_t at) {
  Pack<T> pack = {};
  if (at >= 0) {
    pack = *reinterpret_cast<const Pack<T>*>(reinterpret_cast<const char*>(from) + static_cast<uint32_t>(at));
  }
  return pack;
}

// Holds what a pack of channels is in the input and in the columns.
template <typename T>
struct Slice {
  const T* from;  // of the input's first pixel
  T* to;          // of the chunk's first sample
  uint32_t row;   // bytes from sample to sample; all of a chunk's fit 32 bits

  FB_DEVICE T* at(int32_t sample) const { return at_bytes(static_cast<uint32_t>(sample) * row); }
  FB_DEVICE T* at_bytes(uint32_t bytes) const { return reinterpret_cast<T*>(reinterpret_cast<char*>(to) + bytes); }
};

template <typename T>
FB_DEVICE Slice<T> slice_of(const Chunk<T>& c, int32_t offset_group, int32_t pack) {
  const int32_t channel = offset_group * c.p.offset_channels + pack * Pack<T>::kCount;
  const int32_t group = c.p.g.groups == 1 ? 0 : channel / c.p.group_channels;
  const int64_t first = int64_t(group) * c.rows() * c.p.g.taps() * c.p.group_channels;
  return {c.p.input + channel, c.columns + first + (channel - group * c.p.group_channels),
          static_cast<uint32_t>(c.p.group_channels * sizeof(T))};
}

// ---- How blocks share the positions ----

// Says what a block has: some positions of one offset group, and how many of their taps at once.
template <typename T>
struct ColumnsPlan {
  Chunk<T> chunk;
  int32_t positions, taps;
  int64_t blocks;
  bool write;  // `BackwardSamples`: whether the columns are wanted
};

// Gives a block as many positions as leave enough blocks for a large GPU, four for each multiprocessor.
template <typename T>
ColumnsPlan<T> plan_columns(const Chunk<T>& c, bool write = true) {
  const int64_t groups = c.p.g.offset_groups;
  int32_t positions = kMostPositions;
  while (positions > kFewestPositions && ceil_div(c.rows(), positions) * groups < 2 * kManyBlocks) positions /= 2;
  const auto taps = static_cast<int32_t>(least(kColumnPoints / positions, c.p.g.taps()));
  return {c, positions, taps, ceil_div(c.rows(), positions) * groups, write};
}

// Holds a block's share in one turn: points [position][tap], of some taps.
struct Turn {
  int32_t first, tap, taps, count;  // the chunk's position, the first tap, how many, how many points
  int32_t offset_group;

  FB_DEVICE int32_t position(int32_t point) const { return first + point / taps; }
  FB_DEVICE int32_t tap_of(int32_t point) const { return tap + point % taps; }
};

// Calls f with a block's turns.
template <typename T, typename F>
FB_DEVICE void for_turns(const ColumnsPlan<T>& q, int64_t block, const F& f) {
  const auto groups = static_cast<int32_t>(q.chunk.p.g.offset_groups), taps = static_cast<int32_t>(q.chunk.p.g.taps());
  const int32_t tile = static_cast<int32_t>(block / groups),
                group = static_cast<int32_t>(block - int64_t(tile) * groups);
  const int32_t first = tile * q.positions, positions = at_most(q.positions, q.chunk.rows() - first);
  for (int32_t tap = 0; tap < taps; tap += q.taps) {
    const int32_t each = at_most(q.taps, taps - tap);
    f(Turn{first, tap, each, positions * each, group});
  }
}

// Says which points a thread's lanes have: a run of neighbours, equally long for all but the last.
struct Run {
  int32_t lane, begin, length;

  FB_DEVICE static Run of(int thread, int32_t lanes, int32_t count) {
    const int32_t runs = kThreads / lanes, length = (count + runs - 1) / runs;
    return {thread % lanes, thread / lanes * length, length};
  }
};

// ---- Columns ----

// Writes the columns of a chunk.
template <typename T>
struct Columns {
  using Params = ColumnsPlan<T>;
  struct alignas(16) Point {
    float weight[4];  // times the mask
    Pixels pixels;
  };
  struct Shared {
    Point points[kColumnPoints];
    uint32_t at[kColumnPoints];  // bytes from the first sample's columns
  };
  struct Registers {};
  static constexpr int kResident = 5;

  static FB_DEVICE void run(const Params& q, int64_t block, const Team<Columns>& team) {
    for_turns(q, block, [&](const Turn& turn) {
      team.phase([&](int thread, Registers&) { locate_points(q.chunk, turn, team.shared, thread); });
      team.phase([&](int thread, Registers&) { write(q.chunk, turn, team.shared, thread); });
    });
  }

  static FB_DEVICE void locate_points(const Chunk<T>& c, const Turn& turn, Shared& s, int thread) {
    for (int32_t i = thread; i < turn.count; i += kThreads) {
      const int32_t position = turn.position(i), tap = turn.tap_of(i);
      const Place place = place_in(c, position);
      const Spot spot = spot_of(c.p, place, tap, turn.offset_group);
      for (int corner = 0; corner < 4; ++corner) {
        s.points[i].weight[corner] = corner_weight(spot.y, spot.x, corner) * spot.scale;
      }
      s.points[i].pixels = pixels_of(c.p, place, spot);
      const auto sample = static_cast<uint32_t>(position * static_cast<int32_t>(c.p.g.taps()) + tap);
      s.at[i] = sample * static_cast<uint32_t>(c.p.group_channels * sizeof(T));
    }
  }

  // A point's four loads travel at once; enough warps are there to hide the wait.
  static FB_DEVICE void write(const Chunk<T>& c, const Turn& turn, const Shared& s, int thread) {
    const Run run = Run::of(thread, c.lanes, turn.count);
    const int32_t end = run.begin + run.length < turn.count ? run.begin + run.length : turn.count;
    for (int32_t pack = run.lane; pack < c.packs; pack += c.lanes) {
      const Slice<T> slice = slice_of(c, turn.offset_group, pack);
      FB_UNROLL(2)
      for (int32_t i = run.begin; i < end; ++i) {
        Pack<T> pixels[4];
        FB_UNROLL(4)
        for (int corner = 0; corner < 4; ++corner) {
          pixels[corner] = load_pixel(slice.from, s.points[i].pixels.at[corner]);
        }
        store_pack(slice.at_bytes(s.at[i]), blended(pixels, s.points[i]));
      }
    }
  }

  static FB_DEVICE Pack<T> blended(const Pack<T> (&pixels)[4], const Point& point) {
    float sum[Pack<T>::kCount] = {};
    FB_UNROLL(4)
    for (int corner = 0; corner < 4; ++corner) {
      float value[Pack<T>::kCount];
      widen_pack(pixels[corner], value);
      for (int j = 0; j < Pack<T>::kCount; ++j) sum[j] += point.weight[corner] * value[j];
    }
    return narrowed_pack<T>(sum);
  }
};

// ---- Gradients of offset and mask, and the columns again ----

// Sums over the channels what the gradients of offset and mask need, and writes the columns over their gradient: each
// value is read and replaced by the same thread.
template <typename T>
struct BackwardSamples {
  using Params = ColumnsPlan<T>;
  struct alignas(16) Point {
    float y, x, scale;
    int32_t sample;
    Pixels pixels;
  };
  struct Shared {
    Point points[kColumnPoints];
    float sums[kColumnPoints][3];  // gradients along y and x, and of the mask
  };
  struct Registers {
    float dot[4];  // of the columns' gradient with each of the four pixels
  };
  static constexpr int kResident = 4;
  using Crew = Team<BackwardSamples>;

  static FB_DEVICE void run(const Params& q, int64_t block, const Crew& team) {
    const Chunk<T>& c = q.chunk;
    for_turns(q, block, [&](const Turn& turn) {
      team.phase([&](int thread, Registers&) { locate_points(c, turn, team.shared, thread); });
      const int32_t length = Run::of(0, c.lanes, turn.count).length;
      for (int32_t i = 0; i < length; ++i) {
        team.step([&](int thread, Registers& r) { sum_channels(q, turn, i, team.shared, thread, r); });
        team.template lane_sum<4>(c.lanes, [](Registers& r) -> float (&)[4] { return r.dot; });
        team.step([&](int thread, Registers& r) { differentiate(c, turn, i, team.shared, thread, r); });
      }
      team.phase([](int, Registers&) {});
      team.phase([&](int thread, Registers&) { write(c, turn, team.shared, thread); });
    });
  }

  static FB_DEVICE void locate_points(const Chunk<T>& c, const Turn& turn, Shared& s, int thread) {
    for (int32_t i = thread; i < turn.count; i += kThreads) {
      const int32_t position = turn.position(i), tap = turn.tap_of(i);
      const Place place = place_in(c, position);
      const Spot spot = spot_of(c.p, place, tap, turn.offset_group);
      const int32_t sample = position * static_cast<int32_t>(c.p.g.taps()) + tap;
      s.points[i] = {spot.y, spot.x, spot.scale, sample, pixels_of(c.p, place, spot)};
    }
  }

  static FB_DEVICE void sum_channels(const Params& q, const Turn& turn, int32_t i, const Shared& s, int thread,
                                     Registers& r) {
    const Chunk<T>& c = q.chunk;
    const Run run = Run::of(thread, c.lanes, turn.count);
    for (int corner = 0; corner < 4; ++corner) r.dot[corner] = 0.0f;
    if (run.begin + i >= turn.count) return;
    const Point& point = s.points[run.begin + i];
    for (int32_t pack = run.lane; pack < c.packs; pack += c.lanes) {
      const Slice<T> slice = slice_of(c, turn.offset_group, pack);
      T* const at = slice.at(point.sample);
      const Pack<T> gradient = load_pack<true>(at, Pack<T>::kCount);
      Pack<T> pixels[4];
      for (int corner = 0; corner < 4; ++corner) pixels[corner] = load_pixel(slice.from, point.pixels.at[corner]);
      const Pack<T> column = multiply(gradient, pixels, point, r);
      if (q.write) store_pack(at, column);
    }
  }

  // Adds to the dot products, and returns the column.
  static FB_DEVICE Pack<T> multiply(const Pack<T>& gradient, const Pack<T> (&pixels)[4], const Point& point,
                                    Registers& r) {
    constexpr int kCount = Pack<T>::kCount;
    float grad[kCount], sum[kCount] = {};
    widen_pack(gradient, grad);
    for (int corner = 0; corner < 4; ++corner) {
      const float weight = corner_weight(point.y, point.x, corner) * point.scale;
      float value[kCount], dot = 0.0f;
      widen_pack(pixels[corner], value);
      for (int j = 0; j < kCount; ++j) {
        dot += grad[j] * value[j];
        sum[j] += weight * value[j];
      }
      // Also where the gradient is not finite, a pixel outside gives nothing.
      if (point.pixels.at[corner] >= 0) r.dot[corner] += dot;
    }
    return narrowed_pack<T>(sum);
  }

  // Turns a point's four dot products into its gradients; one of its lanes does.
  static FB_DEVICE void differentiate(const Chunk<T>& c, const Turn& turn, int32_t i, Shared& s, int thread,
                                      const Registers& r) {
    const Run run = Run::of(thread, c.lanes, turn.count);
    if (run.lane != 0 || run.begin + i >= turn.count) return;
    const Point& point = s.points[run.begin + i];
    const float (&dot)[4] = r.dot;
    float* const sums = s.sums[run.begin + i];
    sums[0] = ((dot[2] - dot[0]) * (1.0f - point.x) + (dot[3] - dot[1]) * point.x) * point.scale;
    sums[1] = ((dot[1] - dot[0]) * (1.0f - point.y) + (dot[3] - dot[2]) * point.y) * point.scale;
    sums[2] = 0.0f;
    for (int corner = 0; corner < 4; ++corner) sums[2] += dot[corner] * corner_weight(point.y, point.x, corner);
  }

  // Writes the gradients, neighbouring threads neighbouring positions.
  static FB_DEVICE void write(const Chunk<T>& c, const Turn& turn, const Shared& s, int thread) {
    const Problem<T>& p = c.p;
    const int64_t places = p.g.positions();
    const int32_t positions = turn.count / turn.taps;
    for (int32_t i = thread; i < turn.count; i += kThreads) {
      const int32_t tap = i / positions, position = i - tap * positions;
      const Place place = place_in(c, turn.first + position);
      const float (&sums)[3] = s.sums[position * turn.taps + tap];
      const int64_t plane = (place.image * p.g.offset_groups + turn.offset_group) * p.g.taps() + turn.tap + tap;
      if (p.grad_offset) p.grad_offset[plane * 2 * places + place.at] = narrowed<T>(sums[0]);
      if (p.grad_offset) p.grad_offset[(plane * 2 + 1) * places + place.at] = narrowed<T>(sums[1]);
      if (p.grad_mask) p.grad_mask[plane * places + place.at] = narrowed<T>(sums[2]);
    }
  }
};

}  // namespace flowers_bench
