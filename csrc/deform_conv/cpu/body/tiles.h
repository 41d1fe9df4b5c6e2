// Tiles: where the taps of some positions sample; and blocks of K. A part of kernel_body.h,
// which includes it inside its namespace, once for each instruction set.

constexpr int32_t kOutside = -1;    // in place of the first neighbour: the sample is 0
constexpr int32_t kNotFinite = -2;  // the sample is NaN

// What the gradients of offset and mask need of a sample, besides its neighbours.
enum Slope { kWeightTop, kWeightBottom, kWeightLeft, kWeightRight, kSlopeTop, kSlopeBottom, kSlopeLeft, kSlopeRight,
             kMask, kSlopes };

// Everything about a sample is kept in arrays over the tile's positions, so that computing it vectorises.
template <typename T>
struct Tile {
  int64_t begin = 0, count = 0;
  int64_t size;  // most positions it can hold
  // Of each position:
  int64_t* image;     // n
  int64_t* place;     // oh * OW + ow
  int64_t* pixels;    // where its image begins in the input
  int64_t* offset_at;  // where its offsets and masks lie in memory
  int64_t* mask_at;
  T* row;  // where tap (0, 0) lies undeformed
  T* column;
  // Of each entry (offset group, tap) and position:
  int32_t* at;  // [entry][4][size]: the four neighbours, as pixels of the image
  T* weight;    // [entry][4][size]: times the mask
  T* slopes;    // [entry][kSlopes][size], for a backward pass

  Tile(const Problem<T>& q, Arena& arena, bool backward) : size(tile_size(q, backward)) {
    image = arena.template take<int64_t>(size);
    place = arena.template take<int64_t>(size);
    pixels = arena.template take<int64_t>(size);
    offset_at = arena.template take<int64_t>(size);
    mask_at = arena.template take<int64_t>(size);
    row = arena.template take<T>(size);
    column = arena.template take<T>(size);
    const int64_t entries = q.g.offset_groups * q.g.taps();
    at = arena.template take<int32_t>(entries * 4 * size);
    weight = arena.template take<T>(entries * 4 * size);
    slopes = arena.template take<T>(backward ? entries * kSlopes * size : 0);
  }

  // Positions of a tile, so that what belongs to it fits the cache. Forward with a small weight, which stays in the
  // second-level cache whatever happens, takes few: their columns then stay in the first.
  static int64_t tile_size(const Problem<T>& q, bool backward) {
    const int64_t entry = 4 * sizeof(int32_t) + (backward ? 4 + kSlopes + 3 : 4) * sizeof(T);
    const int64_t outputs = q.gemm_groups() * q.padded(q.width());
    const int64_t each = q.g.offset_groups * q.g.taps() * entry + (kDepth<T> + outputs) * sizeof(T);
    const int64_t fitting = kTileBytes / each / kRows * kRows;
    const bool small_weight = q.weight_size() * int64_t(sizeof(T)) <= kTileBytes / 2;
    return larger(2 * kRows, smaller(fitting, small_weight && !backward ? 4 * kRows : kMaxTile));
  }
};

template <typename T>
void place(const Problem<T>& q, int64_t begin, int64_t count, Tile<T>& tile) {
  const Geometry& g = q.g;
  tile.begin = begin, tile.count = count;
  int64_t n = begin / g.positions(), at = begin % g.positions();
  int64_t y = at / g.out_width, x = at % g.out_width;
  for (int64_t p = 0; p < count; ++p) {
    tile.image[p] = n, tile.place[p] = at;
    tile.pixels[p] = n * g.height * g.width * g.channels;
    tile.row[p] = T(tap_origin(y, g.stride_h, g.pad_h, 0, 0));
    tile.column[p] = T(tap_origin(x, g.stride_w, g.pad_w, 0, 0));
    tile.offset_at[p] = n * q.offset.stride[0] + at * q.offset.stride[2];
    tile.mask_at[p] = n * q.mask.stride[0] + at * q.mask.stride[2];
    ++at;
    if (++x == g.out_width) x = 0, ++y;
    if (at == g.positions()) at = 0, y = 0, ++n;
  }
}

