// Computes where the taps of a tile of positions sample, and cuts K into blocks.
#pragma once

#include "vectors.inl"

namespace flowers_bench::FB_ISA {
namespace {

constexpr int32_t kOutside = -1;    // in place of the first neighbour: the sample is 0
constexpr int32_t kNotFinite = -2;  // the sample is NaN

// Returns the sample that either stands for.
template <typename T>
FB_INLINE T without_pixels(int32_t mark) {
  T value;
  narrow(mark == kOutside ? Sum<T>(0) : Sum<T>(__builtin_nan("")), &value);
  return value;
}

// Names what the gradients of offset and mask need of a sample, besides its neighbours.
enum Slope {
  kWeightTop,
  kWeightBottom,
  kWeightLeft,
  kWeightRight,
  kSlopeTop,
  kSlopeBottom,
  kSlopeLeft,
  kSlopeRight,
  kMask,
  kSlopes
};

// Holds where the taps of some positions sample. Everything is kept in arrays over the positions, so that computing it
// vectorises.
template <typename T>
struct Tile {
  int64_t begin = 0, count = 0;
  int64_t size;  // most positions it can hold
  // Of each position:
  int64_t* image;      // n
  int64_t* place;      // oh * OW + ow
  int64_t* pixels;     // where its image begins in the input
  int64_t* offset_at;  // where its offsets and masks lie in memory
  int64_t* mask_at;
  int32_t* order;  // kWidePixels: the positions, in the order in which they are sampled
  Sum<T>* row;     // where tap (0, 0) lies undeformed
  Sum<T>* column;
  // Of each entry (offset group, tap) and position:
  // [entry][4][size]: offset of y, of x, mask, where they have to be copied; the fourth is empty, so that an entry's
  // tables lie at the same distances for all of them (accesses 4 KiB apart wait for each other)
  Sum<T>* given;
  int32_t* at;     // [entry][4][size]: the four neighbours, as pixels of the image
  Sum<T>* weight;  // [entry][4][size]: times the mask
  Sum<T>* slopes;  // [entry][kSlopes][size], for a backward pass

  Tile(const Problem<T>& q, Arena& arena, bool backward) : size(tile_size(q, backward)) {
    image = arena.template take<int64_t>(size);
    place = arena.template take<int64_t>(size);
    pixels = arena.template take<int64_t>(size);
    offset_at = arena.template take<int64_t>(size);
    mask_at = arena.template take<int64_t>(size);
    order = arena.template take<int32_t>(kWidePixels ? size : 0);
    row = arena.template take<Sum<T>>(size);
    column = arena.template take<Sum<T>>(size);
    const int64_t entries = q.g.offset_groups * q.g.taps();
    given = arena.template take<Sum<T>>(entries * 4 * size);
    at = arena.template take<int32_t>(entries * 4 * size);
    weight = arena.template take<Sum<T>>(entries * 4 * size);
    slopes = arena.template take<Sum<T>>(backward ? entries * kSlopes * size : 0);
  }

