// Computes the gradients.
#pragma once

#include "forward.inl"
#include "products.inl"
#include "tiles.inl"

namespace flowers_bench::FB_ISA {
namespace {

// Positions that the gradient of the weight is summed over at once; a last few are made up with zeros.
#if defined(FB_AMX)
template <typename T>
constexpr int64_t kTogether = kSquareDepth;
#else
template <typename T>
constexpr int64_t kTogether = kFactor<T>;
#endif

template <typename T>
struct BackwardBuffers {
  Tile<T> tile;
  int64_t size;
  Sum<T>* columns;      // first the gradient's, then overwritten by the samples
  T* grad;              // the tile's gradient of the output in panels, for the gradient of the weight
  Sum<T>* dots;         // gradients of y, x and mask: [3][offset group][tap][position]
  Sum<T>** grad_input;  // of each position: what Neighbours::at is added to, for the gradient of its image

  BackwardBuffers(const Problem<T>& q, Arena& arena)
      : tile(q, arena, true),
        size(tile.size),
        // With rows behind, which make whole factors with the last ones.
        columns(arena.template take<Sum<T>>(round_up(size, kTogether<T>) * kColumns<Sum<T>>)),
        grad(arena.template take<T>(q.gemm_groups() * q.padded(q.width()) * round_up(size, kTogether<T>))),
        dots(arena.template take<Sum<T>>(3 * q.g.offset_groups * q.g.taps() * size)),
        grad_input(arena.template take<Sum<T>*>(size)) {}
};

// Computes columns = gradient of the output x weight^T.
template <typename T>
void multiply_back(const Problem<T>& q, const Tile<T>& tile, const Block& block, Sum<T>* columns) {
  const T* grad = q.grad + tile.begin * q.g.out_channels;
  if (!q.depthwise()) {
    const int64_t width = q.width(), panel = width * kPanel<T> / kFactor<T>;
    const T* weight = q.weight_t + block.group * width * q.padded(q.depth()) + block.k0 * width;
    product<T>(tile.count, block.k1 - block.k0, width / kFactor<T>, factors(grad + block.group * width),
               q.g.out_channels / kFactor<T>, factors(weight), panel, {columns, kColumns<Sum<T>>}, false);
    return;
  }
  for_each_run(q, block, [&](const Run& run) {
    const T* weight = q.weight_t + block.k0 + run.k;
    for (int64_t p = 0; p < tile.count; ++p) {
      const T* from = grad + p * q.g.out_channels + run.channel;
      Sum<T>* to = columns + p * kColumns<Sum<T>> + run.k;
      for (int64_t i = 0; i < run.length; ++i) to[i] = widen(from[i]) * widen(weight[i]);
    }
  });
}

template <typename T>
FB_INLINE T lane_sum(Vector<T> v) {
  T sum = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) sum += v[lane];
  return sum;
}

// Scatters one sample's gradient to the four pixels that it was gathered from, `to`, and multiplies it with their
// values, `from` (kDots). `column` holds the gradient of the samples of a run, and receives the samples (kSamples).
template <typename T, bool kInput, bool kDots, bool kSamples>
FB_INLINE void scatter_sample(const T* const from[4], Sum<T>* const to[4], const Sum<T> weight[4], int64_t length,
                              Sum<T>* column, Sum<T> dot[4]) {
  typedef Sum<T> S;
  Vector<S> sum[4] = {};
  S rest[4] = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= length; i += kLanes<T>) {
    const Vector<S> grad = load(column + i);
    Vector<S> value = {};
    for (int corner = 0; corner < 4; ++corner) {
      if constexpr (kDots || kSamples) {
        const Vector<S> pixel = load_wide(from[corner] + i);
        if constexpr (kDots) sum[corner] += grad * pixel;
        if constexpr (kSamples) value += weight[corner] * pixel;
      }
      // One neighbour after the other: at an edge, two of them may be the same pixel.
      if constexpr (kInput) store(to[corner] + i, load(to[corner] + i) + weight[corner] * grad);
    }
    if constexpr (kSamples) store(column + i, value);
  }
  for (; i < length; ++i) {
    const S grad = column[i];
    S value = 0;
    for (int corner = 0; corner < 4; ++corner) {
      if constexpr (kDots) rest[corner] += grad * widen(from[corner][i]);
      if constexpr (kSamples) value += weight[corner] * widen(from[corner][i]);
      if constexpr (kInput) to[corner][i] += weight[corner] * grad;
    }
    if constexpr (kSamples) column[i] = value;
  }
  if constexpr (kDots) {
    for (int corner = 0; corner < 4; ++corner) dot[corner] = rest[corner] + lane_sum<S>(sum[corner]);
  }
}

