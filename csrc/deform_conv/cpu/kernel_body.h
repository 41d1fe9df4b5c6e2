// The CPU kernels, compiled once for each instruction set with FB_ISA (a namespace), FB_VECTOR_BYTES and FB_ROWS
// (rows of a microkernel) defined. Nothing here may call an inline function that other translation units share: the
// linker keeps one copy of those, and it could be the one with instructions that this processor lacks. Hence no
// standard library, and everything in an unnamed namespace.
//
// How it works. Positions of the output (n, oh, ow) are cut into tiles that stay in the second-level cache. For a
// tile, the coordinates and bilinear weights of each tap are computed once (tabulate) and shared by all channels.
// Then, for one block of K = taps x channels after the other, the samples are gathered into columns (position, K),
// whole vectors of channels at a time since the input is channels-last, and multiplied at once with the packed
// weight. Backward runs the same tiles: columns of the gradient by a product, then in one sweep over the four
// neighbours the gradient of the input (scattered), of offset and mask (dot products), and the columns again for
// the gradient of the weight.

#define FB_INLINE inline __attribute__((always_inline))

namespace flowers_bench {
namespace FB_ISA {
namespace {

constexpr int kRows = FB_ROWS;
constexpr int64_t kMaxTile = 96;       // positions
constexpr int64_t kTileBytes = 300 << 10;  // of a tile's buffers: within a second-level cache of 512 KiB

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(FB_VECTOR_BYTES)));
  typedef float loose __attribute__((vector_size(FB_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(FB_VECTOR_BYTES)));
  typedef double loose __attribute__((vector_size(FB_VECTOR_BYTES), aligned(8), may_alias));
};
// What is left of a run's channels after whole vectors: 128 bits, then one by one.
template <typename T>
struct SmallVectorOf;
template <>
struct SmallVectorOf<float> {
  typedef float loose __attribute__((vector_size(16), aligned(4), may_alias));
};
template <>
struct SmallVectorOf<double> {
  typedef double loose __attribute__((vector_size(16), aligned(8), may_alias));
};
template <typename T>
struct ScalarOf {
  typedef T loose;
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
constexpr int64_t kLanes = FB_VECTOR_BYTES / sizeof(T);
template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;
// Depth of one product: a panel of the weight this deep stays in the first-level cache.
template <typename T>
constexpr int64_t kDepth = (FB_VECTOR_BYTES == 64 ? 24576 : 16384) / (kPanel<T> * sizeof(T));

template <typename T>
FB_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::loose*>(p);
}
template <typename T>
FB_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorOf<T>::loose*>(p) = v;
}

FB_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FB_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FB_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FB_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---- Storage types: read into and written from the type that is computed in ----

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FB_INLINE float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
FB_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

