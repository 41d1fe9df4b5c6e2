// Tensors, threads and memory of a pass: what op.cpp lays out for the kernels.
#pragma once

#include <algorithm>
#include <cstring>

#include "../arguments.h"
#include "dispatch.h"

namespace flowers_bench {
namespace {

// ---- Tensors ----

Storage storage_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Storage::kFloat32;
    case ScalarType::Double: return Storage::kFloat64;
    case ScalarType::BFloat16: return Storage::kBFloat16;
    case ScalarType::Half: return Storage::kFloat16;
    default: STD_TORCH_CHECK(false, "deform_conv2d: expected a floating-point tensor");
  }
  return Storage::kFloat32;
}

// Returns a (N, C, A, B) tensor whose last two axes can be walked as one: a copy where they cannot.
Tensor walkable(const Tensor& t) {
  const bool one = t.size(2) == 1 || t.stride(2) == t.size(3) * t.stride(3);
  return one || t.size(3) == 1 || t.numel() == 0 ? t : torch::stable::contiguous(t);
}

// Sees a walkable tensor as (N, C, positions).
Strided view(const Tensor& t) {
  // A last axis of size 1 may have any stride; positions then step along the axis before it.
  const int64_t step = t.size(3) == 1 ? t.stride(2) : t.stride(3);
  return {t.mutable_data_ptr(), {t.stride(0), t.stride(1), step}, storage_of(t)};
}

Tensor empty_as(const Tensor& like, std::initializer_list<int64_t> shape, bool channels_last = false) {
  using torch::headeronly::MemoryFormat;
  const std::vector<int64_t> sizes(shape);
  return torch::stable::empty(sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// Holds `count` values of T, in memory of torch's allocator, so that its profilers see it.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Tensor& like, int64_t count) {
    const std::vector<int64_t> sizes = {count * static_cast<int64_t>(sizeof(T))};
    tensor_ = torch::stable::empty(sizes, ScalarType::Byte, std::nullopt, like.device());
    data_ = static_cast<T*>(tensor_->mutable_data_ptr());
  }
  T* data() const { return data_; }

 private:
  std::optional<Tensor> tensor_;
  T* data_ = nullptr;
};

// ---- Threads ----

// Calls f(begin, end) for shares of [0, total), at least `least` each, in parallel; f must not depend on how it is cut.
template <typename F>
void share(int64_t total, int64_t least, const F& f) {
  torch::stable::parallel_for(0, total, least, f);
}

// Calls f(worker) for each of `workers`, in parallel.
template <typename F>
void each_worker(int64_t workers, const F& f) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) f(worker);
  });
}

template <typename T>
void zero_in_parallel(T* data, int64_t count) {
  share(count, 1 << 15, [&](int64_t begin, int64_t end) { std::memset(data + begin, 0, (end - begin) * sizeof(T)); });
}

// Chooses how many workers share so many positions: no more than fill their microkernels.
int64_t workers_for(int64_t positions) {
  const int64_t threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min(threads, positions / 12));
}

// ---- Preparation ----

inline ScalarType scalar_type_of(float) { return ScalarType::Float; }
inline ScalarType scalar_type_of(double) { return ScalarType::Double; }
inline ScalarType scalar_type_of(BFloat16) { return ScalarType::BFloat16; }

// Says whether a tensor (N, C, positions) already lies as dense rows of channels, of type T.
template <typename T>
bool is_rows(const Tensor& t) {
  return t.scalar_type() == scalar_type_of(T{}) &&
         (is_channels_last(t) || (t.is_contiguous() && (t.size(1) == 1 || t.size(2) * t.size(3) == 1)));
}

// Images [first, last) of a batch, which are worked on at once.
struct Images {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

// Gives a tensor (N, C, positions) as dense rows of T: itself if it lies so, else a copy of the images at hand. The
// copy has room for some images, in slots.
template <typename T>
class Rows {
 public:
  Rows(const Tensor& t, int64_t slots) : held_(is_rows<T>(t) ? t : walkable(t)), from_(view(held_)) {
    channels_ = t.size(1), positions_ = t.size(2) * t.size(3);
    if (!is_rows<T>(t)) copy_ = Buffer<T>(t, slots * channels_ * positions_);
  }

  // Returns where the rows of image 0 would begin, seen from image `first`, which is in slot `slot` if copied.
  const T* rows(int64_t first, int64_t slot) const {
    return copy_.data() ? copied(first, slot) : static_cast<const T*>(held_.const_data_ptr());
  }

  // Copies one of `shares` equal shares of the images' positions, if need be, to slots from `slot` on.
  void load(const Images& images, int64_t slot, int64_t share, int64_t shares) const {
    if (!copy_.data()) return;
    const int64_t skipped = images.first * positions_, total = images.count() * positions_;
    kernel_for(T{}).to_rows(from_, channels_, positions_, skipped + total * share / shares,
                            skipped + total * (share + 1) / shares, copied(images.first, slot));
  }

  const T* load_in_parallel(const Images& images) const {
    const int64_t worthwhile = images.count() * positions_ / 256, threads = torch::stable::get_num_threads();
    const int64_t shares = std::max<int64_t>(1, std::min(threads, worthwhile));
    if (copy_.data()) each_worker(shares, [&](int64_t worker) { load(images, 0, worker, shares); });
    return rows(images.first, 0);
  }

