// Computes the gradients.
#pragma once

#include "forward.inl"
#include "products.inl"
#include "tiles.inl"

namespace flowers_bench::FB_ISA {
namespace {

template <typename T>
struct BackwardBuffers {
  Tile<T> tile;
  int64_t size;
  T* columns;      // first the gradient's, then overwritten by the samples
  T* grad;         // the tile's gradient of the output in panels, for the gradient of the weight
  T* dots;         // gradients of y, x and mask: [3][offset group][tap][position]
  T** grad_input;  // of each position: what Neighbours::at is added to, for the gradient of its image

  BackwardBuffers(const Problem<T>& q, Arena& arena)
      : tile(q, arena, true),
        size(tile.size),
        columns(arena.template take<T>(size * kColumns<T>)),
        grad(arena.template take<T>(q.gemm_groups() * q.padded(q.width()) * size)),
        dots(arena.template take<T>(3 * q.g.offset_groups * q.g.taps() * size)),
        grad_input(arena.template take<T*>(size)) {}
};

// Computes columns = gradient of the output x weight^T.
template <typename T>
void multiply_back(const Problem<T>& q, const Tile<T>& tile, const Block& block, T* columns) {
  const T* grad = q.grad + tile.begin * q.g.out_channels;
  if (!q.depthwise()) {
    const int64_t width = q.width(), panel = width * kPanel<T>;
    const T* weight = q.weight_t + block.group * width * q.padded(q.depth()) + block.k0 * width;
    product(tile.count, block.k1 - block.k0, width, grad + block.group * width, q.g.out_channels, weight, panel,
            {columns, kColumns<T>}, false);
    return;
  }
  for_each_run(q, block, [&](const Run& run) {
    const T* weight = q.weight_t + block.k0 + run.k;
    for (int64_t p = 0; p < tile.count; ++p) {
      const T* from = grad + p * q.g.out_channels + run.channel;
      T* to = columns + p * kColumns<T> + run.k;
      for (int64_t i = 0; i < run.length; ++i) to[i] = from[i] * weight[i];
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
FB_INLINE void scatter_sample(const T* const from[4], T* const to[4], const T weight[4], int64_t length, T* column,
                              T dot[4]) {
  Vector<T> sum[4] = {};
  T rest[4] = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= length; i += kLanes<T>) {
    const Vector<T> grad = load(column + i);
    Vector<T> value = {};
    for (int corner = 0; corner < 4; ++corner) {
      if constexpr (kDots || kSamples) {
        const Vector<T> pixel = load(from[corner] + i);
        if constexpr (kDots) sum[corner] += grad * pixel;
        if constexpr (kSamples) value += weight[corner] * pixel;
      }
      // One neighbour after the other: at an edge, two of them may be the same pixel.
      if constexpr (kInput) store(to[corner] + i, load(to[corner] + i) + weight[corner] * grad);
    }
    if constexpr (kSamples) store(column + i, value);
  }
  for (; i < length; ++i) {
    const T grad = column[i];
    T value = 0;
    for (int corner = 0; corner < 4; ++corner) {
      if constexpr (kDots) rest[corner] += grad * from[corner][i];
      if constexpr (kSamples) value += weight[corner] * from[corner][i];
      if constexpr (kInput) to[corner][i] += weight[corner] * grad;
    }
    if constexpr (kSamples) column[i] = value;
  }
  if constexpr (kDots) {
    for (int corner = 0; corner < 4; ++corner) dot[corner] = rest[corner] + lane_sum<T>(sum[corner]);
  }
}

// Does so for a run at all positions of the tile, and sums the gradients of offsets and mask into `dots`.
template <typename T, bool kInput, bool kDots, bool kSamples>
void scatter_run(const Problem<T>& q, BackwardBuffers<T>& b, const Run& run) {
  const int64_t entries = q.g.offset_groups * q.g.taps() * b.size;
  const int32_t* first = b.tile.at + run.entry * 4 * b.size;
  for (int64_t p = 0; p < b.tile.count; ++p) {
    T* column = b.columns + p * kColumns<T> + run.k;
    T* dots = b.dots + run.entry * b.size + p;
    if (first[p] < 0) {
      const T nothing = without_pixels<T>(first[p]);
      if constexpr (kSamples) fill(column, run.length, nothing);
      if constexpr (kDots) dots[0] += nothing, dots[entries] += nothing, dots[2 * entries] += nothing;
      continue;
    }
    const Neighbours<T> s(b.tile, q.g.channels, run.entry, p);
    const T* from[4];
    T* to[4];
    for (int corner = 0; corner < 4; ++corner) {
      from[corner] = q.input + s.at[corner] + run.channel;
      to[corner] = kInput ? b.grad_input[p] + s.at[corner] + run.channel : nullptr;
    }
    T d[4];
    scatter_sample<T, kInput, kDots, kSamples>(from, to, s.weight, run.length, column, d);
    if constexpr (kDots) {
      const T* const slopes = b.tile.slopes + run.entry * kSlopes * b.size + p;
      const auto k = [&](Slope slope) { return slopes[slope * b.size]; };
      const T top = k(kWeightLeft) * d[0] + k(kWeightRight) * d[1];
      const T bottom = k(kWeightLeft) * d[2] + k(kWeightRight) * d[3];
      const T left = k(kWeightTop) * d[0] + k(kWeightBottom) * d[2];
      const T right = k(kWeightTop) * d[1] + k(kWeightBottom) * d[3];
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

// Packs the tile's gradient of the output, rows of channels, into panels: [group][panel][position][kPanel].
template <typename T>
void pack_grad(const Problem<T>& q, const Tile<T>& tile, T* packed) {
  const int64_t width = q.width();
  for (int64_t group = 0; group < q.gemm_groups(); ++group) {
    for (int64_t j = 0; j < width; j += kPanel<T>) {
      const int64_t used = smaller(kPanel<T>, width - j);
      for (int64_t p = 0; p < tile.count; ++p, packed += kPanel<T>) {
        const T* from = q.grad + (tile.begin + p) * q.g.out_channels + group * width + j;
        for (int64_t lane = 0; lane < kPanel<T>; ++lane) packed[lane] = lane < used ? from[lane] : T(0);
      }
    }
  }
}

// Adds columns^T x gradient of the output to grad_weight.
template <typename T>
void accumulate_weight(const Problem<T>& q, const Block& block, const BackwardBuffers<T>& b, T* grad_weight) {
  if (!q.depthwise()) {
    const int64_t width = q.padded(q.width()), count = b.tile.count;
    product_transposed(block.k1 - block.k0, q.width(), count, b.columns, kColumns<T>,
                       b.grad + block.group * width * count, count * kPanel<T>,
                       {grad_weight + (block.group * q.depth() + block.k0) * width, width});
    return;
  }
  for_each_run(q, block, [&](const Run& run) {
    T* to = grad_weight + block.k0 + run.k;
    for (int64_t p = 0; p < b.tile.count; ++p) {
      const T* from = b.columns + p * kColumns<T> + run.k;
      const T* grad = q.grad + (b.tile.begin + p) * q.g.out_channels + run.channel;
      for (int64_t i = 0; i < run.length; ++i) to[i] += from[i] * grad[i];
    }
  });
}

template <typename T>
void accumulate_bias(const Problem<T>& q, const Tile<T>& tile, T* grad_bias) {
  for (int64_t p = 0; p < tile.count; ++p) {
    const T* grad = q.grad + (tile.begin + p) * q.g.out_channels;
    for (int64_t o = 0; o < q.g.out_channels; ++o) grad_bias[o] += grad[o];
  }
}

template <typename T>
void write_plane(const Tile<T>& tile, const T* from, int64_t channel, const Strided& to) {
  with_storage(to.storage, T(0), [&](auto* kind) {
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
    const T* y = b.dots + e * b.size;
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
  if (columns && dots) fill(b.dots, 3 * q.g.offset_groups * q.g.taps() * b.size, T(0));
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
}

template <typename T>
int64_t backward_scratch(const Problem<T>& q) {
  Arena arena{nullptr};
  BackwardBuffers<T> b(q, arena);
  return reinterpret_cast<uintptr_t>(arena.next);
}

}  // namespace
}  // namespace flowers_bench::FB_ISA
