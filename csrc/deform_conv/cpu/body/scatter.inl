// Scatters the gradient of a tile's samples: to the pixels, and into the gradients of offset and mask.
#pragma once

#include "forward.inl"
#include "tiles.inl"
#include "transpose.inl"

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

// Runs in a block of a backward pass, at most, of kPairedChannels each.
constexpr int64_t kMostRuns = kDepth<BFloat16> / kPairedChannels;

template <typename T>
struct BackwardBuffers {
  Tile<T> tile;
  int64_t size;
  Sum<T>* columns;      // first the gradient's, then overwritten by the samples
  T* grad;              // the tile's gradient of the output in panels, for the gradient of the weight
  Sum<T>* dots;         // gradients of y, x and mask: [3][offset group][tap][position]
  Sum<T>* products;     // kWidePixels: of a run's gradient with four pixels, [run][position][4]
  Sum<T>** grad_input;  // of each position: what Neighbours::at is added to, for the gradient of its image

  BackwardBuffers(const Problem<T>& q, Arena& arena)
      : tile(q, arena, true),
        size(tile.size),
        // With rows behind, which make whole factors with the last ones.
        columns(arena.template take<Sum<T>>(round_up(size, kTogether<T>) * kColumns<Sum<T>>)),
        grad(arena.template take<T>(q.gemm_groups() * q.padded(q.width()) * round_up(size, kTogether<T>))),
        dots(arena.template take<Sum<T>>(3 * q.g.offset_groups * q.g.taps() * size)),
        products(arena.template take<Sum<T>>(kWidePixels ? kMostRuns * size * 4 : 0)),
        grad_input(arena.template take<Sum<T>*>(size)) {}
};

#if defined(FB_AMX)

typedef float Quarter __attribute__((vector_size(kVectorBytes / 4)));

// Adds lanes of two vectors by twos; what is left of each alternates.
FB_INLINE Vector<float> folded(Vector<float> a, Vector<float> b) {
  return zip<float>(a, b, 0) + zip<float>(a, b, kLanes<float> / 2);
}

