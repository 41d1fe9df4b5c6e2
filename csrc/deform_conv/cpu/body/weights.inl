// Brings weights into the order in which the products read them, and their gradient back.
#pragma once

#include "transpose.inl"

namespace flowers_bench::FB_ISA {
namespace {

// Walks an output channel's weights in the order of memory, from one to the next: `at` is the distance in memory from
// the first, `k` the place in K.
struct WeightWalk {
  int64_t at = 0, k = 0;

  template <typename T>
  FB_INLINE WeightWalk(const Problem<T>& q, const Strided& weight) {
    const int64_t channels = q.group_channels(), taps = q.g.taps();
    const bool taps_inside = weight.stride[2] <= weight.stride[1];
    at_step_[0] = weight.stride[taps_inside ? 2 : 1], at_step_[1] = weight.stride[taps_inside ? 1 : 2];
    k_step_[0] = taps_inside ? channels : 1, k_step_[1] = taps_inside ? 1 : channels;
    length_ = taps_inside ? taps : channels;
  }
  // Says whether the weights lie one beside the other.
  FB_INLINE bool dense() const { return at_step_[0] == 1 && at_step_[1] == length_; }
  // Says whether they also lie in the order of K.
  FB_INLINE bool in_order() const { return dense() && k_step_[0] == 1; }
  FB_INLINE void step() {
    if (++inner_ == length_) inner_ = 0, ++outer_;
    at = inner_ * at_step_[0] + outer_ * at_step_[1], k = inner_ * k_step_[0] + outer_ * k_step_[1];
  }

 private:
  int64_t at_step_[2], k_step_[2], length_, inner_ = 0, outer_ = 0;
};

// Packs rows [k0, k1) of one panel of outputs, (K, kPanel): all of K, or any part of it where the weight lies in K's
// order. Dense weights are transposed by squares of vectors.
template <typename T>
void pack_panel(const Problem<T>& q, const Strided& weight, int64_t unit, int64_t k0, int64_t k1, T* to) {
  constexpr int64_t L = kLanes<T>;
  const int64_t panels = q.padded(q.width()) / kPanel<T>, row_stride = weight.stride[0], depth = k1 - k0;
  const int64_t first = unit % panels * kPanel<T>, used = smaller(kPanel<T>, q.width() - first);
  with_storage(weight.storage, T{}, [&](auto* kind) {
    const auto* from = static_cast<decltype(kind)>(weight.data) + (unit / panels * q.width() + first) * row_stride + k0;
    // What to fetch meanwhile, more rows lying side by side than the hardware follows: further on in them, or, of a
    // part of K, the same part of the next panel.
    const int64_t next = depth == q.depth() ? 256 / int64_t(sizeof(*kind)) : kPanel<T> * row_stride;
    WeightWalk walk(q, weight);
    int64_t done = 0;
    for (; walk.dense() && used == kPanel<T> && done + L <= depth; done += L) {
      Vector<Sum<T>> squares[2][L];
      for (int64_t i = 0; i < kPanel<T>; ++i) {
        __builtin_prefetch(from + i * row_stride + done + next);
        squares[i / L][i % L] = load_widened<Sum<T>>(from + i * row_stride + done);
      }
      transpose<Sum<T>>(squares[0]), transpose<Sum<T>>(squares[1]);
      for (int64_t i = 0; i < L; ++i, walk.step()) {
        store_in_panel(to, walk.k, 0, squares[0][i]), store_in_panel(to, walk.k, L, squares[1][i]);
      }
    }
    for (; done < depth; ++done, walk.step()) {
      T* row = to + in_panel<T>(walk.k, 0);
      for (int64_t o = 0; o < used; ++o) narrow(widen(from[o * row_stride + walk.at]), row + o * kFactor<T>);
      for (int64_t o = used; o < kPanel<T>; ++o) row[o * kFactor<T>] = T{};
    }
  });
}

// Counts the units of pack_forward: panels of outputs.
template <typename T>
int64_t forward_units(const Problem<T>& q) {
  return q.depthwise() ? 1 : q.g.groups * q.padded(q.width()) / kPanel<T>;
}

// Packs the weight of a depthwise convolution as [tap][channel].
template <typename T>
void pack_depthwise(const Problem<T>& q, const Strided& weight, T* packed) {
  with_storage(weight.storage, T{}, [&](auto* kind) {
    const auto* from = static_cast<decltype(kind)>(weight.data);
    for (int64_t c = 0; c < q.g.channels; ++c) {
      for (int64_t t = 0; t < q.g.taps(); ++t) {
        narrow(widen(from[c * weight.stride[0] + t * weight.stride[2]]), packed + t * q.g.channels + c);
      }
    }
  });
}

// Packs the weight as [group][panel of outputs][K][kPanel], panels [begin, end).
template <typename T>
void pack_forward(const Problem<T>& q, const Strided& weight, int64_t begin, int64_t end, T* packed) {
  if (q.depthwise()) return pack_depthwise(q, weight, packed);
  for (int64_t unit = begin; unit < end; ++unit) {
    pack_panel(q, weight, unit, 0, q.depth(), packed + unit * q.depth() * kPanel<T>);
  }
}

// Counts the units of pack_backward: panels of K; or, where channels fill whole panels, panels of channels with all
// their taps, so that memory is read once.
template <typename T>
int64_t backward_units(const Problem<T>& q) {
  if (q.depthwise()) return 1;
  if (q.group_channels() % kPanel<T> == 0) return q.g.groups * q.group_channels() / kPanel<T>;
  return q.g.groups * q.padded(q.depth()) / kPanel<T>;
}

// Packs the weight as [group][panel of K][output][kPanel], units [begin, end).
template <typename T>
void pack_backward(const Problem<T>& q, const Strided& weight, int64_t begin, int64_t end, T* packed) {
  if (q.depthwise()) return pack_depthwise(q, weight, packed);
  const int64_t channels = q.group_channels(), width = q.width(), taps = q.g.taps();
  const bool whole = channels % kPanel<T> == 0;
  const int64_t each = whole ? channels / kPanel<T> : q.padded(q.depth()) / kPanel<T>;
  with_storage(weight.storage, T{}, [&](auto* kind) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t group = unit / each, panel = unit % each;
      const auto* from = static_cast<decltype(kind)>(weight.data) + group * width * weight.stride[0];
      T* to = packed + group * width * q.padded(q.depth());
      for (int64_t o = 0; o < width; ++o, from += weight.stride[0]) {
        for (int64_t t = 0; t < (whole ? taps : 1); ++t) {
          T* row = to + (whole ? t * each + panel : panel) * width * kPanel<T> + in_panel<T>(o, 0);
          for (int64_t lane = 0; lane < kPanel<T>; ++lane) {
            const int64_t k = (whole ? t * channels : 0) + panel * kPanel<T> + lane;
            const int64_t c = whole ? panel * kPanel<T> + lane : k % channels, tap = whole ? t : k / channels;
            T& place = row[lane * kFactor<T>];
            place = T{};
            if (k < q.depth()) narrow(widen(from[c * weight.stride[1] + tap * weight.stride[2]]), &place);
          }
        }
      }
    }
  });
}

