// Computes the gradients.
#pragma once

#include "forward.inl"
#include "products.inl"
#include "scatter.inl"
#include "tiles.inl"

namespace flowers_bench::FB_ISA {
namespace {

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
