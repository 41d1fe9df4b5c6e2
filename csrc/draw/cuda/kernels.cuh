// Draws images on a GPU: the whole numbers that a CPU computes, to the bit, in four kernels.
//
// `Weigh` computes the weights of both directions, `Down` sums rows up into lines of uint8, `Across` the pixels of
// lines into output, and `Colour` changes colours in place, once the mean grey is known. The lines of some images exist
// in device memory at once. All sums are of whole numbers, so that no order of threads changes a bit.
#pragma once

#include <cstdint>

#include "../../cuda/launch.h"
#include "../parameters.h"

namespace flowers_bench::draw {

// Images that one launch draws: what its arguments, 4 KB of them, have room for.
constexpr int32_t kMostImages = 32;
// What the lines of these may take, unless those of one image take more.
constexpr int64_t kLineBytes = int64_t(64) << 20;

// Which pixels of a line an output pixel is made of.
struct Span {
  int32_t first, count;
};

// Some images that are drawn together, and the memory that they are drawn with.
struct Images {
  Box box[kMostImages];
  Parameters parameters[kMostImages];
  int32_t count, side;
  int32_t taps;      // room for the pixels that one is made of
  int64_t bytes;     // room for a line
  uint64_t* sums;    // [image][3]: of the channels
  Span* spans;       // [image][down, across][side]
  int16_t* weights;  // [image][down, across][taps][side]
  uint8_t* lines;    // [image][side][bytes]
  uint8_t* out;      // [image][side][side][3]

  FB_DRAW_INLINE Span* span(int64_t image, bool across) const { return spans + (2 * image + across) * side; }
  FB_DRAW_INLINE int16_t* weight(int64_t image, bool across) const {
    return weights + (2 * image + across) * taps * side;
  }
  FB_DRAW_INLINE uint8_t* line(int64_t image, int64_t y) const { return lines + (image * side + y) * bytes; }
  FB_DRAW_INLINE int32_t pixels() const { return side * side; }
};

// Counts the blocks that have a thread for each of `count`.
FB_DRAW_INLINE int64_t blocks_for(int64_t count) { return (count + kThreads - 1) / kThreads; }

struct Weigh {
  using Params = Images;
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 1;

  static int64_t blocks(const Params& p) { return p.count * blocks_for(2 * p.side); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<Weigh>& team) {
    const int64_t parts = blocks_for(2 * p.side), image = block / parts;
    const Parameters& q = p.parameters[image];
    team.step([&](int thread, Registers&) {
      const auto i = static_cast<int32_t>(block % parts * kThreads) + thread;
      if (i >= 2 * p.side) return;
      const bool across = i >= p.side;
      const int32_t at = across ? i - p.side : i;
      const Taps taps(across ? q.width : q.height, p.side, across && q.mirrored ? p.side - 1 - at : at);
      p.span(image, across)[at] = {taps.first, taps.count};
      int16_t* const weight = p.weight(image, across) + at;
      int64_t sum = 0;
      for (int32_t j = 0; j < taps.count; ++j) weight[int64_t(j) * p.side] = taps.next_weight(j, sum);
    });
  }
};

struct Down {
  using Params = Images;
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 6;

  static int64_t blocks(const Params& p) { return int64_t(p.count) * p.side * blocks_for(p.bytes); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<Down>& team) {
    const int64_t parts = blocks_for(p.bytes), line = block / parts, image = line / p.side, y = line % p.side;
    const Box& box = p.box[image];
    const int64_t bytes = 3 * int64_t(p.parameters[image].width);
    team.step([&](int thread, Registers&) {
      const int64_t x = block % parts * kThreads + thread;
      if (x >= bytes) return;
      const Span span = p.span(image, false)[y];
      const int16_t* const weight = p.weight(image, false) + y;
      const uint8_t* const pixel = box.corner + span.first * box.row + x;
      int32_t sum = kHalf;
      for (int64_t j = 0; j < span.count; ++j) sum += pixel[j * box.row] * weight[j * p.side];
      p.line(image, y)[x] = weighted(sum);
    });
  }
};

struct Across {
  using Params = Images;
  struct Shared {};
  struct Registers {
    int32_t channel[3];
  };
  static constexpr int kResident = 6;

  static int64_t blocks(const Params& p) { return p.count * blocks_for(p.pixels()); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<Across>& team) {
    const int64_t parts = blocks_for(p.pixels()), image = block / parts;
    team.step([&](int thread, Registers& mine) {
      const auto at = static_cast<int32_t>(block % parts * kThreads) + thread;
      for (int c = 0; c < 3; ++c) mine.channel[c] = 0;
      if (at >= p.pixels()) return;
      const int32_t y = at / p.side, x = at % p.side;
      const Span span = p.span(image, true)[x];
      const int16_t* const weight = p.weight(image, true) + x;
      const uint8_t* const pixel = p.line(image, y) + 3 * int64_t(span.first);
      int32_t sum[3] = {kHalf, kHalf, kHalf};
      for (int64_t j = 0; j < span.count; ++j) {
        for (int c = 0; c < 3; ++c) sum[c] += pixel[3 * j + c] * weight[j * p.side];
      }
      uint8_t* const to = p.out + 3 * (image * p.pixels() + at);
      for (int c = 0; c < 3; ++c) to[c] = weighted(sum[c]), mine.channel[c] = to[c];
    });
    if (p.parameters[image].of_mean == 0) return;
    team.template lane_sum<3>(kWarp, [](Registers& r) -> int32_t (&)[3] { return r.channel; });
    team.step([&](int thread, Registers& mine) {
      if (thread % kWarp != 0) return;
      for (int c = 0; c < 3; ++c) add_whole(p.sums + 3 * image + c, static_cast<uint64_t>(mine.channel[c]));
    });
  }
};

struct Colour {
  using Params = Images;
  struct Shared {
    int32_t added[3];
  };
  struct Registers {};
  static constexpr int kResident = 6;

