// The CPU operators: lay memory out, split the work over threads.
#include "memory.h"

namespace flowers_bench {
namespace {

// ---- Forward ----

// Converts the bias, if there is one, to T, in which it is added.
template <typename T>
Buffer<T> bias_of(const Call& c) {
  if (!c.bias) return {};
  const Buffer<T> bias(c.input, c.bias->size(0));
  const Strided from = {c.bias->mutable_data_ptr(), {0, c.bias->stride(0), 0}, storage_of(*c.bias)};
  kernel_for(T{}).to_rows(from, c.bias->size(0), 1, 0, 1, bias.data());
  return bias;
}

int64_t size_of(Storage storage) { return storage == Storage::kFloat64 ? 8 : storage == Storage::kFloat32 ? 4 : 2; }

// Returns how many outputs each worker has if they are divided: whole panels; the last worker has the rest too.
template <typename T>
int64_t outputs_each(const Problem<T>& q, int64_t workers) {
  return q.g.out_channels / q.panel / workers * q.panel;
}

// Says whether workers have so many outputs each that it matters little that each of them samples all positions.
template <typename T>
bool outputs_suffice(const Problem<T>& q, int64_t workers) {
  return workers == 1 || (q.g.groups == 1 && outputs_each(q, workers) >= 8 * q.panel);
}

// Takes from a problem with one weight group the part that computes outputs [begin, end), from the unpacked weight.
template <typename T>
Problem<T> outputs_of(Problem<T> q, int64_t begin, int64_t end) {
  const auto advance = [&](Strided& to, int axis) {
    to.data = static_cast<char*>(to.data) + begin * to.stride[axis] * size_of(to.storage);
  };
  advance(q.unpacked, 0), advance(q.out, 1);
  if (q.bias) q.bias += begin;
  q.g.out_channels = end - begin;
  return q;
}

// Packs one worker's share of the weight.
template <typename T>
void pack_share(const Problem<T>& q, int64_t worker, int64_t workers, T* packed) {
  const int64_t units = kernel_for(T{}).forward_units(q);
  const int64_t begin = units * worker / workers, end = units * (worker + 1) / workers;
  if (begin < end) kernel_for(T{}).pack_forward(q, q.unpacked, begin, end, packed);
}

// A schedule divides a forward pass among workers. There are three; `forward_as` chooses.

// Chooses how many of its `own` images a worker brings into rows at once: one, or as many small ones as fill a tile
// where pixels are widened, so that the weight is not read again for each of them.
template <typename T>
int64_t images_together(const Problem<T>& q, int64_t own) {
  constexpr int64_t kPositions = 384;
  if (!kernel_for(T{}).wide_pixels) return 1;
  return std::max<int64_t>(1,
                           std::min(own, (kPositions + q.g.positions() - 1) / std::max<int64_t>(1, q.g.positions())));
}

// Schedule 1: each worker has whole images of its own, and its share of the positions of those that are left. It brings
// an image into rows just before computing it, so that the rows are still in its cache, and waits for nobody.
template <typename T>
void forward_by_images(const Call& c, Problem<T> q, int64_t workers) {
  const Kernel<T>& kernel = kernel_for(T{});
  const int64_t positions = q.g.positions(), own = q.g.batch / workers;
  const Images left = {own * workers, q.g.batch};
  const int64_t together = images_together(q, own);
  // Slots for each worker's images, then for those that are left.
  const Pixels<T> input(c.input, workers * together + left.count());
  const Buffer<T> packed(c.input, q.weight_size());
  q.weight = packed.data();
  const Scratch scratch(c.input, workers, kernel.forward_scratch(q));
  each_worker(workers, [&](int64_t worker) {
    pack_share(q, worker, workers, packed.data());
    input.load(left, workers * together, worker, workers);
  });
  each_worker(workers, [&](int64_t worker) {
    Problem<T> mine = q;
    const int64_t last = own * (worker + 1);
    for (int64_t image = own * worker; image < last; image += together) {
      const Images some = {image, std::min(image + together, last)};
      input.load(some, worker * together, 0, 1);
      input.give(mine, image, worker * together);
      kernel.forward(mine, some.first * positions, some.last * positions, scratch.of(worker));
    }
    const int64_t begin = left.first * positions, total = left.count() * positions;
    input.give(mine, left.first, workers * together);
    kernel.forward(mine, begin + total * worker / workers, begin + total * (worker + 1) / workers, scratch.of(worker));
  });
}

// Schedule 2: each worker has an equal share of all positions.
template <typename T>
void forward_by_positions(const Call& c, Problem<T> q, int64_t workers) {
  const Kernel<T>& kernel = kernel_for(T{});
  const Images all = {0, q.g.batch};
  const int64_t total = q.g.batch * q.g.positions();
  const Pixels<T> input(c.input, all.count());
  const Buffer<T> packed(c.input, q.weight_size());
  q.weight = packed.data();
  const Scratch scratch(c.input, workers, kernel.forward_scratch(q));
  each_worker(workers, [&](int64_t worker) {
    pack_share(q, worker, workers, packed.data());
    input.load(all, 0, worker, workers);
  });
  input.give(q, 0, 0);
  each_worker(workers, [&](int64_t worker) {
    kernel.forward(q, total * worker / workers, total * (worker + 1) / workers, scratch.of(worker));
  });
}

// Schedule 3: each worker has a share of the output channels at all positions, which are one tile. The weight is taken
// as it lies: what is packed just before its only use stays in the first-level cache.
template <typename T>
void forward_by_outputs(const Call& c, Problem<T> q, int64_t workers) {
  const Kernel<T>& kernel = kernel_for(T{});
  const Images all = {0, q.g.batch};
  const int64_t total = q.g.batch * q.g.positions(), each = outputs_each(q, workers);
  const Pixels<T> input(c.input, all.count());
  each_worker(workers, [&](int64_t worker) { input.load(all, 0, worker, workers); });
  input.give(q, 0, 0);
  const auto share_of = [&](int64_t worker) {
    const bool last = worker + 1 == workers;
    return outputs_of(q, each * worker, last ? q.g.out_channels : each * (worker + 1));
  };
  // All shares but the last are equal.
  const int64_t bytes = std::max(kernel.forward_scratch(share_of(0)), kernel.forward_scratch(share_of(workers - 1)));
  const Scratch scratch(c.input, workers, bytes);
  each_worker(workers, [&](int64_t worker) { kernel.forward(share_of(worker), 0, total, scratch.of(worker)); });
}

template <typename T>
Tensor forward_as(const Call& c, const Geometry& g) {
  Tensor out = empty_as(c.input, {g.batch, g.out_channels, g.out_height, g.out_width}, is_channels_last(c.input));
  if (g.batch == 0) return out;
  Prepared<T> prepared(c, g);
  Problem<T>& q = prepared.q;
  q.out = view(out);
  q.unpacked = view(prepared.weight);
  const Buffer<Sum<T>> bias = bias_of<Sum<T>>(c);
  q.bias = bias.data();

  const int64_t total = g.batch * g.positions(), workers = workers_for(total);
  if (!Pixels<T>::lie_in(c.input) && g.batch >= workers) {
    // Images have to be brought into rows first. Who has done that had better compute them, from its own cache.
    forward_by_images(c, q, workers);
  } else if (kernel_for(T{}).takes_unpacked(q, q.unpacked, total) && outputs_suffice(q, workers)) {
    // So few positions use the weight once. To pack it all, to memory and back, would cost more than that use.
    forward_by_outputs(c, q, workers);
  } else {
    // Packing pays, and positions divide evenly whatever the batch.
    forward_by_positions(c, q, workers);
  }
  return out;
}

// ---- Backward ----

// Above this, threads do not sum a gradient of the weight each, but share one: samples are gathered a second time.
constexpr int64_t kPrivateWeightBytes = 8 << 20;

// Splits the images at hand: worker w owns positions [edge(w), edge(w + 1)).
template <typename T>
struct Split {
  int64_t begin, total, workers, blocks;
  bool share_weight;