FB_INLINE float widen(float v) { return v; }
FB_INLINE double widen(double v) { return v; }
FB_INLINE float widen(BFloat16 v) { return as_float(uint32_t(v.bits) << 16); }
FB_INLINE float widen(Float16 v) {
  // The exponent is rebased by a multiplication, which gets subnormals right; infinity and NaN need their own.
  const uint32_t magnitude = uint32_t(v.bits & 0x7fff) << 13;
  const uint32_t rebased = as_bits(as_float(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u | magnitude : rebased;
  return as_float(special | uint32_t(v.bits & 0x8000) << 16);
}

FB_INLINE void narrow(float v, float* to) { *to = v; }
FB_INLINE void narrow(double v, double* to) { *to = v; }
FB_INLINE void narrow(float v, BFloat16* to) {
  const uint32_t bits = as_bits(v);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest even
  to->bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : uint16_t(rounded);
}
FB_INLINE void narrow(float v, Float16* to) {
  const uint32_t bits = as_bits(v), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xc8000fffu + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  to->bits = uint16_t((magnitude >= 0x47800000u ? special : finite) | (bits >> 16 & 0x8000));
}

// Calls f with a null pointer of the storage's type; `T` decides which are possible.
template <typename F>
FB_INLINE void with_storage(Storage storage, float, F f) {
  if (storage == Storage::kBFloat16) return f(static_cast<BFloat16*>(nullptr));
  if (storage == Storage::kFloat16) return f(static_cast<Float16*>(nullptr));
  return f(static_cast<float*>(nullptr));
}
template <typename F>
FB_INLINE void with_storage(Storage, double, F f) {
  f(static_cast<double*>(nullptr));
}

// ---- Scratch memory ----

// Hands out pieces of one allocation; started at null, it measures how much is needed.
struct Arena {
  char* next;

  template <typename U>
  FB_INLINE U* take(int64_t count) {
    U* piece = reinterpret_cast<U*>(next);
    next = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(next) + round_up(count * sizeof(U), 64));
    return piece;
  }
};

// ---- Turning channels-by-positions over ----

#if defined(__GNUC__) && !defined(__clang__)
template <typename T>
struct IndexOf;
template <>
struct IndexOf<float> {
  typedef int32_t type __attribute__((vector_size(FB_VECTOR_BYTES)));
};
template <>
struct IndexOf<double> {
  typedef int64_t type __attribute__((vector_size(FB_VECTOR_BYTES)));
};
#endif

// The elements of a and b in turn, from element `first` on.
template <typename T>
FB_INLINE Vector<T> zip(Vector<T> a, Vector<T> b, int64_t first) {
#if defined(__GNUC__) && !defined(__clang__)
  typename IndexOf<T>::type index;
  for (int64_t i = 0; i < kLanes<T>; ++i) index[i] = first + i / 2 + (i % 2 ? kLanes<T> : 0);
  return __builtin_shuffle(a, b, index);
#else
  Vector<T> zipped;
  for (int64_t i = 0; i < kLanes<T>; ++i) zipped[i] = i % 2 ? b[first + i / 2] : a[first + i / 2];
  return zipped;
#endif
}

// Transposes a square of vectors: zipping its halves once for each bit of the index.
template <typename T>
FB_INLINE void turn(Vector<T> square[kLanes<T>]) {
#pragma GCC unroll 4
  for (int64_t bit = 1; bit < kLanes<T>; bit *= 2) {
    Vector<T> zipped[kLanes<T>];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes<T> / 2; ++i) {
      zipped[2 * i] = zip<T>(square[i], square[i + kLanes<T> / 2], 0);
      zipped[2 * i + 1] = zip<T>(square[i], square[i + kLanes<T> / 2], kLanes<T> / 2);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes<T>; ++i) square[i] = zipped[i];
  }
}

template <typename T, typename S>
FB_INLINE Vector<T> load_widened(const S* from) {
  T wide[kLanes<T>];
  for (int64_t i = 0; i < kLanes<T>; ++i) wide[i] = widen(from[i]);
  return load(wide);
}

template <typename T, typename S>
FB_INLINE void store_narrowed(S* to, Vector<T> v) {
  T wide[kLanes<T>];
  store(wide, v);
  for (int64_t i = 0; i < kLanes<T>; ++i) narrow(wide[i], to + i);
}

// `count` positions of one image, with the given distances between channels and between positions, to dense rows.
template <typename T, typename S>
void gather_rows(const S* from, int64_t channel_stride, int64_t position_stride, int64_t channels, int64_t count,
                 T* to) {
  if (channel_stride == 1) {
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t c = 0; c < channels; ++c) to[p * channels + c] = widen(from[p * position_stride + c]);
    }
    return;
  }
  constexpr int64_t L = kLanes<T>;
  const int64_t squares = position_stride == 1 ? channels / L * L : 0;
  for (int64_t p = 0; p < count; p += L) {
    const int64_t used = smaller(L, count - p), whole = used == L ? squares : 0;
    for (int64_t c = 0; c < whole; c += L) {
      Vector<T> square[L];
      for (int64_t i = 0; i < L; ++i) square[i] = load_widened<T>(from + (c + i) * channel_stride + p);
      turn<T>(square);
      for (int64_t i = 0; i < L; ++i) store(to + (p + i) * channels + c, square[i]);
    }
    for (int64_t c = whole; c < channels; ++c) {
      for (int64_t i = p; i < p + used; ++i) {
        to[i * channels + c] = widen(from[c * channel_stride + i * position_stride]);
      }
    }
  }
}