// Does so for a run at all positions of the tile, and sums the gradients of offsets and mask into `dots`.
template <typename T, bool kInput, bool kDots, bool kSamples>
void scatter_run(const Problem<T>& q, BackwardBuffers<T>& b, const Run& run) {
  typedef Sum<T> S;
  const int64_t entries = q.g.offset_groups * q.g.taps() * b.size;
  const int32_t* first = b.tile.at + run.entry * 4 * b.size;
  for (int64_t p = 0; p < b.tile.count; ++p) {
    S* column = b.columns + p * kColumns<S> + run.k;
    S* dots = b.dots + run.entry * b.size + p;
    if (first[p] < 0) {
      const S nothing = without_pixels<S>(first[p]);
      if constexpr (kSamples) fill(column, run.length, nothing);
      if constexpr (kDots) dots[0] += nothing, dots[entries] += nothing, dots[2 * entries] += nothing;
      continue;
    }
    const Neighbours<T> s(b.tile, q.g.channels, run.entry, p);
    const T* from[4];
    S* to[4];
    for (int corner = 0; corner < 4; ++corner) {
      from[corner] = q.input + s.at[corner] + run.channel;
      to[corner] = kInput ? b.grad_input[p] + s.at[corner] + run.channel : nullptr;
    }
    S d[4];
    scatter_sample<T, kInput, kDots, kSamples>(from, to, s.weight, run.length, column, d);
    if constexpr (kDots) {
      const S* const slopes = b.tile.slopes + run.entry * kSlopes * b.size + p;
      const auto k = [&](Slope slope) { return slopes[slope * b.size]; };
      const S top = k(kWeightLeft) * d[0] + k(kWeightRight) * d[1];
      const S bottom = k(kWeightLeft) * d[2] + k(kWeightRight) * d[3];
      const S left = k(kWeightTop) * d[0] + k(kWeightBottom) * d[2];
      const S right = k(kWeightTop) * d[1] + k(kWeightBottom) * d[3];
      dots[0] += k(kMask) * (k(kSlopeTop) * top + k(kSlopeBottom) * bottom);
      dots[entries] += k(kMask) * (k(kSlopeLeft) * left + k(kSlopeRight) * right);
      dots[2 * entries] += k(kWeightTop) * top + k(kWeightBottom) * bottom;
    }
  }
}

// Takes from the gradient's columns of a block all that they give, in one sweep over the neighbours.
template <typename T>
void scatter_block(const Problem<T>& q, const Block& block, bool samples, BackwardBuffers<T>& b) {
  const bool input = q.grad_input, dots = q.grad_offset.data || q.grad_mask.data;
  for_each_run(q, block, [&](const Run& run) {
    if (input && dots && samples) return scatter_run<T, true, true, true>(q, b, run);
    if (input && dots) return scatter_run<T, true, true, false>(q, b, run);
    if (input && samples) return scatter_run<T, true, false, true>(q, b, run);
    if (input) return scatter_run<T, true, false, false>(q, b, run);
    if (samples) return scatter_run<T, false, true, true>(q, b, run);
    scatter_run<T, false, true, false>(q, b, run);
  });
}

#if defined(FB_AMX)

