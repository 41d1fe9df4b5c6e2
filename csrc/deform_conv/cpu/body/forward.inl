// Computes the output.
#pragma once

#include "products.inl"
#include "rows.inl"
#include "tiles.inl"
#include "weights.inl"

namespace flowers_bench::FB_ISA {
namespace {

// Weighs and adds up the four neighbours of a sample: a vector of channels from channel `i` on. `Of` names the vector
// rather than being it: a template argument would lose its alignment.
template <typename Of, typename T>
FB_INLINE void blend_as(const T* const from[4], const T weight[4], int64_t i, T* to) {
  const auto at = [&](int corner) { return *reinterpret_cast<const typename Of::Loose*>(from[corner] + i); };
  *reinterpret_cast<typename Of::Loose*>(to + i) =
      weight[0] * at(0) + weight[1] * at(1) + weight[2] * at(2) + weight[3] * at(3);
}

// Does so for kBlend channels.
template <typename T>
constexpr int64_t kBlend = kFactor<T> * kLanes<T>;
#if !defined(FB_PAIRS)
template <typename T>
FB_INLINE void blend(const T* const from[4], const T weight[4], int64_t i, T* to) {
  blend_as<VectorOf<T>>(from, weight, i, to);
}
#endif
#if defined(FB_AMX)
FB_INLINE Vector<float> blended(const float* const from[4], const float weight[4], int64_t i) {
  return weight[0] * load(from[0] + i) + weight[1] * load(from[1] + i) + weight[2] * load(from[2] + i) +
         weight[3] * load(from[3] + i);
}
FB_INLINE void blend(const float* const from[4], const float weight[4], int64_t i, BFloat16* to) {
  store_rounded(to + i, blended(from, weight, i), blended(from, weight, i + kLanes<float>));
}
// Samples for the gradient of the weight, which pairs positions, are rounded later.
FB_INLINE void blend(const float* const from[4], const float weight[4], int64_t i, float* to) {
  store(to + i, blended(from, weight, i));
  store(to + i + kLanes<float>, blended(from, weight, i + kLanes<float>));
}
#elif defined(FB_PAIRS)
// Each half of a pair is half of a float: the first once it is moved up, the second once the first is cut off.
FB_INLINE void blend_halves(const BFloat16* const from[4], const float weight[4], int64_t i, Vector<float> sum[2]) {
  sum[0] = sum[1] = Vector<float>{};
#pragma GCC unroll 4
  for (int corner = 0; corner < 4; ++corner) {
    const Bits both = (Bits)load(factors(from[corner] + i));
    sum[0] += weight[corner] * (Vector<float>)(both << 16);
    sum[1] += weight[corner] * (Vector<float>)(both & 0xffff0000u);
  }
}
FB_INLINE void blend(const BFloat16* const from[4], const float weight[4], int64_t i, BFloat16* to) {
  Vector<float> sum[2];
  blend_halves(from, weight, i, sum);
  store(reinterpret_cast<float*>(to + i), pairs(sum[0], sum[1]));
}
// Samples for the gradient of the weight, which pairs positions, are rounded later.
FB_INLINE void blend(const BFloat16* const from[4], const float weight[4], int64_t i, float* to) {
  for (int64_t half = i; half < i + kBlend<BFloat16>; half += kLanes<float>) {
    Vector<float> sum = {};
    for (int corner = 0; corner < 4; ++corner) sum += weight[corner] * load_wide(from[corner] + half);
    store(to + half, sum);
  }
}
#endif

// Channels that `sample_taps` samples in one go.
template <typename T>
constexpr int64_t kStretch = 256 / sizeof(Sum<T>);

// Calls `sample_row(p, row)` for the row of columns of each position: position after position, since their neighbours
// lie close and are still in the first-level cache. A position all of whose `count` samples lie outside, which
// `first(sample, p)` of Tile::at tells, adds nothing: where the caller gives `kept`, it gets no row, and kept[row] is
// the position that a row is of. Returns the number of rows.
template <typename T, typename C, typename First, typename SampleRow>
FB_INLINE int64_t sample_rows(const Tile<T>& tile, int64_t count, C* columns, int32_t* kept, const First& first,
                              const SampleRow& sample_row) {
  if constexpr (kWidePixels) {  // rows outside cost little where products do
    for (int64_t i = 0; i < tile.count; ++i) sample_row(tile.order[i], columns + tile.order[i] * kColumns<C>);
    return tile.count;
  }
  int64_t rows = 0;
  for (int64_t p = 0, positions = tile.count; p < positions; ++p) {
    if (kept) {
      int64_t outside = 0;
      while (outside < count && first(outside, p) == kOutside) ++outside;
      if (outside == count) continue;
      kept[rows] = int32_t(p);
    }
    sample_row(p, columns + rows++ * kColumns<C>);
  }
  return rows;
}

// Samples runs of any lengths into columns, for each position of the tile; returns the number of rows.
template <typename T, typename C>
int64_t sample_runs(const Problem<T>& q, const Tile<T>& given, const Run* runs, int64_t count, C* columns,
                    int32_t* kept) {
  const Tile<T> tile = given;  // a copy that no store to the columns could change: it stays in registers
  const int64_t channels = q.g.channels;
  const auto first = [&](int64_t r, int64_t p) { return tile.at[runs[r].entry * 4 * tile.size + p]; };
  return sample_rows(tile, count, columns, kept, first, [&](int64_t p, C* row) {
    for (int64_t r = 0; r < count; ++r) {
      const Run run = runs[r];
      C* const to = row + run.k;
      if (first(r, p) < 0) {
        fill(to, run.length, without_pixels<C>(first(r, p)));
        continue;
      }
      const Neighbours<T> s(tile, channels, run.entry, p);
      const Pixel<T>* const input = pixels(q) + run.channel;
      const Pixel<T>* const from[4] = {input + s.at[0], input + s.at[1], input + s.at[2], input + s.at[3]};
      int64_t i = 0;
      for (; i + kBlend<T> <= run.length; i += kBlend<T>) blend(from, s.weight, i, to);
      if constexpr (kFactor<T> == 1) {  // of pairs, whole vectors are all there is
        constexpr int64_t kSmall = 16 / sizeof(T);
        for (; i + kSmall <= run.length; i += kSmall) blend_as<VectorOf<T, 16>>(from, s.weight, i, to);
        for (; i < run.length; ++i) blend_as<ScalarOf<T>>(from, s.weight, i, to);
      }
    }
  });
}

// Does the same for `count` taps of one offset group, all with the channels of `first` and so many that whole stretches
// cover them. A sample is little work, so that what else there is to do for it counts: here it is a few steps of
// pointers.
template <typename T, typename C>
int64_t sample_taps(const Problem<T>& q, const Tile<T>& tile, const Run& first, int64_t count, C* columns,
                    int32_t* kept) {
  const int64_t channels = q.g.channels, size = tile.size, entry = 4 * size, length = first.length;
  const int32_t* const tables = tile.at + first.entry * entry;
  const Sum<T>* const weights = tile.weight + first.entry * entry;
  const Pixel<T>* const input = pixels(q) + first.channel;
  const auto first_of = [&](int64_t tap, int64_t p) { return tables[tap * entry + p]; };
  return sample_rows(tile, count, columns, kept, first_of, [&](int64_t p, C* row) {
    const Pixel<T>* const image = input + tile.pixels[p];
    const int32_t* at = tables + p;
    const Sum<T>* w = weights + p;
    for (C* const end = row + count * length; row != end; row += length, at += entry, w += entry) {
      if (at[0] < 0) {
        fill(row, length, without_pixels<C>(at[0]));
        continue;
      }
      const Pixel<T>* const from[4] = {image + at[0] * channels, image + at[size] * channels,
                                       image + at[2 * size] * channels, image + at[3 * size] * channels};
      const Sum<T> weight[4] = {w[0], w[size], w[2 * size], w[3 * size]};
      int64_t i = 0;
      do {
#pragma GCC unroll 16
        for (int64_t stop = i + kStretch<T>; i < stop; i += kBlend<T>) blend(from, weight, i, row);
      } while (i < length);
    }
  });
}

// Samples a block of K into columns, for each position of the tile; returns the number of rows.
template <typename T, typename C>
int64_t sample(const Problem<T>& q, const Tile<T>& tile, const Block& block, C* columns, int32_t* kept = nullptr) {
  Run runs[kForwardDepth<T>];
  int64_t count = 0;
  bool taps = true;
  for_each_run(q, block, [&](const Run& run) {
    runs[count] = run;
    const Run& first = runs[0];
    taps = taps && run.entry == first.entry + count && run.channel == first.channel && run.length == first.length &&
           run.length % kStretch<T> == 0;
    ++count;
  });
  return taps ? sample_taps(q, tile, runs[0], count, columns, kept) : sample_runs(q, tile, runs, count, columns, kept);
}

// Says whether the output's own memory is rows of sums that products can add to: nothing to pad, convert or transpose.
template <typename T>
bool sums_in_place(const Problem<T>& q) {
  const int64_t outputs = q.g.out_channels;
  return q.out.storage == (sizeof(Sum<T>) == 4 ? Storage::kFloat32 : Storage::kFloat64) && q.out.stride[1] == 1 &&
         q.out.stride[2] == outputs && q.out.stride[0] == q.g.positions() * outputs && q.padded(q.width()) == q.width();
}

template <typename T>
struct ForwardBuffers {
  Tile<T> tile;
  T* columns;
  int32_t* kept;
  T* panel;             // of the weight, where that is not packed
  RowsTo<Sum<T>> sums;  // without data where they are in place