// The way back: rows, `row_stride` apart, to any strides.
template <typename T, typename S>
void scatter_rows(const T* from, int64_t row_stride, int64_t channels, int64_t count, S* to, int64_t channel_stride,
                  int64_t position_stride) {
  if (channel_stride == 1) {
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t c = 0; c < channels; ++c) narrow(from[p * row_stride + c], to + p * position_stride + c);
    }
    return;
  }
  constexpr int64_t L = kLanes<T>;
  const int64_t squares = position_stride == 1 ? channels / L * L : 0;
  for (int64_t p = 0; p < count; p += L) {
    const int64_t used = smaller(L, count - p), whole = used == L ? squares : 0;
    for (int64_t c = 0; c < whole; c += L) {
      Vector<T> square[L];
      for (int64_t i = 0; i < L; ++i) square[i] = load(from + (p + i) * row_stride + c);
      turn<T>(square);
      for (int64_t i = 0; i < L; ++i) store_narrowed<T>(to + (c + i) * channel_stride + p, square[i]);
    }
    for (int64_t c = whole; c < channels; ++c) {
      for (int64_t i = p; i < p + used; ++i) {
        narrow(from[i * row_stride + c], to + c * channel_stride + i * position_stride);
      }
    }
  }
}

// ---- Products ----

// c (MR rows, NV vectors) = or += a (MR, depth) x b (depth, NV vectors). Rows of `a` lie `stride` apart, or, where
// kAdjacent, rows are adjacent and steps of the depth lie `stride` apart.
template <typename T, int MR, int NV, bool kAdjacent>
void micro(int64_t depth, const T* a, int64_t stride, const T* b, T* c, int64_t c_stride, bool add) {
  Vector<T> sum[MR][NV];
  for (int i = 0; i < MR; ++i) {
    for (int v = 0; v < NV; ++v) sum[i][v] = add ? load(c + i * c_stride + v * kLanes<T>) : Vector<T>{};
  }
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    Vector<T> right[NV];
    for (int v = 0; v < NV; ++v) right[v] = load(b + k * kPanel<T> + v * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const T left = kAdjacent ? a[k * stride + i] : a[i * stride + k];
      for (int v = 0; v < NV; ++v) sum[i][v] += left * right[v];
    }
  };
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) {
    // The rows after these, which the next call reads: too many streams for the hardware to foresee.
    if constexpr (!kAdjacent) {
      for (int i = 0; i < MR; ++i) __builtin_prefetch(a + (MR + i) * stride + k);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) step(k + j);
  }
  for (; k < depth; ++k) step(k);
  for (int i = 0; i < MR; ++i) {
    for (int v = 0; v < NV; ++v) store(c + i * c_stride + v * kLanes<T>, sum[i][v]);
  }
}

template <typename T, int NV, bool kAdjacent, int MR = kRows>
FB_INLINE void micro_rows(int64_t rows, int64_t depth, const T* a, int64_t stride, const T* b, T* c,
                          int64_t c_stride, bool add) {
  if (rows == MR) return micro<T, MR, NV, kAdjacent>(depth, a, stride, b, c, c_stride, add);
  if constexpr (MR > 1) micro_rows<T, NV, kAdjacent, MR - 1>(rows, depth, a, stride, b, c, c_stride, add);
}

// One panel of columns. A panel of which only the first vector is in use costs half.
template <typename T, bool kAdjacent>
void panel_product(int64_t rows, int64_t used, int64_t depth, const T* a, int64_t stride, const T* b, T* c,
                   int64_t c_stride, bool add) {
  if (used <= kLanes<T>) {
    micro_rows<T, 1, kAdjacent>(rows, depth, a, stride, b, c, c_stride, add);
  } else {
    micro_rows<T, 2, kAdjacent>(rows, depth, a, stride, b, c, c_stride, add);
  }
}