// Packs the tile's gradient of the output as [output][position]: what is on the left of the product that the gradient
// of the weight is.
template <typename T>
void pack_grad(const Problem<T>& q, const Tile<T>& tile, T* packed) {
  const int64_t outputs = q.g.out_channels, depth = round_up(tile.count, kTogether<T>);
  const T* const grad = q.grad + tile.begin * outputs;
  const auto row = [&](int64_t p, int64_t o) __attribute__((always_inline)) {
    return p < tile.count ? (Bits)load_wide(grad + p * outputs + o) : Bits{};
  };
  for (int64_t o = 0; o < outputs; o += kSquare) {
    for (int64_t p = 0; p < depth; p += kTogether<T>) {
      Vector<float> square[kSquare];
      for (int64_t i = 0; i < kSquare; ++i)
        square[i] = (Vector<float>)(row(p + 2 * i, o) >> 16 | row(p + 2 * i + 1, o));
      transpose<float>(square);
      for (int64_t i = 0; i < kSquare; ++i) store(reinterpret_cast<float*>(packed + (o + i) * depth + p), square[i]);
    }
  }
}

#else

// Packs the tile's gradient of the output, rows of channels, into panels: [group][panel][position][kPanel]. Positions
// are what the gradient of the weight sums over; a pair that lacks its second one gets a zero.
template <typename T>
void pack_grad(const Problem<T>& q, const Tile<T>& tile, T* packed) {
  const int64_t width = q.width();
  for (int64_t group = 0; group < q.gemm_groups(); ++group) {
    for (int64_t j = 0; j < width; j += kPanel<T>, packed += round_up(tile.count, kFactor<T>) * kPanel<T>) {
      const int64_t used = smaller(kPanel<T>, width - j);
      for (int64_t p = 0; p < tile.count; ++p) {
        const T* from = q.grad + (tile.begin + p) * q.g.out_channels + group * width + j;
        if constexpr (kFactor<T> == 1) {
          T* const to = packed + p * kPanel<T>;
          for (int64_t lane = 0; lane < kPanel<T>; ++lane) to[lane] = lane < used ? from[lane] : T{};
        } else {
          for (int64_t o = 0; o < kPanel<T>; o += kLanes<T>) store_in_panel(packed, p, o, load_wide(from + o));
        }
      }
    }
  }
}

#endif

// Pairs each two rows of columns, in the place of the first.
template <typename T>
void pair_rows(int64_t depth, BackwardBuffers<T>& b) {
#if defined(FB_PAIRS)
  constexpr int64_t kRow = kColumns<float>;
  const int64_t rows = round_up(b.tile.count, kTogether<T>);
  for (int64_t p = b.tile.count; p < rows; ++p) fill(b.columns + p * kRow, depth, 0.0f);
  for (int64_t p = 0; p < rows; p += 2) {
    float* const row = b.columns + p * kRow;
    for (int64_t k = 0; k < depth; k += kLanes<float>) store(row + k, pairs(load(row + k), load(row + kRow + k)));
  }
#endif
}

// Adds columns^T x gradient of the output to grad_weight.
template <typename T>
void accumulate_weight(const Problem<T>& q, const Block& block, BackwardBuffers<T>& b, Sum<T>* grad_weight) {
  if (!q.depthwise()) {
    const int64_t width = q.padded(q.width()), depth = block.k1 - block.k0;
    if constexpr (kFactor<T> == 2) pair_rows(depth, b);
#if defined(FB_AMX)
    const int64_t positions = round_up(b.tile.count, kTogether<T>), row = 2 * kColumns<float> * sizeof(float);
    const Side left{reinterpret_cast<const char*>(b.grad + block.group * width * positions), positions * 2, 64};
    const Side right{reinterpret_cast<const char*>(b.columns), row, kSquare * row};
    return product_of_squares(width, depth, positions, left, right, kStrip * sizeof(float),
                              {grad_weight + block.group * width * q.depth() + block.k0, q.depth()}, true);
#else
    const int64_t count = ceil_div(b.tile.count, kFactor<T>);
    product_transposed<T>(depth, q.width(), count, b.columns, kFactor<T> * kColumns<Sum<T>>,
                          factors(b.grad) + block.group * width * count, count * kPanel<T>,
                          {grad_weight + (block.group * q.depth() + block.k0) * width, width});
#endif
    return;
  }
  for_each_run(q, block, [&](const Run& run) {
    Sum<T>* to = grad_weight + block.k0 + run.k;
    for (int64_t p = 0; p < b.tile.count; ++p) {
      const Sum<T>* from = b.columns + p * kColumns<Sum<T>> + run.k;
      const T* grad = q.grad + (b.tile.begin + p) * q.g.out_channels + run.channel;
      for (int64_t i = 0; i < run.length; ++i) to[i] += from[i] * widen(grad[i]);
    }
  });
}

