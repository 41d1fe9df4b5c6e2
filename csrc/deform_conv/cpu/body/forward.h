// Forward. A part of kernel_body.h,
// which includes it inside its namespace, once for each instruction set.

// `Of` names the vector rather than being it: a template argument would lose its alignment.
template <typename Of, typename T>
FB_INLINE void blend(const T* const from[4], const T weight[4], int64_t i, T* to) {
  const auto at = [&](int corner) { return *reinterpret_cast<const typename Of::loose*>(from[corner] + i); };
  *reinterpret_cast<typename Of::loose*>(to + i) = weight[0] * at(0) + weight[1] * at(1) + weight[2] * at(2) + weight[3] * at(3);
}

template <typename T>
FB_INLINE void sample_run(const T* input, const Neighbours<T>& s, int64_t length, T* to) {
  const T* const from[4] = {input + s.at[0], input + s.at[1], input + s.at[2], input + s.at[3]};
  int64_t i = 0;
#pragma GCC unroll 2
  for (; i + kLanes<T> <= length; i += kLanes<T>) blend<VectorOf<T>>(from, s.weight, i, to);
  for (; i + int64_t(16 / sizeof(T)) <= length; i += 16 / sizeof(T)) blend<SmallVectorOf<T>>(from, s.weight, i, to);
  for (; i < length; ++i) blend<ScalarOf<T>>(from, s.weight, i, to);
}

// Position after position, each with all of the block's runs: their neighbours lie close and are still in the
// first-level cache.
template <typename T>
void sample(const Problem<T>& q, const Tile<T>& given, const Block& block, T* columns) {
  const Tile<T> tile = given;  // a copy that no store to the columns could change: it stays in registers
  const T* const input = q.input;
  const int64_t channels = q.g.channels;
  Run runs[kDepth<T>];
  int64_t count = 0;
  for_each_run(q, block, [&](const Run& run) { runs[count++] = run; });
  for (int64_t p = 0; p < tile.count; ++p) {
    for (int64_t r = 0; r < count; ++r) {
      const Run run = runs[r];
      T* const to = columns + p * kColumns<T> + run.k;
      const int32_t first = tile.at[run.entry * 4 * tile.size + p];
      if (first < 0) {
        fill(to, run.length, first == kOutside ? T(0) : T(__builtin_nan("")));
      } else {
        sample_run(input + run.channel, Neighbours<T>(tile, channels, run.entry, p), run.length, to);
      }
    }
  }
}

// sums (position, outputs) += columns x weight.
template <typename T>
void multiply(const Problem<T>& q, const Block& block, int64_t count, const T* columns, T* sums, int64_t sums_stride) {
  if (!q.depthwise()) {
    const int64_t width = q.padded(q.width()), panel = q.depth() * kPanel<T>;
    const T* weight = q.weight + block.group * q.depth() * width + block.k0 * kPanel<T>;
    product(count, q.width(), block.k1 - block.k0, columns, kColumns<T>, weight, panel, sums + block.group * width,
            sums_stride, true);
    return;
  }
  for_each_run(q, block, [&](const Run& run) {
    const T* weight = q.weight + block.k0 + run.k;
    for (int64_t p = 0; p < count; ++p) {
      const T* from = columns + p * kColumns<T> + run.k;
      T* to = sums + p * sums_stride + run.channel;
      for (int64_t i = 0; i < run.length; ++i) to[i] += from[i] * weight[i];
    }
  });
}

template <typename T>
void start_with_bias(const Problem<T>& q, int64_t count, T* sums, int64_t sums_stride) {
  const int64_t width = q.padded(q.width());
  for (int64_t p = 0; p < count; ++p) {
    fill(sums + p * sums_stride, sums_stride, T(0));
    if (!q.bias) continue;
    for (int64_t group = 0; group < q.gemm_groups(); ++group) {
      __builtin_memcpy(sums + p * sums_stride + group * width, q.bias + group * q.width(), q.width() * sizeof(T));
    }
  }
}

// Consecutive positions [p, p + count) of the same image.
template <typename T, typename F>
FB_INLINE void for_each_image(const Problem<T>& q, const Tile<T>& tile, F f) {
  for (int64_t p = 0; p < tile.count;) {
    const int64_t count = smaller(tile.count - p, q.g.positions() - tile.place[p]);
    f(p, count);
    p += count;
  }
}

template <typename T>
void write_out(const Problem<T>& q, const Tile<T>& tile, const T* sums, int64_t sums_stride) {
  const int64_t width = q.width(), padded = q.padded(width);
  const int64_t* stride = q.out.stride;
  with_storage(q.out.storage, T(0), [&](auto* kind) {
    auto* out = static_cast<decltype(kind)>(q.out.data);
    for_each_image(q, tile, [&](int64_t p, int64_t count) {
      for (int64_t group = 0; group < q.gemm_groups(); ++group) {
        auto* to = out + tile.image[p] * stride[0] + group * width * stride[1] + tile.place[p] * stride[2];
        scatter_rows(sums + p * sums_stride + group * padded, sums_stride, width, count, to, stride[1], stride[2]);
      }
    });
  });
}

template <typename T>
struct ForwardBuffers {
  Tile<T> tile;
  int64_t sums_stride;
  T* columns;
  T* sums;

  ForwardBuffers(const Problem<T>& q, Arena& arena)
      : tile(q, arena, false),
        sums_stride(q.gemm_groups() * q.padded(q.width())),
        columns(arena.template take<T>(tile.size * kColumns<T>)),
        sums(arena.template take<T>(tile.size * sums_stride)) {}
};

template <typename T>
void forward(const Problem<T>& q, int64_t begin, int64_t end, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  ForwardBuffers<T> b(q, arena);
  const int64_t tiles = ceil_div(end - begin, b.tile.size), last = blocks(q);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t from = begin + (end - begin) * t / tiles, to = begin + (end - begin) * (t + 1) / tiles;
    place(q, from, to - from, b.tile);
    tabulate(q, b.tile, false);
    start_with_bias(q, b.tile.count, b.sums, b.sums_stride);
    for (int64_t index = 0; index < last; ++index) {
      const Block block = block_at(q, index);
      sample(q, b.tile, block, b.columns);
      multiply(q, block, b.tile.count, b.columns, b.sums, b.sums_stride);
    }
    write_out(q, b.tile, b.sums, b.sums_stride);
  }
}

template <typename T>
int64_t forward_scratch(const Problem<T>& q) {
  Arena arena{nullptr};
  ForwardBuffers<T> b(q, arena);
  return reinterpret_cast<uintptr_t>(arena.next);
}