 private:
  T* copied(int64_t first, int64_t slot) const { return copy_.data() + (slot - first) * positions_ * channels_; }

  Tensor held_;
  Strided from_;
  int64_t channels_, positions_;
  Buffer<T> copy_;
};

// Gives a problem its pixels, as rows of T or, where the kernel wants them wide, of what T is summed in.
template <typename T>
class Pixels {
 public:
  Pixels(const Tensor& t, int64_t slots) {
    if (kernel_for(T{}).wide_pixels) {
      wide_.emplace(t, slots);
    } else {
      rows_.emplace(t, slots);
    }
  }

  // Says whether a tensor lies so already.
  static bool lie_in(const Tensor& t) { return kernel_for(T{}).wide_pixels ? is_rows<Sum<T>>(t) : is_rows<T>(t); }
  // Returns the bytes of one number of a pixel.
  static int64_t bytes() { return kernel_for(T{}).wide_pixels ? sizeof(Sum<T>) : sizeof(T); }

  // These are of Rows, whose rows they give to `q`.
  void load(const Images& images, int64_t slot, int64_t share, int64_t shares) const {
    if (wide_) return wide_->load(images, slot, share, shares);
    rows_->load(images, slot, share, shares);
  }
  void give(Problem<T>& q, int64_t first, int64_t slot) const {
    if (wide_) q.wide_input = wide_->rows(first, slot);
    if (rows_) q.input = rows_->rows(first, slot);
  }
  void load_in_parallel(Problem<T>& q, const Images& images) const {
    if (wide_) q.wide_input = wide_->load_in_parallel(images);
    if (rows_) q.input = rows_->load_in_parallel(images);
  }

 private:
  std::optional<Rows<T>> rows_;
  std::optional<Rows<Sum<T>>> wide_;
};

// Holds the sum of the input's gradient in dense rows of T: in place where its memory is so, else beside it.
template <typename T>
class RowsOut {
 public:
  RowsOut(const Tensor& result, int64_t images_at_once) : result_(result), to_(view(result)) {
    channels_ = result.size(1), positions_ = result.size(2) * result.size(3);
    if (!is_rows<T>(result)) beside_ = Buffer<T>(result, images_at_once * channels_ * positions_);
  }

  // Zeroes the rows of `images`, and returns where those of image 0 would begin.
  T* start(const Images& images) const {
    const int64_t image = positions_ * channels_;
    T* const all = beside_.data() ? beside_.data() - images.first * image : static_cast<T*>(result_.mutable_data_ptr());
    zero_in_parallel(all + images.first * image, images.count() * image);
    return all;
  }

  void finish(const Images& images) const {
    if (!beside_.data()) return;
    const T* const from = beside_.data() - images.first * positions_ * channels_;
    share(images.count() * positions_, 256, [&](int64_t begin, int64_t end) {
      const int64_t skipped = images.first * positions_;
      kernel_for(T{}).from_rows(from, channels_, positions_, skipped + begin, skipped + end, to_);
    });
  }

 private:
  Tensor result_;
  Strided to_;
  int64_t channels_, positions_;
  Buffer<T> beside_;
};

// Chooses how many images to work on at once: all where nothing is copied or summed beside, else as many as keep what
// is small (fresh memory costs page faults) but every thread busy.
template <typename T>
int64_t images_at_once(const Geometry& g, std::initializer_list<const Tensor*> tensors) {
  bool copies = sizeof(T) != sizeof(Sum<T>);
  for (const Tensor* t : tensors) copies = copies || !is_rows<T>(*t);
  if (!copies) return g.batch;
  constexpr int64_t kBytes = 3 << 19, kPositions = 192;
  const int64_t image = g.height * g.width * g.channels * Pixels<T>::bytes();
  const int64_t busy = (kPositions * torch::stable::get_num_threads() + g.positions() - 1) / g.positions();
  return std::max<int64_t>(1, std::min(g.batch, std::max(kBytes / image, busy)));
}

// Calls f(images) for one chunk of the batch after the other.
template <typename F>
void for_each_chunk(int64_t batch, int64_t at_once, const F& f) {
  for (int64_t first = 0; first < batch; first += at_once) f(Images{first, std::min(first + at_once, batch)});
}

// Holds what every pass needs: the problem, and the tensors that its pointers point into.
template <typename T>
struct Prepared {
  Problem<T> q;
  Tensor offset, weight;
  std::optional<Tensor> mask;

  Prepared(const Call& c, const Geometry& g) : offset(walkable(c.offset)), weight(walkable(c.weight)) {
    q.g = g;
    q.panel = kernel_for(T{}).panel;
    q.offset = view(offset);
    if (c.mask) {
      mask = walkable(*c.mask);
      q.mask = view(*mask);
    }
  }
};

// Holds scratch memory for each worker, on pages of its own, so that no core fetches a line that another writes.
class Scratch {
 public:
  Scratch(const Tensor& like, int64_t workers, int64_t each)
      : each_((each + kPage - 1) / kPage * kPage), memory_(like, workers * each_ + kPage) {}
  char* of(int64_t worker) const {
    const uintptr_t misaligned = reinterpret_cast<uintptr_t>(memory_.data()) % kPage;
    return memory_.data() + (kPage - misaligned) + worker * each_;
  }

 private:
  static constexpr int64_t kPage = 4096;
  int64_t each_;
  Buffer<char> memory_;
};

}  // namespace
}  // namespace flowers_bench
