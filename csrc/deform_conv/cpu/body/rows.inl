// Brings images from any order in memory to dense rows of channels, and back.
#pragma once

#include "transpose.inl"

namespace flowers_bench::FB_ISA {
namespace {

// Copies `count` positions of one image, with the given distances between channels and between positions, to dense
// rows.
template <typename T, typename S>
void gather_rows(const S* from, int64_t channel_stride, int64_t position_stride, int64_t channels, int64_t count,
                 T* to) {
  if (channel_stride == 1) {
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t c = 0; c < channels; ++c) narrow(widen(from[p * position_stride + c]), to + p * channels + c);
    }
    return;
  }
  constexpr int64_t L = kLanes<T>;
  const int64_t squares = position_stride == 1 ? channels / L * L : 0;
  for (int64_t p = 0; p < count; p += L) {
    const int64_t used = smaller(L, count - p), whole = used == L ? squares : 0;
    for (int64_t c = 0; c < whole; c += L) {
      Vector<Sum<T>> square[L];
      for (int64_t i = 0; i < L; ++i) square[i] = load_widened<Sum<T>>(from + (c + i) * channel_stride + p);
      transpose<Sum<T>>(square);
      for (int64_t i = 0; i < L; ++i) store_exact(to + (p + i) * channels + c, square[i]);
    }
    for (int64_t c = whole; c < channels; ++c) {
      for (int64_t i = p; i < p + used; ++i) {
        narrow(widen(from[c * channel_stride + i * position_stride]), to + i * channels + c);
      }
    }
  }
}

// Converts consecutive numbers.
template <typename T, typename S>
FB_INLINE void narrow_row(const T* from, int64_t count, S* to) {
  for (int64_t i = 0; i < count; ++i) narrow(from[i], to + i);
}
#if defined(FB_PAIRS)
FB_INLINE void narrow_row(const float* from, int64_t count, BFloat16* to) {
  int64_t i = 0;
  for (; i + 2 * kLanes<float> <= count; i += 2 * kLanes<float>) {
    store_rounded(to + i, load(from + i), load(from + i + kLanes<float>));
  }
  for (; i < count; ++i) narrow(from[i], to + i);
}
#endif

// Copies rows, `row_stride` apart, back to any distances between channels and between positions.
template <typename T, typename S>
void scatter_rows(const T* from, int64_t row_stride, int64_t channels, int64_t count, S* to, int64_t channel_stride,
                  int64_t position_stride) {
  if (channel_stride == 1) {
    for (int64_t p = 0; p < count; ++p) {
      narrow_row(from + p * row_stride, channels, to + p * position_stride);
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
      transpose<T>(square);
      for (int64_t i = 0; i < L; ++i) store_narrowed<T>(to + (c + i) * channel_stride + p, square[i]);
    }
    for (int64_t c = whole; c < channels; ++c) {
      for (int64_t i = p; i < p + used; ++i) {
        narrow(from[i * row_stride + c], to + c * channel_stride + i * position_stride);
      }
    }
  }
}

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
  with_storage(from.storage, T{}, [&](auto* kind) {
    const auto* data = static_cast<decltype(kind)>(from.data);
    for_each_part(positions, begin, end, [&](int64_t image, int64_t place, int64_t count, int64_t at) {
      gather_rows(data + image * from.stride[0] + place * from.stride[2], from.stride[1], from.stride[2], channels,
                  count, to + at * channels);
    });
  });
}

template <typename T>
void from_rows(const T* from, int64_t channels, int64_t positions, int64_t begin, int64_t end, const Strided& to) {
  with_storage(to.storage, T{}, [&](auto* kind) {
    auto* data = static_cast<decltype(kind)>(to.data);
    for_each_part(positions, begin, end, [&](int64_t image, int64_t place, int64_t count, int64_t at) {
      scatter_rows(from + at * channels, channels, channels, count, data + image * to.stride[0] + place * to.stride[2],
                   to.stride[1], to.stride[2]);
    });
  });
}

}  // namespace
}  // namespace flowers_bench::FB_ISA