// to[p] = from[at[p] + shift].
template <typename T>
void read(const Strided& from, const int64_t* at, int64_t shift, int64_t count, T* to) {
  with_storage(from.storage, T(0), [&](auto* kind) {
    const auto* data = static_cast<decltype(kind)>(from.data) + shift;
    if (from.stride[2] == 1 && at[count - 1] - at[0] == count - 1) {  // in one image: whole vectors
      // The next tile's: as many planes as there are of offsets are more streams than the hardware foresees.
      for (int64_t p = 0; p < count; p += 64 / sizeof(*data)) __builtin_prefetch(data + at[0] + count + p);
      for (int64_t p = 0; p < count; ++p) to[p] = widen(data[at[0] + p]);
    } else {
      for (int64_t p = 0; p < count; ++p) to[p] = widen(data[at[p]]);
    }
  });
}

// One axis of all samples of a tap.
template <typename T>
struct Axis {
  T at[kMaxTile], weight_low[kMaxTile], weight_high[kMaxTile], slope_low[kMaxTile], slope_high[kMaxTile];
  int32_t low[kMaxTile], high[kMaxTile];

  // `at` holds offsets; `base` and `tap` say what they are added to.
  void sample(int64_t count, const T* base, T tap, int32_t size) {
    for (int64_t p = 0; p < count; ++p) at[p] += base[p] + tap;
    for (int64_t p = 0; p < count; ++p) {
      const AxisSample<T> s = sample_axis(at[p], size);
      low[p] = s.low, high[p] = s.high;
      weight_low[p] = s.weight_low, weight_high[p] = s.weight_high;
      slope_low[p] = s.slope_low, slope_high[p] = s.slope_high;
    }
  }
};

template <typename T>
void write_slopes(int64_t count, const Axis<T>& y, const Axis<T>& x, const T* mask, int64_t size, T* to) {
  const T* const from[kSlopes] = {y.weight_low, y.weight_high, x.weight_low, x.weight_high, y.slope_low,
                                  y.slope_high, x.slope_low,   x.slope_high, mask};
  for (int slope = 0; slope < kSlopes; ++slope) __builtin_memcpy(to + slope * size, from[slope], count * sizeof(T));
}

// Marks the samples that are 0 since they lie outside, and NaN since a coordinate, or their mask, is not finite.
template <typename T>
void mark(int64_t count, const Axis<T>& y, const Axis<T>& x, const T* mask, int32_t* first) {
  for (int64_t p = 0; p < count; ++p) {
    const int32_t inside = y.weight_low[p] + y.weight_high[p] > 0 ? first[p] : kOutside;
    const int32_t marked = x.weight_low[p] + x.weight_high[p] > 0 ? inside : kOutside;
    const int32_t poisoned = marked < 0 ? kNotFinite : marked;
    const T zero = (y.at[p] - y.at[p]) + (x.at[p] - x.at[p]) + (mask[p] - mask[p]);
    first[p] = zero == 0 ? marked : poisoned;
  }
}

template <typename T>
void tabulate_tap(const Problem<T>& q, const Tile<T>& tile, int64_t entry, bool backward) {
  const Geometry& g = q.g;
  const int64_t count = tile.count, size = tile.size, tap = entry % g.taps();
  Axis<T> y, x;
  T mask[kMaxTile];
  read(q.offset, tile.offset_at, 2 * entry * q.offset.stride[1], count, y.at);
  read(q.offset, tile.offset_at, (2 * entry + 1) * q.offset.stride[1], count, x.at);
  if (g.use_mask) {
    read(q.mask, tile.mask_at, entry * q.mask.stride[1], count, mask);
  } else {
    for (int64_t p = 0; p < count; ++p) mask[p] = T(1);
  }
  y.sample(count, tile.row, T(tap / g.kernel_w * g.dilation_h), int32_t(g.height));
  x.sample(count, tile.column, T(tap % g.kernel_w * g.dilation_w), int32_t(g.width));
  int32_t* at = tile.at + entry * 4 * size;
  T* weight = tile.weight + entry * 4 * size;
  const int32_t width = int32_t(g.width);
  for (int64_t p = 0; p < count; ++p) {
    at[p] = y.low[p] * width + x.low[p], at[size + p] = y.low[p] * width + x.high[p];
    at[2 * size + p] = y.high[p] * width + x.low[p], at[3 * size + p] = y.high[p] * width + x.high[p];
  }
  for (int64_t p = 0; p < count; ++p) {
    const T top = y.weight_low[p] * mask[p], bottom = y.weight_high[p] * mask[p];
    weight[p] = top * x.weight_low[p], weight[size + p] = top * x.weight_high[p];
    weight[2 * size + p] = bottom * x.weight_low[p], weight[3 * size + p] = bottom * x.weight_high[p];
  }
  mark(count, y, x, mask, at);
  if (backward) write_slopes(count, y, x, mask, size, tile.slopes + entry * kSlopes * size);
}