  static int64_t blocks(const Params& p) { return Across::blocks(p); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<Colour>& team) {
    const int64_t parts = blocks_for(p.pixels()), image = block / parts;
    const Parameters& q = p.parameters[image];
    if (!changes_colours(q)) return;
    team.phase([&](int thread, Registers&) {
      if (thread != 0) return;
      int64_t sums[3];
      for (int c = 0; c < 3; ++c) sums[c] = static_cast<int64_t>(p.sums[3 * image + c]);
      const int32_t grey = added_grey(sums, p.pixels(), q.of_mean);
      for (int c = 0; c < 3; ++c) team.shared.added[c] = q.offset[c] + grey;
    });
    team.phase([&](int thread, Registers&) {
      const auto at = static_cast<int32_t>(block % parts * kThreads) + thread;
      if (at >= p.pixels()) return;
      uint8_t* const to = p.out + 3 * (image * p.pixels() + at);
      const int32_t red = to[0], green = to[1], blue = to[2];
      for (int c = 0; c < 3; ++c) to[c] = coloured(q.matrix + 3 * c, red, green, blue, team.shared.added[c]);
    });
  }
};

// ---- All of it ----

// One call: N images, and what is drawn of them.
struct Call {
  const Box* boxes;
  const Parameters* parameters;
  int64_t count, side;
  uint8_t* out;  // (N, side, side, 3)
};

// Counts the memory that a call needs beside its images and its output, in bytes.
struct Room {
  int64_t images;  // that are drawn together
  int64_t taps, line;
  int64_t sums, spans, weights, lines;

  static Room of(const Call& c, int64_t limit = kLineBytes) {
    int64_t longest = 1, width = 1;
    for (int64_t i = 0; i < c.count; ++i) {
      const Parameters& p = c.parameters[i];
      const int64_t longer = p.height > p.width ? p.height : p.width;
      longest = longer > longest ? longer : longest, width = p.width > width ? p.width : width;
    }
    Room r;
    r.line = 3 * width;
    // Pixels whose distance from one is below that of two neighbours of the coarser line, on either side.
    r.taps = longest > c.side ? (2 * longest + c.side - 1) / c.side : 2;
    const int64_t fit = limit / (c.side * r.line), most = c.count < kMostImages ? c.count : int64_t(kMostImages);
    r.images = fit < 1 ? 1 : fit < most ? fit : most;
    r.sums = r.images * 3 * static_cast<int64_t>(sizeof(uint64_t));
    r.spans = r.images * 2 * c.side * static_cast<int64_t>(sizeof(Span));
    r.weights = r.images * 2 * c.side * r.taps * static_cast<int64_t>(sizeof(int16_t));
    r.lines = r.images * c.side * r.line;
    return r;
  }

  int64_t bytes() const { return sums + spans + weights + lines; }
};

// Draws all images; `memory` has room.bytes(), at an address of 8 bytes.
inline void run_draw(const Call& c, const Room& room, void* memory, Stream stream) {
  auto* const begin = static_cast<uint8_t*>(memory);
  Images p = {};
  p.side = static_cast<int32_t>(c.side), p.taps = static_cast<int32_t>(room.taps), p.bytes = room.line;
  p.sums = reinterpret_cast<uint64_t*>(begin);
  p.spans = reinterpret_cast<Span*>(begin + room.sums);
  p.weights = reinterpret_cast<int16_t*>(begin + room.sums + room.spans);
  p.lines = begin + room.sums + room.spans + room.weights;
  for (int64_t first = 0; first < c.count; first += room.images) {
    p.count = static_cast<int32_t>(c.count - first < room.images ? c.count - first : room.images);
    p.out = c.out + 3 * first * p.pixels();
    bool colours = false;
    for (int32_t i = 0; i < p.count; ++i) {
      p.box[i] = c.boxes[first + i], p.parameters[i] = c.parameters[first + i];
      colours = colours || changes_colours(p.parameters[i]);
    }
    fill_zero(p.sums, room.sums, stream);
    launch<Weigh>(p, Weigh::blocks(p), stream);
    launch<Down>(p, Down::blocks(p), stream);
    launch<Across>(p, Across::blocks(p), stream);
    if (colours) launch<Colour>(p, Colour::blocks(p), stream);
  }
}

}  // namespace flowers_bench::draw