  Split(const Problem<T>& q, const Images& images, int64_t workers, bool need_weight)
      : begin(images.first * q.g.positions()),
        total(images.count() * q.g.positions()),
        workers(workers),
        blocks(kernel_for(T{}).blocks(q)) {
    const int64_t bytes = workers * q.grad_weight_size() * static_cast<int64_t>(sizeof(Sum<T>));
    share_weight = need_weight && workers > 1 && blocks > 1 && bytes > kPrivateWeightBytes;
  }
  int64_t edge(int64_t worker) const { return begin + total * worker / workers; }
};

// Holds what the workers sum apart. It is added up in their order, so that a thread count always gives the same result.
template <typename T>
struct Sums {
  Buffer<Sum<T>> weight, bias, heads;
  int64_t weight_parts = 0;

  Sums(const Tensor& like, const Problem<T>& q, const Split<T>& split, const Needs& needs) {
    if (needs.weight) {
      weight_parts = split.share_weight ? 1 : split.workers;
      weight = Buffer<Sum<T>>(like, weight_parts * q.grad_weight_size());
      zero_in_parallel(weight.data(), weight_parts * q.grad_weight_size());
    }
    if (needs.bias) {
      bias = Buffer<Sum<T>>(like, split.workers * q.g.out_channels);
      std::memset(bias.data(), 0, split.workers * q.g.out_channels * sizeof(Sum<T>));
    }
    if (needs.input && split.workers > 1) heads = Buffer<Sum<T>>(like, (split.workers - 1) * image_size(q));
  }
  static int64_t image_size(const Problem<T>& q) { return q.g.height * q.g.width * q.g.channels; }
};

// Computes what all gradients need of the images at hand.
template <typename T>
void sweep(const Problem<T>& q, const Split<T>& split, const Sums<T>& sums, const Scratch& scratch) {
  const Kernel<T>& kernel = kernel_for(T{});
  const bool private_weight = sums.weight.data() && !split.share_weight;
  each_worker(split.workers, [&](int64_t worker) {
    BackwardRange<T> r;
    r.begin = split.edge(worker), r.end = split.edge(worker + 1);
    r.last_block = split.blocks;
    if (private_weight) r.grad_weight = sums.weight.data() + worker * q.grad_weight_size();
    if (sums.bias.data()) r.grad_bias = sums.bias.data() + worker * q.g.out_channels;
    if (sums.heads.data() && worker > 0 && r.begin % q.g.positions() != 0) {
      r.head = sums.heads.data() + (worker - 1) * Sums<T>::image_size(q);
      std::memset(r.head, 0, Sums<T>::image_size(q) * sizeof(Sum<T>));
    }
    kernel.backward(q, r, scratch.of(worker));
  });
  if (!split.share_weight) return;
  const int64_t sharers = std::min(split.workers, split.blocks);
  each_worker(sharers, [&](int64_t worker) {
    BackwardRange<T> r;
    r.begin = split.begin, r.end = split.begin + split.total;
    r.first_block = split.blocks * worker / sharers, r.last_block = split.blocks * (worker + 1) / sharers;
    r.grad_weight = sums.weight.data();
    r.columns = false;
    kernel.backward(q, r, scratch.of(worker));
  });
}

// Adds each worker's share of an image that an earlier worker began.
template <typename T>
void add_heads(const Problem<T>& q, const Split<T>& split, const Sums<T>& sums) {
  const int64_t size = Sums<T>::image_size(q);
  for (int64_t worker = 1; worker < split.workers; ++worker) {
    const int64_t begin = split.edge(worker);
    if (begin % q.g.positions() == 0) continue;
    Sum<T>* const to = q.grad_input + begin / q.g.positions() * size;
    const Sum<T>* const from = sums.heads.data() + (worker - 1) * size;
    share(size, 1 << 14, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) to[i] += from[i];
    });
  }
}