template <typename T>
void tabulate(const Problem<T>& q, const Tile<T>& tile, bool backward) {
  for (int64_t entry = 0; entry < q.g.offset_groups * q.g.taps(); ++entry) tabulate_tap(q, tile, entry, backward);
}

// The sample of position p in one entry: the neighbours, from channel 0 on, as distances into the input.
template <typename T>
struct Neighbours {
  int64_t at[4];
  T weight[4];

  FB_INLINE Neighbours(const Tile<T>& tile, int64_t channels, int64_t entry, int64_t p) {
    const int32_t* const first = tile.at + entry * 4 * tile.size + p;
    const T* const weights = tile.weight + entry * 4 * tile.size + p;
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

// How a group's K is cut: into spans, each of which begins with a block. Where channels fill whole panels, blocks end
// with taps: a position that samples outside with one tap then has nothing in whole blocks.
template <typename T>
struct Cut {
  int64_t spans, span, blocks_of_span, block;

  FB_INLINE explicit Cut(const Problem<T>& q) {
    const int64_t channels = q.g.channels / q.gemm_groups();
    const bool whole = channels % kPanel<T> == 0, within_taps = whole && channels > kDepth<T>;
    const int64_t unit = whole && !within_taps ? channels : kPanel<T>;
    span = within_taps ? channels : q.depth();
    spans = q.depth() / span;
    blocks_of_span = ceil_div(span, kDepth<T> / unit * unit);
    block = round_up(ceil_div(span, blocks_of_span), unit);
  }
};

template <typename T>
int64_t blocks(const Problem<T>& q) {
  const Cut<T> cut(q);
  return q.gemm_groups() * cut.spans * cut.blocks_of_span;
}

template <typename T>
Block block_at(const Problem<T>& q, int64_t index) {
  const Cut<T> cut(q);
  const int64_t each = cut.spans * cut.blocks_of_span, of_group = index % each;
  const int64_t begin = of_group / cut.blocks_of_span * cut.span, within = of_group % cut.blocks_of_span * cut.block;
  return {index / each, begin + smaller(within, cut.span), begin + smaller(within + cut.block, cut.span)};
}

// Distance between positions in a tile's columns: off a power of two, which would crowd few sets of the cache.
template <typename T>
constexpr int64_t kColumns = kDepth<T> + 2 * kPanel<T>;

// Channels [channel, channel + length) of one tap and one offset group, in columns k, k + 1, ... of the block.
struct Run {
  int64_t entry;  // offset group * taps + tap
  int64_t channel, length, k;
};

template <typename T, typename F>
FB_INLINE void for_each_run(const Problem<T>& q, const Block& block, F f) {
  const int64_t group_channels = q.g.channels / q.gemm_groups();
  const int64_t sharing = q.g.channels / q.g.offset_groups;
  for (int64_t k = block.k0; k < block.k1;) {
    const int64_t within = k % group_channels, channel = block.group * group_channels + within;
    const int64_t offset_group = channel / sharing;
    const int64_t length = smaller(smaller(group_channels - within, block.k1 - k),
                                   (offset_group + 1) * sharing - channel);
    f(Run{offset_group * q.g.taps() + k / group_channels, channel, length, k - block.k0});
    k += length;
  }
}

template <typename T>
FB_INLINE void fill(T* to, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}