// c (rows, columns padded to panels) = or += a (rows, depth) x b, whose panels of depth x kPanel lie `panel_stride`
// apart. A panel of b stays in the first-level cache while the rows pass by.
template <typename T>
void product(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_stride, const T* b,
             int64_t panel_stride, T* c, int64_t c_stride, bool add) {
  const int64_t strips = ceil_div(rows, kRows);
  for (int64_t from = 0; from < depth; from += kDepth<T>) {
    const int64_t steps = smaller(kDepth<T>, depth - from);
    for (int64_t j = 0; j < columns; j += kPanel<T>) {
      const T* panel = b + j / kPanel<T> * panel_stride + from * kPanel<T>;
      for (int64_t strip = 0; strip < strips; ++strip) {
        // Strips of nearly equal height: one of a single row would wait on its own additions.
        const int64_t i = rows * strip / strips, height = rows * (strip + 1) / strips - i;
        panel_product<T, false>(height, columns - j, steps, a + i * a_stride + from, a_stride, panel,
                                c + i * c_stride + j, c_stride, add || from > 0);
      }
    }
  }
}

// c (rows, columns) += a^T x b, with a (depth, rows) and b's panels (depth, kPanel): the sum over a tile's positions.
// c may be larger than the caches; it is walked row by row, which the hardware prefetches.
template <typename T>
void product_transposed(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_stride, const T* b,
                        int64_t panel_stride, T* c, int64_t c_stride) {
  const int64_t strips = ceil_div(rows, kRows);
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t i = rows * strip / strips, height = rows * (strip + 1) / strips - i;
    for (int64_t j = 0; j < columns; j += kPanel<T>) {
      panel_product<T, true>(height, columns - j, depth, a + i, a_stride, b + j / kPanel<T> * panel_stride,
                             c + i * c_stride + j, c_stride, true);
    }
  }
}

// ---- Tiles: where the taps of some positions sample ----

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

template <typename T>
FB_INLINE int64_t blocks_of_group(const Problem<T>& q) {
  return ceil_div(q.depth(), kDepth<T>);
}

template <typename T>
int64_t blocks(const Problem<T>& q) {
  return q.gemm_groups() * blocks_of_group(q);
}