// Adds the workers' sums up, and writes the gradient of the bias.
template <typename T>
void write_bias(const Problem<T>& q, int64_t workers, const Sums<T>& sums, const Tensor& bias) {
  Sum<T>* const sum = sums.bias.data();
  for (int64_t worker = 1; worker < workers; ++worker) {
    for (int64_t o = 0; o < q.g.out_channels; ++o) sum[o] += sum[worker * q.g.out_channels + o];
  }
  const Strided to = {bias.mutable_data_ptr(), {0, 1, 0}, storage_of(bias)};
  kernel_for(T{}).from_rows(sum, q.g.out_channels, 1, 0, 1, to);
}

// Allocates a gradient. Where it is not asked for, that is an empty tensor, each its own since outputs must not alias.
Tensor gradient_like(const Tensor& like, bool needed, bool channels_last = false) {
  if (!needed) return empty_as(like, {0});
  return empty_as(like, {like.size(0), like.size(1), like.size(2), like.size(3)}, channels_last);
}

template <typename T>
Gradients backward_as(const Tensor& grad, const Call& c, const Geometry& g, const Needs& needs) {
  const Kernel<T>& kernel = kernel_for(T{});
  const Tensor input = gradient_like(c.input, needs.input, is_channels_last(c.input));
  const Tensor offset = gradient_like(c.offset, needs.offset);
  const Tensor weight = gradient_like(c.weight, needs.weight);
  const Tensor bias = empty_as(c.input, {needs.bias ? g.out_channels : 0});
  const Tensor mask = gradient_like(c.mask.value_or(c.input), needs.mask);

  Prepared<T> prepared(c, g);
  Problem<T>& q = prepared.q;
  if (needs.offset) q.grad_offset = view(offset);
  if (needs.mask) q.grad_mask = view(mask);
  Buffer<T> packed;
  if (needs.input || needs.offset || needs.mask) {
    packed = Buffer<T>(c.input, q.weight_t_size());
    const Strided from = view(prepared.weight);
    share(kernel.backward_units(q), 1,
          [&](int64_t begin, int64_t end) { kernel.pack_backward(q, from, begin, end, packed.data()); });
    q.weight_t = packed.data();
  }

  const int64_t at_once = images_at_once<T>(g, {&c.input, &grad}), workers = workers_for(at_once * g.positions());
  const Pixels<T> input_rows(c.input, at_once);
  const Rows<T> grad_rows(grad, at_once);
  std::optional<RowsOut<Sum<T>>> input_sum;
  if (needs.input) input_sum.emplace(input, at_once);
  const Sums<T> sums(c.input, q, Split<T>(q, {0, at_once}, workers, needs.weight), needs);
  const Scratch scratch(c.input, workers, kernel.backward_scratch(q));
  for_each_chunk(g.batch, at_once, [&](const Images& images) {
    const Split<T> split(q, images, workers, needs.weight);
    input_rows.load_in_parallel(q, images);
    q.grad = grad_rows.load_in_parallel(images);
    if (input_sum) q.grad_input = input_sum->start(images);
    sweep(q, split, sums, scratch);
    if (!input_sum) return;
    add_heads(q, split, sums);
    input_sum->finish(images);
  });

  if (needs.bias) write_bias(q, workers, sums, bias);
  if (needs.weight) {
    const Strided to = view(weight);
    share(kernel.forward_units(q), 1, [&](int64_t begin, int64_t end) {
      kernel.unpack_weight(q, sums.weight.data(), sums.weight_parts, begin, end, to);
    });
  }
  return {input, offset, weight, bias, mask};
}

