// The weight's and the images' order in memory. A part of kernel_body.h,
// which includes it inside its namespace, once for each instruction set.

// ---- The weight's order in memory ----

template <typename T>
int64_t forward_units(const Problem<T>& q) {
  return q.depthwise() ? 1 : q.g.groups * q.padded(q.width()) / kPanel<T>;
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
  for (int64_t unit = begin; unit < end; ++unit) {
    pack_panel(q, weight, unit, 0, q.depth(), packed + unit * q.depth() * kPanel<T>);
  }
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

// The sum of `parts` buffers at one place.
template <typename T>
FB_INLINE Vector<T> sum_of_parts(const T* first, int64_t parts, int64_t distance) {
  Vector<T> sum = load(first);
  for (int64_t part = 1; part < parts; ++part) sum += load(first + part * distance);
  return sum;
}

template <typename T>
void unpack_weight(const Problem<T>& q, const T* buffers, int64_t parts, int64_t begin, int64_t end,
                   const Strided& weight) {
  if (q.depthwise()) return unpack_depthwise(q, buffers, parts, weight);
  constexpr int64_t L = kLanes<T>;
  const int64_t padded = q.padded(q.width()), panels = padded / kPanel<T>, row_stride = weight.stride[0];
  with_storage(weight.storage, T(0), [&](auto* kind) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % panels * kPanel<T>, used = smaller(kPanel<T>, q.width() - first);
      auto* to = static_cast<decltype(kind)>(weight.data) + (unit / panels * q.width() + first) * row_stride;
      const T* from = buffers + unit / panels * q.depth() * padded + first;
      const auto summed = [&](int64_t k, int64_t lane) {
        return sum_of_parts(from + k * padded + lane, parts, q.grad_weight_size());
      };
      WeightWalk walk(q, weight);
      int64_t done = 0;
      for (; walk.dense() && used == kPanel<T> && done + L <= q.depth(); done += L) {
        Vector<T> squares[2][L];
        for (int64_t i = 0; i < L; ++i, walk.step()) {
          squares[0][i] = summed(walk.k, 0), squares[1][i] = summed(walk.k, L);
        }
        turn<T>(squares[0]), turn<T>(squares[1]);
        for (int64_t i = 0; i < kPanel<T>; ++i) store_narrowed<T>(to + i * row_stride + done, squares[i / L][i % L]);
      }
      for (; done < q.depth(); ++done, walk.step()) {
        T sum[kPanel<T>];
        store(sum, summed(walk.k, 0)), store(sum + L, summed(walk.k, L));
        for (int64_t o = 0; o < used; ++o) narrow(sum[o], to + o * row_stride + walk.at);
      }
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
      scatter_rows(from + at * channels, channels, channels, count, data + image * to.stride[0] + place * to.stride[2],
                   to.stride[1], to.stride[2]);
    });
  });
}