template <typename T>
Block block_at(const Problem<T>& q, int64_t index) {
  const int64_t each = blocks_of_group(q), size = round_up(ceil_div(q.depth(), each), kPanel<T>);
  const int64_t k0 = smaller(index % each * size, q.depth());
  return {index / each, k0, smaller(k0 + size, q.depth())};
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

// ---- Forward ----

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

// ---- Backward ----

template <typename T>
struct BackwardBuffers {
  Tile<T> tile;
  int64_t size;
  T* columns;  // first the gradient's, then overwritten by the samples
  T* grad;     // the tile's gradient of the output in panels, for the gradient of the weight
  T* dots;     // gradients of y, x and mask: [3][offset group][tap][position]
  T** scatter;  // of each position: what to add Neighbours::at to, for the gradient of its image

  BackwardBuffers(const Problem<T>& q, Arena& arena)
      : tile(q, arena, true),
        size(tile.size),
        columns(arena.template take<T>(size * kColumns<T>)),
        grad(arena.template take<T>(q.gemm_groups() * q.padded(q.width()) * size)),
        dots(arena.template take<T>(3 * q.g.offset_groups * q.g.taps() * size)),
        scatter(arena.template take<T*>(size)) {}
};

// columns = gradient of the output x weight^T.
template <typename T>
void multiply_back(const Problem<T>& q, const Tile<T>& tile, const Block& block, T* columns) {
  const T* grad = q.grad + tile.begin * q.g.out_channels;
  if (!q.depthwise()) {
    const int64_t width = q.width(), panel = width * kPanel<T>;
    const T* weight = q.weight_t + block.group * width * q.padded(q.depth()) + block.k0 * width;
    product(tile.count, block.k1 - block.k0, width, grad + block.group * width, q.g.out_channels, weight, panel,
            columns, kColumns<T>, false);
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

// One sample's gradients. `column` holds the gradient of the samples of a run, and receives the samples.
template <typename T, bool kScatter, bool kDots, bool kSamples>
FB_INLINE void spread(const T* const from[4], T* const to[4], const T weight[4], int64_t length, T* column, T dot[4]) {
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
      if constexpr (kScatter) store(to[corner] + i, load(to[corner] + i) + weight[corner] * grad);
    }
    if constexpr (kSamples) store(column + i, value);
  }
  for (; i < length; ++i) {
    const T grad = column[i];
    T value = 0;
    for (int corner = 0; corner < 4; ++corner) {
      if constexpr (kDots) rest[corner] += grad * from[corner][i];
      if constexpr (kSamples) value += weight[corner] * from[corner][i];
      if constexpr (kScatter) to[corner][i] += weight[corner] * grad;
    }
    if constexpr (kSamples) column[i] = value;
  }
  if constexpr (kDots) {
    for (int corner = 0; corner < 4; ++corner) dot[corner] = rest[corner] + lane_sum<T>(sum[corner]);
  }
}

template <typename T, bool kScatter, bool kDots, bool kSamples>
void spread_run(const Problem<T>& q, BackwardBuffers<T>& b, const Run& run) {
  const int64_t entries = q.g.offset_groups * q.g.taps() * b.size;
  const int32_t* first = b.tile.at + run.entry * 4 * b.size;
  for (int64_t p = 0; p < b.tile.count; ++p) {
    T* column = b.columns + p * kColumns<T> + run.k;
    T* dots = b.dots + run.entry * b.size + p;
    if (first[p] < 0) {
      const T nothing = first[p] == kOutside ? T(0) : T(__builtin_nan(""));
      if constexpr (kSamples) fill(column, run.length, nothing);
      if constexpr (kDots) dots[0] += nothing, dots[entries] += nothing, dots[2 * entries] += nothing;
      continue;
    }
    const Neighbours<T> s(b.tile, q.g.channels, run.entry, p);
    const T* from[4];
    T* to[4];
    for (int corner = 0; corner < 4; ++corner) {
      from[corner] = q.input + s.at[corner] + run.channel;
      to[corner] = kScatter ? b.scatter[p] + s.at[corner] + run.channel : nullptr;
    }
    T d[4];
    spread<T, kScatter, kDots, kSamples>(from, to, s.weight, run.length, column, d);
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

// Everything that the gradient's columns of a block give, in one sweep over the neighbours.
template <typename T>
void spread_block(const Problem<T>& q, const Block& block, bool samples, BackwardBuffers<T>& b) {
  const bool scatter = q.grad_input, dots = q.grad_offset.data || q.grad_mask.data;
  for_each_run(q, block, [&](const Run& run) {
    if (scatter && dots && samples) return spread_run<T, true, true, true>(q, b, run);
    if (scatter && dots) return spread_run<T, true, true, false>(q, b, run);
    if (scatter && samples) return spread_run<T, true, false, true>(q, b, run);
    if (scatter) return spread_run<T, true, false, false>(q, b, run);
    if (samples) return spread_run<T, false, true, true>(q, b, run);
    spread_run<T, false, true, false>(q, b, run);
  });
}

// The tile's gradient of the output, rows of channels, into panels: [group][panel][position][kPanel].
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

// grad_weight += columns^T x gradient of the output.
template <typename T>
void accumulate_weight(const Problem<T>& q, const Block& block, const BackwardBuffers<T>& b, T* grad_weight) {
  if (!q.depthwise()) {
    const int64_t width = q.padded(q.width()), count = b.tile.count;
    product_transposed(block.k1 - block.k0, q.width(), count, b.columns, kColumns<T>,
                       b.grad + block.group * width * count, count * kPanel<T>,
                       grad_weight + (block.group * q.depth() + block.k0) * width, width);
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
void backward_tile(const Problem<T>& q, const BackwardRange<T>& r, BackwardBuffers<T>& b) {
  const bool dots = q.grad_offset.data || q.grad_mask.data;
  const bool columns = r.columns && (q.grad_input || dots);
  if (r.grad_bias) accumulate_bias(q, b.tile, r.grad_bias);
  if (!columns && !r.grad_weight) return;
  tabulate(q, b.tile, true);
  if (r.grad_weight && !q.depthwise()) pack_grad(q, b.tile, b.grad);
  if (columns && dots) fill(b.dots, 3 * q.g.offset_groups * q.g.taps() * b.size, T(0));
  for (int64_t index = r.first_block; index < r.last_block; ++index) {
    const Block block = block_at(q, index);
    if (columns) {
      multiply_back(q, b.tile, block, b.columns);
      spread_block(q, block, r.grad_weight != nullptr, b);
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
      b.scatter[p] = head ? r.head - head_image * image_size : q.grad_input;
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

// ---- The weight's order in memory ----

template <typename T>
int64_t forward_units(const Problem<T>& q) {
  return q.depthwise() ? 1 : q.g.groups * q.padded(q.width()) / kPanel<T>;
}

// Calls f(position in memory, k) for every input channel and tap of an output channel, in the order of memory.
template <typename T, typename F>
FB_INLINE void for_each_weight(const Problem<T>& q, const Strided& weight, F f) {
  const int64_t channels = q.group_channels(), taps = q.g.taps();
  const bool taps_inside = weight.stride[2] <= weight.stride[1];
  const int64_t outer = taps_inside ? channels : taps, inner = taps_inside ? taps : channels;
  for (int64_t i = 0; i < outer; ++i) {
    for (int64_t j = 0; j < inner; ++j) {
      const int64_t c = taps_inside ? i : j, t = taps_inside ? j : i;
      f(c * weight.stride[1] + t * weight.stride[2], t * channels + c);
    }
  }
}

template <typename T>
void pack_depthwise(const Problem<T>& q, const Strided& weight, T* packed) {
  with_storage(weight.storage, T(0), [&](auto* kind) {
    const auto* from = static_cast<decltype(kind)>(weight.data);
    for (int64_t c = 0; c < q.g.channels; ++c) {
      for (int64_t t = 0; t < q.g.taps(); ++t) {
        packed[t * q.g.channels + c] = widen(from[c * weight.stride[0] + t * weight.stride[2]]);
      }
    }
  });
}

// [group][panel of outputs][K][kPanel]
template <typename T>
void pack_forward(const Problem<T>& q, const Strided& weight, int64_t begin, int64_t end, T* packed) {
  if (q.depthwise()) return pack_depthwise(q, weight, packed);
  const int64_t panels = q.padded(q.width()) / kPanel<T>;
  with_storage(weight.storage, T(0), [&](auto* kind) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % panels * kPanel<T>, used = smaller(kPanel<T>, q.width() - first);
      const auto* from =
          static_cast<decltype(kind)>(weight.data) + (unit / panels * q.width() + first) * weight.stride[0];
      T* to = packed + unit * q.depth() * kPanel<T>;
      for_each_weight(q, weight, [&](int64_t at, int64_t k) {
        T* row = to + k * kPanel<T>;
        for (int64_t o = 0; o < used; ++o) row[o] = widen(from[o * weight.stride[0] + at]);
        for (int64_t o = used; o < kPanel<T>; ++o) row[o] = T(0);
      });
    }
  });
}

// Units of pack_backward: panels of K; or, where channels fill whole panels, panels of channels with all their taps,
// so that memory is read once.
template <typename T>
int64_t backward_units(const Problem<T>& q) {
  if (q.depthwise()) return 1;
  if (q.group_channels() % kPanel<T> == 0) return q.g.groups * q.group_channels() / kPanel<T>;
  return q.g.groups * q.padded(q.depth()) / kPanel<T>;
}

// [group][panel of K][output][kPanel]
template <typename T>
void pack_backward(const Problem<T>& q, const Strided& weight, int64_t begin, int64_t end, T* packed) {
  if (q.depthwise()) return pack_depthwise(q, weight, packed);
  const int64_t channels = q.group_channels(), width = q.width(), taps = q.g.taps();
  const bool whole = channels % kPanel<T> == 0;
  const int64_t each = whole ? channels / kPanel<T> : q.padded(q.depth()) / kPanel<T>;
  with_storage(weight.storage, T(0), [&](auto* kind) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit / each, panel = unit % each;
      const auto* from = static_cast<decltype(kind)>(weight.data) + group * width * weight.stride[0];
      T* to = packed + group * width * q.padded(q.depth());
      for (int64_t o = 0; o < width; ++o, from += weight.stride[0]) {
        for (int64_t t = 0; t < (whole ? taps : 1); ++t) {
          T* row = to + (whole ? (t * each + panel) * width + o : panel * width + o) * kPanel<T>;
          for (int64_t lane = 0; lane < kPanel<T>; ++lane) {
            const int64_t k = (whole ? t * channels : 0) + panel * kPanel<T> + lane;
            const int64_t c = whole ? panel * kPanel<T> + lane : k % channels, tap = whole ? t : k / channels;
            row[lane] = k < q.depth() ? widen(from[c * weight.stride[1] + tap * weight.stride[2]]) : T(0);
          }
        }
      }
    }
  });
}

template <typename T>
void unpack_depthwise(const Problem<T>& q, const T* buffers, int64_t parts, const Strided& weight) {
  with_storage(weight.storage, T(0), [&](auto* kind) {
    auto* to = static_cast<decltype(kind)>(weight.data);
    for (int64_t c = 0; c < q.g.channels; ++c) {
      for (int64_t t = 0; t < q.g.taps(); ++t) {
        T sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += buffers[part * q.depth() + t * q.g.channels + c];
        narrow(sum, to + c * weight.stride[0] + t * weight.stride[2]);
      }
    }
  });
}

template <typename T>
void unpack_weight(const Problem<T>& q, const T* buffers, int64_t parts, int64_t begin, int64_t end,
                   const Strided& weight) {
  if (q.depthwise()) return unpack_depthwise(q, buffers, parts, weight);
  const int64_t padded = q.padded(q.width()), panels = padded / kPanel<T>;
  with_storage(weight.storage, T(0), [&](auto* kind) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % panels * kPanel<T>, used = smaller(kPanel<T>, q.width() - first);
      auto* to = static_cast<decltype(kind)>(weight.data) + (unit / panels * q.width() + first) * weight.stride[0];
      const T* from = buffers + unit / panels * q.depth() * padded + first;
      for_each_weight(q, weight, [&](int64_t at, int64_t k) {
        T sum[kPanel<T>] = {};
        for (int64_t part = 0; part < parts; ++part) {
          const T* row = from + part * q.grad_weight_size() + k * padded;
          for (int64_t o = 0; o < kPanel<T>; ++o) sum[o] += row[o];
        }
        for (int64_t o = 0; o < used; ++o) narrow(sum[o], to + o * weight.stride[0] + at);
      });
    }
  });
}

// ---- The images' order in memory ----

// Calls f(image, first position, count, position in all) for the parts of [begin, end) in each image.
template <typename F>
FB_INLINE void for_each_part(int64_t positions, int64_t begin, int64_t end, F f) {
  for (int64_t at = begin; at < end;) {
    const int64_t place = at % positions, count = smaller(end - at, positions - place);
    f(at / positions, place, count, at);
    at += count;
  }
}

template <typename T>
void to_rows(const Strided& from, int64_t channels, int64_t positions, int64_t begin, int64_t end, T* to) {
  with_storage(from.storage, T(0), [&](auto* kind) {
    const auto* data = static_cast<decltype(kind)>(from.data);
    for_each_part(positions, begin, end, [&](int64_t image, int64_t place, int64_t count, int64_t at) {
      gather_rows(data + image * from.stride[0] + place * from.stride[2], from.stride[1], from.stride[2], channels,
                  count, to + at * channels);
    });
  });
}

template <typename T>
void from_rows(const T* from, int64_t channels, int64_t positions, int64_t begin, int64_t end, const Strided& to) {
  with_storage(to.storage, T(0), [&](auto* kind) {
    auto* data = static_cast<decltype(kind)>(to.data);
    for_each_part(positions, begin, end, [&](int64_t image, int64_t place, int64_t count, int64_t at) {
      scatter_rows(from + at * channels, channels, channels, count,
                   data + image * to.stride[0] + place * to.stride[2], to.stride[1], to.stride[2]);
    });
  });
}

template <typename T>
constexpr Kernel<T> kernel_of() {
  return {kPanel<T>,         blocks<T>,        forward_scratch<T>, backward_scratch<T>, forward<T>,   backward<T>,
          forward_units<T>,  pack_forward<T>,  backward_units<T>,  pack_backward<T>,    unpack_weight<T>,
          to_rows<T>,        from_rows<T>};
}

constexpr Kernels kKernels = {kernel_of<float>(), kernel_of<double>()};

}  // namespace
}  // namespace FB_ISA
}  // namespace flowers_bench
