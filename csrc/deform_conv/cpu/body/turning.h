// Channels-by-positions, turned over. A part of kernel_body.h,
// which includes it inside its namespace, once for each instruction set.

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