template <typename T>
void unpack_depthwise(const Problem<T>& q, const Sum<T>* buffers, int64_t parts, const Strided& weight) {
  with_storage(weight.storage, T{}, [&](auto* kind) {
    auto* to = static_cast<decltype(kind)>(weight.data);
    for (int64_t c = 0; c < q.g.channels; ++c) {
      for (int64_t t = 0; t < q.g.taps(); ++t) {
        Sum<T> sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += buffers[part * q.depth() + t * q.g.channels + c];
        narrow(sum, to + c * weight.stride[0] + t * weight.stride[2]);
      }
    }
  });
}

// Adds up `parts` buffers at one place.
template <typename T>
FB_INLINE Vector<T> sum_of_parts(const T* first, int64_t parts, int64_t distance) {
  Vector<T> sum = load(first);
  for (int64_t part = 1; part < parts; ++part) sum += load(first + part * distance);
  return sum;
}

#if defined(FB_AMX)

// Adds up the parts of the gradient of the weight, [output][K], outputs of panels [begin, end), and brings it into the
// weight's own order.
template <typename T>
void unpack_weight(const Problem<T>& q, const Sum<T>* buffers, int64_t parts, int64_t begin, int64_t end,
                   const Strided& weight) {
  const int64_t depth = q.depth();
  T* const to = static_cast<T*>(weight.data);
  for (int64_t o = begin * kPanel<T>; o < end * kPanel<T>; ++o) {
    const Sum<T>* const from = buffers + o * depth;
    T* const row = to + o * weight.stride[0];
    WeightWalk walk(q, weight);
    if (walk.in_order()) {
      for (int64_t k = 0; k < depth; k += kPanel<T>) {
        const auto sum = [&](int64_t at) { return sum_of_parts(from + at, parts, q.grad_weight_size()); };
        store_rounded(row + k, sum(k), sum(k + kLanes<T>));
      }
      continue;
    }
    for (int64_t done = 0; done < depth; ++done, walk.step()) {
      Sum<T> sum = from[walk.k];
      for (int64_t part = 1; part < parts; ++part) sum += from[walk.k + part * q.grad_weight_size()];
      narrow(sum, row + walk.at);
    }
  }
}

#else

// Adds up the parts of the gradient of the weight, panels [begin, end), and brings it into the weight's own order.
template <typename T>
void unpack_weight(const Problem<T>& q, const Sum<T>* buffers, int64_t parts, int64_t begin, int64_t end,
                   const Strided& weight) {
  if (q.depthwise()) return unpack_depthwise(q, buffers, parts, weight);
  constexpr int64_t L = kLanes<T>;
  const int64_t padded = q.padded(q.width()), panels = padded / kPanel<T>, row_stride = weight.stride[0];
  with_storage(weight.storage, T{}, [&](auto* kind) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % panels * kPanel<T>, used = smaller(kPanel<T>, q.width() - first);
      auto* to = static_cast<decltype(kind)>(weight.data) + (unit / panels * q.width() + first) * row_stride;
      const Sum<T>* from = buffers + unit / panels * q.depth() * padded + first;
      const auto summed = [&](int64_t k, int64_t lane) {
        return sum_of_parts(from + k * padded + lane, parts, q.grad_weight_size());
      };
      WeightWalk walk(q, weight);
      int64_t done = 0;
      for (; walk.dense() && used == kPanel<T> && done + L <= q.depth(); done += L) {
        Vector<Sum<T>> squares[2][L];
        for (int64_t i = 0; i < L; ++i, walk.step()) {
          squares[0][i] = summed(walk.k, 0), squares[1][i] = summed(walk.k, L);
        }
        transpose<Sum<T>>(squares[0]), transpose<Sum<T>>(squares[1]);
        for (int64_t i = 0; i < kPanel<T>; ++i)
          store_narrowed<Sum<T>>(to + i * row_stride + done, squares[i / L][i % L]);
      }
      for (; done < q.depth(); ++done, walk.step()) {
        Sum<T> sum[kPanel<T>];
        store(sum, summed(walk.k, 0)), store(sum + L, summed(walk.k, L));
        for (int64_t o = 0; o < used; ++o) narrow(sum[o], to + o * row_stride + walk.at);
      }
    }
  });
}

#endif

}  // namespace
}  // namespace flowers_bench::FB_ISA