// Returns the sums of the lanes of four vectors: of the first, the third, the second and the fourth.
FB_INLINE Quarter lane_sums(const Vector<float> v[4]) {
  const Vector<float> fours = folded(folded(v[0], v[1]), folded(v[2], v[3]));
  const auto halves = __builtin_shufflevector(fours, fours, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(fours, fours, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(halves, halves, 0, 1, 2, 3) + __builtin_shufflevector(halves, halves, 4, 5, 6, 7);
}

// Scatters one sample's gradient to the four pixels that it was gathered from, `to`, and multiplies it with their
// values, `from` (kDots); returns these products, as lane_sums does. `column` holds the gradient of the samples of a
// run, and receives the samples (kSamples).
template <bool kInput, bool kDots, bool kSamples>
FB_INLINE Quarter scatter_sample(const float* const from[4], float* const to[4], const float weight[4], int64_t length,
                                 float* column) {
  Vector<float> sum[4] = {};
  for (int64_t i = 0; i < length; i += kLanes<float>) {
    const Vector<float> grad = load(column + i);
    Vector<float> value = {};
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner) {
      if constexpr (kDots || kSamples) {
        const Vector<float> pixel = load(from[corner] + i);
        if constexpr (kDots) sum[corner] += grad * pixel;
        if constexpr (kSamples) value += weight[corner] * pixel;
      }
      // One neighbour after the other: at an edge, two of them may be the same pixel.
      if constexpr (kInput) store(to[corner] + i, load(to[corner] + i) + weight[corner] * grad);
    }
    if constexpr (kSamples) store(column + i, value);
  }
  if constexpr (kDots) return lane_sums(sum);
  return Quarter{};
}

// Adds what a run's samples, multiplied with the gradient, give to the gradients of offsets and mask. `dot` has four
// products for each position, in the order of lane_sums.
FB_INLINE void add_dots(const BackwardBuffers<BFloat16>& b, int64_t entry, int64_t entries, const float* dot) {
  const float* const slopes = b.tile.slopes + entry * kSlopes * b.size;
  float* const y = b.dots + entry * b.size;
  float* const x = y + entries * b.size;
  float* const mask = x + entries * b.size;
  const auto k = [&](Slope slope, int64_t p) { return slopes[slope * b.size + p]; };
#pragma GCC ivdep
  for (int64_t p = 0; p < b.tile.count; ++p) {
    const float d0 = dot[4 * p], d2 = dot[4 * p + 1], d1 = dot[4 * p + 2], d3 = dot[4 * p + 3];
    const float top = k(kWeightLeft, p) * d0 + k(kWeightRight, p) * d1;
    const float bottom = k(kWeightLeft, p) * d2 + k(kWeightRight, p) * d3;
    const float left = k(kWeightTop, p) * d0 + k(kWeightBottom, p) * d2;
    const float right = k(kWeightTop, p) * d1 + k(kWeightBottom, p) * d3;
    y[p] += k(kMask, p) * (k(kSlopeTop, p) * top + k(kSlopeBottom, p) * bottom);
    x[p] += k(kMask, p) * (k(kSlopeLeft, p) * left + k(kSlopeRight, p) * right);
    mask[p] += k(kWeightTop, p) * top + k(kWeightBottom, p) * bottom;
  }
}

// Does so for all runs of a block, position after position, since their neighbours lie close and are still in the
// first-level cache; and sums the gradients of offsets and mask into `dots`.
template <bool kInput, bool kDots, bool kSamples>
void scatter_runs(const Problem<BFloat16>& q, BackwardBuffers<BFloat16>& b, const Run* runs, int64_t count) {
  const Tile<BFloat16> tile = b.tile;  // a copy that no store to the columns could change
  const float* const input = pixels(q);
  for (int64_t i = 0; i < tile.count; ++i) {
    const int64_t p = tile.order[i];
    float* const row = b.columns + p * kColumns<float>;
    float* const grad_input = b.grad_input[p];
    for (int64_t r = 0; r < count; ++r) {
      const Run run = runs[r];
      float* const column = row + run.k;
      float* const dot = b.products + (r * b.size + p) * 4;
      const int32_t first = tile.at[run.entry * 4 * tile.size + p];
      if (first < 0) {
        const float nothing = without_pixels<float>(first);
        if constexpr (kSamples) fill(column, run.length, nothing);
        if constexpr (kDots) fill(dot, 4, nothing);
        continue;
      }
      const Neighbours<BFloat16> s(tile, q.g.channels, run.entry, p);
      const float* from[4];
      float* to[4];
#pragma GCC unroll 4
      for (int corner = 0; corner < 4; ++corner) {
        from[corner] = input + s.at[corner] + run.channel;
        to[corner] = kInput ? grad_input + s.at[corner] + run.channel : nullptr;
      }
      const Quarter d = scatter_sample<kInput, kDots, kSamples>(from, to, s.weight, run.length, column);
      if constexpr (kDots) __builtin_memcpy(dot, &d, sizeof(d));
    }
  }
  const int64_t entries = q.g.offset_groups * q.g.taps();
  for (int64_t r = 0; kDots && r < count; ++r) add_dots(b, runs[r].entry, entries, b.products + r * b.size * 4);
}

// Takes from the gradient's columns of a block all that they give, in one sweep over the neighbours.
inline void scatter_block(const Problem<BFloat16>& q, const Block& block, bool samples, BackwardBuffers<BFloat16>& b) {
  const bool input = q.grad_input, dots = q.grad_offset.data || q.grad_mask.data;
  Run runs[kMostRuns];
  int64_t count = 0;
  for_each_run(q, block, [&](const Run& run) { runs[count++] = run; });
  if (input && dots && samples) return scatter_runs<true, true, true>(q, b, runs, count);
  if (input && dots) return scatter_runs<true, true, false>(q, b, runs, count);
  if (input && samples) return scatter_runs<true, false, true>(q, b, runs, count);
  if (input) return scatter_runs<true, false, false>(q, b, runs, count);
  if (samples) return scatter_runs<false, true, true>(q, b, runs, count);
  scatter_runs<false, true, false>(q, b, runs, count);
}

#else

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

#endif

}  // namespace
}  // namespace flowers_bench::FB_ISA
