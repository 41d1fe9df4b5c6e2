// Transposes squares of vectors in registers.
#pragma once

#include "vectors.inl"

namespace flowers_bench::FB_ISA {
namespace {

#if defined(__GNUC__) && !defined(__clang__)
// An integer as large as T, in which shuffles of vectors of T name their lanes.
template <typename T>
struct IndexOf {
  typedef int32_t Type;
};
template <>
struct IndexOf<double> {
  typedef int64_t Type;
};
#endif

// Takes elements of a and b alternately, from element `first` on.
template <typename T>
FB_INLINE Vector<T> zip(Vector<T> a, Vector<T> b, int64_t first) {
#if defined(__GNUC__) && !defined(__clang__)
  Vector<typename IndexOf<T>::Type> index;
  for (int64_t i = 0; i < kLanes<T>; ++i) index[i] = first + i / 2 + (i % 2 ? kLanes<T> : 0);
  return __builtin_shuffle(a, b, index);
#else
  Vector<T> zipped;
  for (int64_t i = 0; i < kLanes<T>; ++i) zipped[i] = i % 2 ? b[first + i / 2] : a[first + i / 2];
  return zipped;
#endif
}

// Transposes a square of vectors, by zipping its halves once for each bit of the index.
template <typename T>
FB_INLINE void transpose(Vector<T> square[kLanes<T>]) {
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

}  // namespace
}  // namespace flowers_bench::FB_ISA