// ---- Entry points ----

// Calls `f` with a value of the type that the call is computed in. Python asks each library for what it has.
template <typename F>
auto with_type(const Call& c, [[maybe_unused]] const Geometry& g, const F& f) {
  const bool is_double = c.input.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(is_double ? FB_HAS_DOUBLE : FB_HAS_FLOAT, "deform_conv2d: another library computes this type");
#if FB_HAS_DOUBLE
  if (is_double || !FB_HAS_FLOAT) return f(double{});
#endif
#if FB_HAS_FLOAT
  if (c.input.scalar_type() == ScalarType::BFloat16 && multiplies_pairs(g)) return f(BFloat16{});
  return f(float{});
#endif
}

Tensor forward(Tensor input, Tensor offset, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> mask,
               std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const Call c = {input, offset, weight, bias, mask, stride, padding, dilation};
  const Geometry g = geometry_of(c);
  return with_type(c, g, [&](auto type) { return forward_as<decltype(type)>(c, g); });
}

Gradients backward(Tensor grad, Tensor input, Tensor offset, Tensor weight, std::optional<Tensor> mask,
                   std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                   bool need_input, bool need_offset, bool need_weight, bool need_bias, bool need_mask) {
  const Call c = {input, offset, weight, std::nullopt, mask, stride, padding, dilation};
  const Geometry g = geometry_of(c);
  const Needs needs = {need_input, need_offset, need_weight, need_bias, need_mask};
  check_backward(grad, c, g, needs);
  return with_type(c, g, [&](auto type) { return backward_as<decltype(type)>(grad, c, g, needs); });
}

bool has_double() { return FB_HAS_DOUBLE; }

}  // namespace
}  // namespace flowers_bench

FB_LIBRARY_IMPL(CPU, m) {
  m.impl("forward", TORCH_BOX(&flowers_bench::forward));
  m.impl("backward", TORCH_BOX(&flowers_bench::backward));
}

FB_LIBRARY_IMPL(CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&flowers_bench::instruction_set));
  m.impl("has_double", TORCH_BOX(&flowers_bench::has_double));
}