template <typename T>
void accumulate_bias(const Problem<T>& q, const Tile<T>& tile, Sum<T>* grad_bias) {
  for (int64_t p = 0; p < tile.count; ++p) {
    const T* grad = q.grad + (tile.begin + p) * q.g.out_channels;
    for (int64_t o = 0; o < q.g.out_channels; ++o) grad_bias[o] += widen(grad[o]);
  }
}

template <typename T>
void write_plane(const Tile<T>& tile, const Sum<T>* from, int64_t channel, const Strided& to) {
  with_storage(to.storage, T{}, [&](auto* kind) {
    auto* data = static_cast<decltype(kind)>(to.data) + channel * to.stride[1];
    for (int64_t p = 0; p < tile.count; ++p) {
      narrow(from[p], data + tile.image[p] * to.stride[0] + tile.place[p] * to.stride[2]);
    }
  });
}

template <typename T>
void write_dots(const Problem<T>& q, const BackwardBuffers<T>& b) {
  const int64_t entries = q.g.offset_groups * q.g.taps();
  for (int64_t e = 0; e < entries; ++e) {
    const Sum<T>* y = b.dots + e * b.size;
    if (q.grad_offset.data) {
      write_plane(b.tile, y, 2 * e, q.grad_offset);
      write_plane(b.tile, y + entries * b.size, 2 * e + 1, q.grad_offset);
    }
    if (q.grad_mask.data) write_plane(b.tile, y + 2 * entries * b.size, e, q.grad_mask);
  }
}

template <typename T>
int64_t blocks(const Problem<T>& q) {
  return Cut<T>(q, kDepth<T>).blocks();
}

// Computes, of one tile, whatever gradients are asked for.
template <typename T>
void backward_tile(const Problem<T>& q, const BackwardRange<T>& r, BackwardBuffers<T>& b) {
  const bool dots = q.grad_offset.data || q.grad_mask.data;
  const bool columns = r.columns && (q.grad_input || dots);
  if (r.grad_bias) accumulate_bias(q, b.tile, r.grad_bias);
  if (!columns && !r.grad_weight) return;
  tabulate<T, true>(q, b.tile);
  if (r.grad_weight && !q.depthwise()) pack_grad(q, b.tile, b.grad);
  if (columns && dots) fill(b.dots, 3 * q.g.offset_groups * q.g.taps() * b.size, Sum<T>(0));
  const Cut<T> cut(q, kDepth<T>);
  for (int64_t index = r.first_block; index < r.last_block; ++index) {
    const Block block = cut.at(index);
    if (columns) {
      multiply_back(q, b.tile, block, b.columns);
      scatter_block(q, block, r.grad_weight != nullptr, b);
    } else {
      sample(q, b.tile, block, b.columns);
    }
    if (r.grad_weight) accumulate_weight(q, block, b, r.grad_weight);
  }
  if (columns && dots) write_dots(q, b);
}

template <typename T>
void backward(const Problem<T>& q, const BackwardRange<T>& r, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  BackwardBuffers<T> b(q, arena);
  const int64_t image_size = q.g.height * q.g.width * q.g.channels, tiles = ceil_div(r.end - r.begin, b.size);
  const int64_t head_image = r.head ? r.begin / q.g.positions() : -1;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t from = r.begin + (r.end - r.begin) * t / tiles, to = r.begin + (r.end - r.begin) * (t + 1) / tiles;
    place(q, from, to - from, b.tile);
    for (int64_t p = 0; p < b.tile.count; ++p) {
      const bool head = b.tile.image[p] == head_image;
      b.grad_input[p] = head ? r.head - head_image * image_size : q.grad_input;
    }
    backward_tile(q, r, b);
  }
#if defined(FB_AMX)
  release_squares();
#endif
}

template <typename T>
int64_t backward_scratch(const Problem<T>& q) {
  Arena arena{nullptr};
  BackwardBuffers<T> b(q, arena);
  return reinterpret_cast<uintptr_t>(arena.next);
}

}  // namespace
}  // namespace flowers_bench::FB_ISA
