// Panels of the weight, packed for the forward product. A part of kernel_body.h,
// which includes it inside its namespace, once for each instruction set.

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
  // Whether the weights lie one beside the other.
  FB_INLINE bool dense() const { return at_step_[0] == 1 && at_step_[1] == length_; }
  // Whether they also lie in the order of K.
  FB_INLINE bool in_order() const { return dense() && k_step_[0] == 1; }
  FB_INLINE void step() {
    if (++inner_ == length_) inner_ = 0, ++outer_;
    at = inner_ * at_step_[0] + outer_ * at_step_[1], k = inner_ * k_step_[0] + outer_ * k_step_[1];
  }

 private:
  int64_t at_step_[2], k_step_[2], length_, inner_ = 0, outer_ = 0;
};

// Rows [k0, k1) of one panel of outputs, (K, kPanel); all of K, or any part of it where the weight lies in K's order.
// Dense weights are turned by squares of vectors.
template <typename T>
void pack_panel(const Problem<T>& q, const Strided& weight, int64_t unit, int64_t k0, int64_t k1, T* to) {
  constexpr int64_t L = kLanes<T>;
  const int64_t panels = q.padded(q.width()) / kPanel<T>, row_stride = weight.stride[0], depth = k1 - k0;
  const int64_t first = unit % panels * kPanel<T>, used = smaller(kPanel<T>, q.width() - first);
  with_storage(weight.storage, T(0), [&](auto* kind) {
    const auto* from = static_cast<decltype(kind)>(weight.data) + (unit / panels * q.width() + first) * row_stride + k0;
    // What to fetch meanwhile, more rows lying side by side than the hardware follows: further on in them, or, of a
    // part of K, the same part of the next panel.
    const int64_t next = depth == q.depth() ? 256 / int64_t(sizeof(*kind)) : kPanel<T> * row_stride;
    WeightWalk walk(q, weight);
    int64_t done = 0;
    for (; walk.dense() && used == kPanel<T> && done + L <= depth; done += L) {
      Vector<T> squares[2][L];
      for (int64_t i = 0; i < kPanel<T>; ++i) {
        __builtin_prefetch(from + i * row_stride + done + next);
        squares[i / L][i % L] = load_widened<T>(from + i * row_stride + done);
      }
      turn<T>(squares[0]), turn<T>(squares[1]);
      for (int64_t i = 0; i < L; ++i, walk.step()) {
        store(to + walk.k * kPanel<T>, squares[0][i]), store(to + walk.k * kPanel<T> + L, squares[1][i]);
      }
    }
    for (; done < depth; ++done, walk.step()) {
      T* row = to + walk.k * kPanel<T>;
      for (int64_t o = 0; o < used; ++o) row[o] = widen(from[o * row_stride + walk.at]);
      for (int64_t o = used; o < kPanel<T>; ++o) row[o] = T(0);
    }
  });
}