  ForwardBuffers(const Problem<T>& q, Arena& arena)
      : tile(q, arena, false),
        // With room behind: products fetch rows ahead, and would take what lies there from another core.
        columns(arena.template take<T>((tile.size + kRows) * kColumns<T>)),
        kept(kWidePixels ? nullptr : arena.template take<int32_t>(tile.size)),
        panel(arena.template take<T>(q.weight ? 0 : kForwardDepth<T> * kPanel<T>)),
        sums{nullptr, q.gemm_groups() * q.padded(q.width())} {
    if (!sums_in_place(q)) sums.data = arena.template take<Sum<T>>(tile.size * sums.stride);
  }
};

// Adds columns x weight to c where the weight is not packed: packs each panel just before its only use.
template <typename T>
void multiply_unpacked(const Problem<T>& q, const Block& block, int64_t rows, const T* columns, T* panel,
                       const RowsTo<Sum<T>>& c) {
  const int64_t panels = q.padded(q.width()) / kPanel<T>;
  for (int64_t j = 0; j < panels; ++j) {
    pack_panel(q, q.unpacked, block.group * panels + j, block.k0, block.k1, panel);
    product<T>(rows, smaller(kPanel<T>, q.width() - j * kPanel<T>), (block.k1 - block.k0) / kFactor<T>,
               factors(columns), kColumns<T> / kFactor<T>, factors(panel), 0, c.from(0, j * kPanel<T>), true);
  }
}

// Adds columns x weight to the sums (position, outputs); row i of the columns is of position kept[i].
template <typename T>
void multiply(const Problem<T>& q, const Block& block, int64_t rows, const ForwardBuffers<T>& b) {
  const T* const columns = b.columns;
  if (!q.depthwise()) {
    const int64_t width = q.padded(q.width()), panel = q.depth() * kPanel<T> / kFactor<T>;
    const RowsTo<Sum<T>> c{b.sums.data + block.group * width, b.sums.stride, b.kept};
    if (!q.weight) return multiply_unpacked(q, block, rows, columns, b.panel, c);
    const T* weight = q.weight + block.group * q.depth() * width + block.k0 * kPanel<T>;
    return product<T>(rows, q.width(), (block.k1 - block.k0) / kFactor<T>, factors(columns), kColumns<T> / kFactor<T>,
                      factors(weight), panel, c, true);
  }
  for_each_run(q, block, [&](const Run& run) {
    const T* weight = q.weight + block.k0 + run.k;
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = columns + i * kColumns<T> + run.k;
      Sum<T>* to = b.sums.at(b.kept[i]) + run.channel;
      for (int64_t c = 0; c < run.length; ++c) to[c] += widen(from[c]) * widen(weight[c]);
    }
  });
}

template <typename T>
void start_with_bias(const Problem<T>& q, int64_t count, const RowsTo<Sum<T>>& sums) {
  const int64_t width = q.padded(q.width());
  for (int64_t p = 0; p < count; ++p) {
    fill(sums.at(p), q.gemm_groups() * width, Sum<T>(0));
    if (!q.bias) continue;
    for (int64_t group = 0; group < q.gemm_groups(); ++group) {
      __builtin_memcpy(sums.at(p) + group * width, q.bias + group * q.width(), q.width() * sizeof(Sum<T>));
    }
  }
}

// Calls f(p, count) for each image's positions [p, p + count) of the tile.
template <typename T, typename F>
FB_INLINE void for_each_image(const Problem<T>& q, const Tile<T>& tile, F f) {
  for (int64_t p = 0; p < tile.count;) {
    const int64_t count = smaller(tile.count - p, q.g.positions() - tile.place[p]);
    f(p, count);
    p += count;
  }
}

// Converts the tile's sums to the output's type and order.
template <typename T>
void write_out(const Problem<T>& q, const Tile<T>& tile, const RowsTo<Sum<T>>& sums) {
  const int64_t width = q.width(), padded = q.padded(width);
  const int64_t* stride = q.out.stride;
  with_storage(q.out.storage, T{}, [&](auto* kind) {
    auto* out = static_cast<decltype(kind)>(q.out.data);
    for_each_image(q, tile, [&](int64_t p, int64_t count) {
      for (int64_t group = 0; group < q.gemm_groups(); ++group) {
        auto* to = out + tile.image[p] * stride[0] + group * width * stride[1] + tile.place[p] * stride[2];
        scatter_rows(sums.at(p) + group * padded, sums.stride, width, count, to, stride[1], stride[2]);
      }
    });
  });
}

template <typename T>
void forward(const Problem<T>& q, int64_t begin, int64_t end, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  ForwardBuffers<T> b(q, arena);
  const bool in_place = !b.sums.data;
  const int64_t tiles = ceil_div(end - begin, b.tile.size);
  const Cut<T> cut(q, kForwardDepth<T>);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t from = begin + (end - begin) * t / tiles, to = begin + (end - begin) * (t + 1) / tiles;
    place(q, from, to - from, b.tile);
    tabulate<T, false>(q, b.tile);
    if (in_place) b.sums.data = static_cast<Sum<T>*>(q.out.data) + from * b.sums.stride;
    start_with_bias(q, b.tile.count, b.sums);
    for (int64_t index = 0; index < cut.blocks(); ++index) {
      const Block block = cut.at(index);
      const int64_t rows = sample(q, b.tile, block, b.columns, b.kept);
      multiply(q, block, rows, b);
    }
    if (!in_place) write_out(q, b.tile, b.sums);
  }
#if defined(FB_AMX)
  release_squares();
#endif
}

// Says whether a pass over so few positions had better take the weight as it lies: one tile reads every panel once, and
// what is packed just then stays in the first-level cache instead of going to memory and back.
template <typename T>
bool takes_unpacked(const Problem<T>& q, const Strided& weight, int64_t positions) {
  return !q.depthwise() && WeightWalk(q, weight).in_order() && positions <= Tile<T>::tile_size(q, false);
}

template <typename T>
int64_t forward_scratch(const Problem<T>& q) {
  Arena arena{nullptr};
  ForwardBuffers<T> b(q, arena);
  return reinterpret_cast<uintptr_t>(arena.next);
}

}  // namespace
}  // namespace flowers_bench::FB_ISA