  // Chooses how many positions a tile has, so that what belongs to it fits the cache. Forward with a small weight,
  // which stays in the second-level cache whatever happens, takes few: their columns then stay in the first, or leave
  // most of a large second to the pixels.
  static int64_t tile_size(const Problem<T>& q, bool backward) {
    const int64_t entry = 4 * sizeof(int32_t) + (backward ? 8 + kSlopes + 3 : 8) * sizeof(Sum<T>);
    const int64_t outputs = q.gemm_groups() * q.padded(q.width());
    const int64_t depth = backward ? kDepth<T> : kForwardDepth<T>;
    const int64_t columns = depth * (backward ? sizeof(Sum<T>) : sizeof(T));
    const int64_t each = q.g.offset_groups * q.g.taps() * entry + columns + outputs * sizeof(Sum<T>);
    const int64_t fitting = kTileBytes / each / kRows * kRows;
    const bool small_weight = q.weight_size() * int64_t(sizeof(T)) <= kTileBytes / 2;
    return larger(2 * kRows, smaller(fitting, small_weight && !backward ? kSmallTile : kMaxTile));
  }
};

template <typename T>
FB_INLINE void fill(T* to, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

// Orders the positions by stripes of a few columns, one stripe after the other from top to bottom: the pixels around
// those of a stripe fit the first-level cache, the ones around whole rows of the image do not.
template <typename T>
void order_positions(const Problem<T>& q, Tile<T>& tile) {
  constexpr int64_t kStripe = 8;
  const int64_t width = q.g.out_width, left = tile.place[0] % width, rows = ceil_div(left + tile.count, width);
  int64_t ordered = 0;
  for (int64_t x = 0; x < width; x += kStripe) {
    for (int64_t y = 0; y < rows; ++y) {
      const int64_t begin = y * width + x - left, end = smaller(begin + smaller(kStripe, width - x), tile.count);
      for (int64_t p = larger(begin, 0); p < end; ++p) tile.order[ordered++] = int32_t(p);
    }
  }
}

// Takes consecutive positions apart into image, row and column.
template <typename T>
void place(const Problem<T>& q, int64_t begin, int64_t count, Tile<T>& tile) {
  const Geometry& g = q.g;
  tile.begin = begin, tile.count = count;
  int64_t n = begin / g.positions(), at = begin % g.positions();
  int64_t y = at / g.out_width, x = at % g.out_width;
  for (int64_t p = 0; p < count; ++p) {
    tile.image[p] = n, tile.place[p] = at;
    tile.pixels[p] = n * g.height * g.width * g.channels;
    tile.row[p] = Sum<T>(tap_origin(y, g.stride_h, g.pad_h, 0, 0));
    tile.column[p] = Sum<T>(tap_origin(x, g.stride_w, g.pad_w, 0, 0));
    tile.offset_at[p] = n * q.offset.stride[0] + at * q.offset.stride[2];
    tile.mask_at[p] = n * q.mask.stride[0] + at * q.mask.stride[2];
    ++at;
    if (++x == g.out_width) x = 0, ++y;
    if (at == g.positions()) at = 0, y = 0, ++n;
  }
  if constexpr (kWidePixels) order_positions(q, tile);
}

// Returns the values from[at[p] + shift] of all positions p: where they lie, if they lie beside each other and need no
// conversion, else copied into `to`.
template <typename T>
const Sum<T>* read(const Strided& from, const int64_t* at, int64_t shift, int64_t count, Sum<T>* to) {
  const bool consecutive = from.stride[2] == 1 && at[count - 1] - at[0] == count - 1;  // all of one image
  const Sum<T>* found = to;
  with_storage(from.storage, T{}, [&](auto* kind) {
    const auto* data = static_cast<decltype(kind)>(from.data) + shift;
    if (!consecutive) {
      for (int64_t p = 0; p < count; ++p) to[p] = widen(data[at[p]]);
      return;
    }
    data += at[0];
    // The next tile's: as many planes as there are of offsets are more streams than the hardware foresees.
    for (int64_t p = 0; p < count; p += 64 / sizeof(*data)) __builtin_prefetch(data + count + p);
    if constexpr (sizeof(*kind) == sizeof(Sum<T>)) {
      found = data;  // no smaller type that has to be widened
    } else {
      for (int64_t p = 0; p < count; ++p) to[p] = widen(data[p]);
    }
  });
  return found;
}

// Returns the first neighbour, or in its stead the mark of a sample that is 0 (it lies outside) or NaN (a coordinate,
// or its mask, is not finite). Selections of one condition each, which vectorise.
template <typename T>
FB_INLINE int32_t marked(int32_t first, T y, T x, T mask, const AxisSample<T>& v, const AxisSample<T>& h) {
  const int32_t inside = v.weight_low + v.weight_high > 0 ? first : kOutside;
  const int32_t marked = h.weight_low + h.weight_high > 0 ? inside : kOutside;
  const int32_t poisoned = marked < 0 ? kNotFinite : marked;
  const T zero = (y - y) + (x - x) + (mask - mask);
  return zero == 0 ? marked : poisoned;
}

// Computes all samples of one entry, in one sweep that vectorises.
template <typename T, bool kBackward>
void tabulate_entry(const Problem<T>& q, const Tile<T>& tile, int64_t entry) {
  typedef Sum<T> S;
  const Geometry& g = q.g;
  const int64_t count = tile.count, size = tile.size, tap = entry % g.taps();
  S* const given = tile.given + entry * 4 * size;
  const S* const y_offset = read<T>(q.offset, tile.offset_at, 2 * entry * q.offset.stride[1], count, given);
  const S* const x_offset =
      read<T>(q.offset, tile.offset_at, (2 * entry + 1) * q.offset.stride[1], count, given + size);
  const S* mask = given + 2 * size;
  if (g.use_mask) {
    mask = read<T>(q.mask, tile.mask_at, entry * q.mask.stride[1], count, given + 2 * size);
  } else {
    fill(given + 2 * size, count, S(1));
  }
  const S tap_y = S(tap / g.kernel_w * g.dilation_h), tap_x = S(tap % g.kernel_w * g.dilation_w);
  const int32_t height = int32_t(g.height), width = int32_t(g.width);
  const S* const row = tile.row;
  const S* const column = tile.column;
  int32_t* const at = tile.at + entry * 4 * size;
  S* const weight = tile.weight + entry * 4 * size;
  S* const slopes = kBackward ? tile.slopes + entry * kSlopes * size : nullptr;
#pragma GCC ivdep
  for (int64_t p = 0; p < count; ++p) {
    const S y = y_offset[p] + (row[p] + tap_y), x = x_offset[p] + (column[p] + tap_x), m = mask[p];
    const AxisSample<S> v = sample_axis(y, height), h = sample_axis(x, width);
    const int32_t low = v.low * width, high = v.high * width;
    at[p] = marked(low + h.low, y, x, m, v, h), at[size + p] = low + h.high;
    at[2 * size + p] = high + h.low, at[3 * size + p] = high + h.high;
    const S top = v.weight_low * m, bottom = v.weight_high * m;
    weight[p] = top * h.weight_low, weight[size + p] = top * h.weight_high;
    weight[2 * size + p] = bottom * h.weight_low, weight[3 * size + p] = bottom * h.weight_high;
    if constexpr (kBackward) {
      slopes[kWeightTop * size + p] = v.weight_low, slopes[kWeightBottom * size + p] = v.weight_high;
      slopes[kWeightLeft * size + p] = h.weight_low, slopes[kWeightRight * size + p] = h.weight_high;
      slopes[kSlopeTop * size + p] = v.slope_low, slopes[kSlopeBottom * size + p] = v.slope_high;
      slopes[kSlopeLeft * size + p] = h.slope_low, slopes[kSlopeRight * size + p] = h.slope_high;
      slopes[kMask * size + p] = m;
    }
  }
}

// Computes all samples of the tile.
template <typename T, bool kBackward>
void tabulate(const Problem<T>& q, const Tile<T>& tile) {
  for (int64_t entry = 0; entry < q.g.offset_groups * q.g.taps(); ++entry) tabulate_entry<T, kBackward>(q, tile, entry);
}

// Holds the sample of position p in one entry: the neighbours, from channel 0 on, as distances into the input.
template <typename T>
struct Neighbours {
  int64_t at[4];
  Sum<T> weight[4];

  FB_INLINE Neighbours(const Tile<T>& tile, int64_t channels, int64_t entry, int64_t p) {
    const int32_t* const first = tile.at + entry * 4 * tile.size + p;
    const Sum<T>* const weights = tile.weight + entry * 4 * tile.size + p;
    const int64_t pixels = tile.pixels[p];
    for (int corner = 0; corner < 4; ++corner) {
      at[corner] = pixels + first[corner * tile.size] * channels;
      weight[corner] = weights[corner * tile.size];
    }
  }
};

// ---- Blocks of K, and the runs of channels that they consist of ----

struct Block {
  int64_t group;   // of the product
  int64_t k0, k1;  // of that group's K, k0 on a panel's edge
};

// Cuts a group's K into blocks no deeper than `deepest`: into spans, each of which begins with a block. Where
// channels fill whole panels, blocks end with taps, and where they are many, each has its own: a position that samples
// outside with one tap then has nothing in whole blocks. Few channels are sampled with many taps at once: a position's
// taps share most of their pixels.
template <typename T>
struct Cut {
  int64_t groups, spans, span, blocks_of_span, block;

  FB_INLINE Cut(const Problem<T>& q, int64_t deepest) : groups(q.gemm_groups()) {
    const int64_t channels = q.g.channels / groups;
    const bool whole = channels % kPanel<T> == 0, within_taps = whole && channels * int64_t(sizeof(Sum<T>)) >= 1024;
    const int64_t unit = whole && !within_taps ? channels : kPanel<T>;
    span = within_taps ? channels : q.depth();
    spans = q.depth() / span;
    blocks_of_span = ceil_div(span, deepest / unit * unit);
    block = round_up(ceil_div(span, blocks_of_span), unit);
  }

  int64_t blocks() const { return groups * spans * blocks_of_span; }

  Block at(int64_t index) const {
    const int64_t each = spans * blocks_of_span, of_group = index % each;
    const int64_t begin = of_group / blocks_of_span * span, within = of_group % blocks_of_span * block;
    return {index / each, begin + smaller(within, span), begin + smaller(within + block, span)};
  }
};

// The distance between positions in a tile's columns, of numbers C: an odd number of lines, or they would crowd few
// sets of the cache.
template <typename C>
constexpr int64_t kColumns = kForwardDepth<C> + 64 / int64_t(sizeof(C));

// Names channels [channel, channel + length) of one tap and one offset group, in columns k, k + 1, ... of the block.
struct Run {
  int64_t entry;  // offset group * taps + tap
  int64_t channel, length, k;
};

// Calls f(run) for the runs of a block, in the order of K.
template <typename T, typename F>
FB_INLINE void for_each_run(const Problem<T>& q, const Block& block, F f) {
  const int64_t group_channels = q.g.channels / q.gemm_groups();
  const int64_t sharing = q.g.channels / q.g.offset_groups;
  for (int64_t k = block.k0; k < block.k1;) {
    const int64_t within = k % group_channels, channel = block.group * group_channels + within;
    const int64_t offset_group = channel / sharing;
    const int64_t length =
        smaller(smaller(group_channels - within, block.k1 - k), (offset_group + 1) * sharing - channel);
    f(Run{offset_group * q.g.taps() + k / group_channels, channel, length, k - block.k0});
    k += length;
  }
}

}  // namespace
}  // namespace flowers_bench::FB_ISA
