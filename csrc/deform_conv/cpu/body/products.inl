// Multiplies matrices.
#pragma once

#include "amx.inl"
#include "vectors.inl"

namespace flowers_bench::FB_ISA {
namespace {

// Steps of the depth that a microkernel takes at once.
constexpr int kSteps = kLargeCache ? 8 : 4;

#if defined(FB_ELEMENTS)
// Adds a x b to the sums of `micro` with as few loads as there can be: a vector of left factors is loaded at once, and
// multiplied element by element. Its elements are steps of the depth, or, where kAdjacent, rows. Returns how many steps
// it has taken: whole vectors of them, or, where kAdjacent, all.
template <typename T, int MR, int NV, bool kAdjacent>
FB_INLINE int64_t multiply_by_element(int64_t depth, const Sum<T>* a, int64_t stride, const Sum<T>* b,
                                      Vector<Sum<T>> sum[MR][NV]) {
  constexpr int kElements = kLanes<T>, kAtOnce = kAdjacent ? 1 : kElements;
  int64_t k = 0;
  for (; k + kAtOnce <= depth; k += kAtOnce) {
    Vector<Sum<T>> right[kAtOnce][NV];
#pragma GCC unroll 4
    for (int j = 0; j < kAtOnce; ++j) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) right[j][v] = load(b + (k + j) * kPanel<T> + v * kLanes<T>);
    }
#pragma GCC unroll 16
    for (int i = 0; i + kElements <= (kAdjacent ? MR : MR + kElements - 1); i += kAdjacent ? kElements : 1) {
      const Vector<Sum<T>> left = load(kAdjacent ? a + k * stride + i : a + i * stride + k);
#pragma GCC unroll 4
      for (int j = 0; j < kElements; ++j) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          multiply_add_element<T>(sum[kAdjacent ? i + j : i][v], left, j, right[kAdjacent ? 0 : j][v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int i = kAdjacent ? MR / kElements * kElements : MR; i < MR; ++i) {
      Sum<T> left;  // copied, since a pair is no float
      __builtin_memcpy(&left, a + k * stride + i, sizeof(left));
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) multiply_add<T>(sum[i][v], left, right[0][v]);
    }
  }
  return k;
}
#endif

// Computes c (MR rows, NV vectors) = or += a (MR, depth) x b (depth, NV vectors), where depth counts factors. Rows of
// `a` lie `stride` apart, or, where kAdjacent, rows are adjacent and steps of the depth lie `stride` apart. Every loop
// over the sums is unrolled: one that is not would keep them in memory around the products.
template <typename T, int MR, int NV, bool kAdjacent>
void micro(int64_t depth, const Sum<T>* a, int64_t stride, const Sum<T>* b, const RowsTo<Sum<T>>& c, bool add) {
  Vector<Sum<T>> sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    const Sum<T>* const from = c.at(i);
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) sum[i][v] = add ? load(from + v * kLanes<T>) : Vector<Sum<T>>{};
  }
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    Vector<Sum<T>> right[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) right[v] = load(b + k * kPanel<T> + v * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      Sum<T> left;  // copied, since a pair is no float
      __builtin_memcpy(&left, kAdjacent ? a + k * stride + i : a + i * stride + k, sizeof(left));
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) multiply_add<T>(sum[i][v], left, right[v]);
    }
  };
#if defined(FB_ELEMENTS)
  int64_t k = multiply_by_element<T, MR, NV, kAdjacent>(depth, a, stride, b, sum);
#else
  int64_t k = 0;
  for (; k + kSteps <= depth; k += kSteps) {
    // The rows after these, which the next call reads: of large tiles, too many streams for the hardware to foresee.
    if constexpr (kLargeCache && !kAdjacent) {
      for (int i = 0; i < MR; ++i) __builtin_prefetch(a + (MR + i) * stride + k);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kSteps; ++j) step(k + j);
  }
#endif
  for (; k < depth; ++k) step(k);
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    Sum<T>* const to = c.at(i);
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(to + v * kLanes<T>, sum[i][v]);
  }
}

template <typename T, int NV, bool kAdjacent, int MR = kRows>
FB_INLINE void micro_rows(int64_t rows, int64_t depth, const Sum<T>* a, int64_t stride, const Sum<T>* b,
                          const RowsTo<Sum<T>>& c, bool add) {
  if (rows == MR) return micro<T, MR, NV, kAdjacent>(depth, a, stride, b, c, add);
  if constexpr (MR > 1) micro_rows<T, NV, kAdjacent, MR - 1>(rows, depth, a, stride, b, c, add);
}

// Computes one panel of columns. A panel of which only the first vector is in use costs half.
template <typename T, bool kAdjacent>
void panel_product(int64_t rows, int64_t used, int64_t depth, const Sum<T>* a, int64_t stride, const Sum<T>* b,
                   const RowsTo<Sum<T>>& c, bool add) {
  if (used <= kLanes<T>) {
    micro_rows<T, 1, kAdjacent>(rows, depth, a, stride, b, c, add);
  } else {
    micro_rows<T, 2, kAdjacent>(rows, depth, a, stride, b, c, add);
  }
}

// Computes c (rows, columns padded to panels) = or += a (rows, depth) x b, whose panels of depth x kPanel lie
// `panel_stride` apart. A panel of b stays in the cache while the rows pass by.
template <typename T>
void product(int64_t rows, int64_t columns, int64_t depth, const Sum<T>* a, int64_t a_stride, const Sum<T>* b,
             int64_t panel_stride, const RowsTo<Sum<T>>& c, bool add) {
#if defined(FB_AMX)
  constexpr int64_t kBytes = sizeof(Sum<T>), kRow = kPanel<T> * kBytes;
  const Side left{reinterpret_cast<const char*>(a), a_stride * kBytes, 64};
  const Side right{reinterpret_cast<const char*>(b), kRow, kSquare * kRow};
  return product_of_squares(rows, columns, depth * kFactor<T>, left, right, panel_stride * kBytes, c, add);
#else
  const int64_t strips = ceil_div(rows, kRows);
  for (int64_t from = 0; from < depth; from += kForwardDepth<T>) {
    const int64_t steps = smaller(kForwardDepth<T>, depth - from);
    for (int64_t j = 0; j < columns; j += kPanel<T>) {
      const Sum<T>* panel = b + j / kPanel<T> * panel_stride + from * kPanel<T>;
      for (int64_t strip = 0; strip < strips; ++strip) {
        // Strips of nearly equal height: one of a single row would wait on its own additions.
        const int64_t i = rows * strip / strips, height = rows * (strip + 1) / strips - i;
        panel_product<T, false>(height, columns - j, steps, a + i * a_stride + from, a_stride, panel, c.from(i, j),
                                add || from > 0);
      }
    }
  }
#endif
}

// Adds a^T x b to c (rows, columns), with a (depth, rows) and b's panels (depth, kPanel): the sum over a tile's
// positions. c may be larger than the caches; it is walked row by row, which the hardware prefetches.
template <typename T>
void product_transposed(int64_t rows, int64_t columns, int64_t depth, const Sum<T>* a, int64_t a_stride,
                        const Sum<T>* b, int64_t panel_stride, const RowsTo<Sum<T>>& c) {
  const int64_t strips = ceil_div(rows, kRows);
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t i = rows * strip / strips, height = rows * (strip + 1) / strips - i;
    for (int64_t j = 0; j < columns; j += kPanel<T>) {
      panel_product<T, true>(height, columns - j, depth, a + i, a_stride, b + j / kPanel<T> * panel_stride,
                             c.from(i, j), true);
    }
  }
}

}  // namespace
}  // namespace flowers_bench::FB_ISA
