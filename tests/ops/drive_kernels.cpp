// Runs the CPU kernels without torch, through the table that op.cpp calls, against direct sums in float64.
//
// For processors that torch is not installed on, or that are emulated: test_kernels_alone.py compiles and runs it. It
// lays memory out as op.cpp does, for each type and storage, over fixed and random shapes; every result begins as NaN,
// and scratch memory ends at a canary. Inputs are small multiples of powers of two, which every type holds, so that
// results differ by roundings alone, for which the bounds below are derived.
//
// Usage: drive_kernels [random shapes] [seed]. Prints the place of the instruction set in INSTRUCTION_SETS and the
// worst difference as a share of its bound; exits with 1 where one is above, 2 where the arguments are wrong.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch.h"

using namespace flowers_bench;

namespace {

// What a result of each storage is rounded by, as a share of it, and below normal numbers.
struct Precision {
  double relative, absolute;
};

Precision precision_of(Storage storage) {
  switch (storage) {
    case Storage::kFloat64: return {0x1p-53, 0};
    case Storage::kFloat32: return {0x1p-24, 0};
    case Storage::kBFloat16: return {0x1p-8, 0};
    case Storage::kFloat16: return {0x1p-11, 0x1p-25};
  }
  return {};
}

int64_t size_of(Storage storage) { return storage == Storage::kFloat64 ? 8 : storage == Storage::kFloat32 ? 4 : 2; }

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

double from_float16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double special = fraction ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  const double finite = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return (bits >> 15 ? -1 : 1) * (exponent == 31 ? special : finite);
}

// Takes a number that float16 holds as it is.
uint16_t to_float16(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7e00;
  if (std::isinf(value)) return sign | 0x7c00;
  if (value == 0) return sign;
  int exponent;
  const double significand = std::frexp(std::abs(value), &exponent);  // in [1/2, 1)
  return uint16_t(sign | (exponent + 14) << 10 | (int(significand * 2048) - 1024));
}

// Holds numbers as a tensor's storage has them.
struct Stored {
  Storage storage;
  std::vector<char> bytes;

  Stored(Storage storage, size_t count) : storage(storage), bytes(count * size_of(storage), char(0xff)) {}  // NaN
  Stored(Storage storage, const std::vector<double>& values) : Stored(storage, values.size()) {
    for (size_t i = 0; i < values.size(); ++i) set(i, values[i]);
  }
  void set(size_t i, double value) {
    char* const to = bytes.data() + i * size_of(storage);
    const float single = float(value);
    const uint16_t half = to_float16(value);
    if (storage == Storage::kFloat64) std::memcpy(to, &value, 8);
    if (storage == Storage::kFloat32) std::memcpy(to, &single, 4);
    if (storage == Storage::kFloat16) std::memcpy(to, &half, 2);
    if (storage == Storage::kBFloat16) std::memcpy(to, reinterpret_cast<const char*>(&single) + 2, 2);  // exact
  }
  double get(size_t i) const {
    const char* const from = bytes.data() + i * size_of(storage);
    double value;
    float single;
    uint16_t bits;
    std::memcpy(&bits, from, 2);
    if (storage == Storage::kFloat64) return std::memcpy(&value, from, 8), value;
    if (storage == Storage::kFloat32) return std::memcpy(&single, from, 4), single;
    if (storage == Storage::kFloat16) return from_float16(bits);
    return from_bfloat16(bits);
  }
};

// Which gradients are asked for.
struct Needs {
  bool input = true, offset = true, mask = true, weight = true, bias = true;
};

struct Case {
  Geometry g;
  bool bias, out_rows, weight_rows, share_weight;
  int64_t workers;
  Needs needs;
};

// Numbers of all tensors, in torch's contiguous order (N, C, H, W).
struct Tensors {
  std::vector<double> input, offset, mask, weight, bias, grad;
};
struct Results {
  std::vector<double> out, input, offset, mask, weight, bias;
};

// ---- The reference ----

int64_t entries(const Geometry& g) { return g.offset_groups * g.taps(); }

Results zeros(const Case& c) {
  const Geometry& g = c.g;
  const auto of = [](int64_t count) { return std::vector<double>(count); };
  const int64_t places = g.batch * g.positions();
  return {
      of(places * g.out_channels), of(g.batch * g.channels * g.height * g.width),         of(places * 2 * entries(g)),
      of(places * entries(g)),     of(g.out_channels * g.channels / g.groups * g.taps()), of(g.out_channels)};
}

// One of the four pixels around a point: where it lies, its weight, and how that changes with y and x.
struct Corner {
  int64_t pixel;
  double weight, slope_y, slope_x;
};

std::vector<Corner> corners_of(const Geometry& g, double y, double x) {
  std::vector<Corner> found;
  if (!(y > -1 && y < double(g.height) && x > -1 && x < double(g.width))) return found;
  const int64_t top = int64_t(std::floor(y)), left = int64_t(std::floor(x));
  for (int64_t row = top; row <= top + 1; ++row) {
    for (int64_t column = left; column <= left + 1; ++column) {
      if (row < 0 || row >= g.height || column < 0 || column >= g.width) continue;
      const double v = 1 - std::abs(y - double(row)), h = 1 - std::abs(x - double(column));
      found.push_back({row * g.width + column, v * h, (row > top ? 1 : -1) * h, (column > left ? 1 : -1) * v});
    }
  }
  return found;
}

// Adds what one channel's sample at one tap and position gives to all results. With `change` std::abs for all numbers,
// the sums of magnitudes that errors are measured by come out.
struct Direct {
  const Case& c;
  const Tensors& t;
  double (*change)(double);
  Results& r;

  void add(int64_t n, int64_t place, int64_t channel, int64_t tap) const {
    const Geometry& g = c.g;
    const int64_t offset_group = channel / (g.channels / g.offset_groups), entry = offset_group * g.taps() + tap;
    const int64_t plane = n * entries(g) + entry, P = g.positions();
    const double shift_y = t.offset[2 * plane * P + place], shift_x = t.offset[(2 * plane + 1) * P + place];
    const double y = double(place / g.out_width * g.stride_h - g.pad_h + tap / g.kernel_w * g.dilation_h) + shift_y;
    const double x = double(place % g.out_width * g.stride_w - g.pad_w + tap % g.kernel_w * g.dilation_w) + shift_x;
    const double mask = g.use_mask ? t.mask[plane * P + place] : 1;
    const double poison = std::isfinite(y) && std::isfinite(x) ? 0 : std::numeric_limits<double>::quiet_NaN();
    const int64_t image = (n * g.channels + channel) * g.height * g.width;
    double value = poison, by_y = poison, by_x = poison;
    const std::vector<Corner> corners = corners_of(g, y, x);
    for (const Corner& corner : corners) {
      const double pixel = change(t.input[image + corner.pixel]);
      value += corner.weight * pixel, by_y += change(corner.slope_y) * pixel, by_x += change(corner.slope_x) * pixel;
    }
    const int64_t inputs = g.channels / g.groups, outputs = g.out_channels / g.groups, group = channel / inputs;
    double gradient = 0;
    for (int64_t o = group * outputs; o < (group + 1) * outputs; ++o) {
      const int64_t w = (o * inputs + channel % inputs) * g.taps() + tap, at = (n * g.out_channels + o) * P + place;
      const double weight = change(t.weight[w]), grad = change(t.grad[at]);
      r.out[at] += weight * mask * value, r.weight[w] += grad * mask * value;
      gradient += grad * weight;
    }
    for (const Corner& corner : corners) r.input[image + corner.pixel] += gradient * mask * corner.weight;
    r.mask[plane * P + place] += gradient * value;
    r.offset[2 * plane * P + place] += gradient * mask * by_y;
    r.offset[(2 * plane + 1) * P + place] += gradient * mask * by_x;
  }

  void add_all() const {
    const Geometry& g = c.g;
    for (int64_t n = 0; n < g.batch; ++n) {
      for (int64_t place = 0; place < g.positions(); ++place) {
        for (int64_t channel = 0; channel < g.channels; ++channel) {
          for (int64_t tap = 0; tap < g.taps(); ++tap) add(n, place, channel, tap);
        }
        for (int64_t o = 0; o < g.out_channels; ++o) {
          const int64_t at = (n * g.out_channels + o) * g.positions() + place;
          r.bias[o] += change(t.grad[at]);
          if (c.bias) r.out[at] += change(t.bias[o]);
        }
      }
    }
  }
};

// ---- The kernels, as op.cpp calls them ----

// Memory that begins as NaN and ends at a canary.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) : size_(bytes), memory_(bytes + 2 * kEdge, char(0xff)) {
    std::memset(data() + size_, kCanary, 64);
  }
  char* data() {
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (kEdge - at % kEdge);
  }
  bool intact() {
    return std::all_of(data() + size_, data() + size_ + 64, [](char byte) { return byte == kCanary; });
  }

 private:
  static constexpr int64_t kEdge = 4096;
  static constexpr char kCanary = 0x5a;
  int64_t size_;
  std::vector<char> memory_;
};

void fail(const std::string& what) {
  std::printf("FAILED: %s\n", what.c_str());
  std::exit(1);
}

// Sees a tensor (N, C, positions) in contiguous order, or with channels last.
Strided view(Stored& of, int64_t channels, int64_t positions, bool rows = false) {
  if (rows) return {of.bytes.data(), {channels * positions, 1, channels}, of.storage};
  return {of.bytes.data(), {channels * positions, positions, 1}, of.storage};
}

// Brings contiguous numbers into channels-last order (`forth`), or back.
std::vector<double> turned(const std::vector<double>& from, int64_t channels, int64_t positions, bool forth) {
  std::vector<double> to(from.size());
  for (int64_t i = 0; i < int64_t(from.size()); ++i) {
    const int64_t n = i / (channels * positions), c = i / positions % channels, p = i % positions;
    const int64_t row = (n * positions + p) * channels + c;
    to[forth ? row : i] = from[forth ? i : row];
  }
  return to;
}

std::vector<double> numbers_of(const Stored& from) {
  std::vector<double> found(from.bytes.size() / size_of(from.storage));
  for (size_t i = 0; i < found.size(); ++i) found[i] = from.get(i);
  return found;
}

template <typename T>
struct Driver {
  typedef Sum<T> S;
  const Case& c;
  const Kernel<T>& kernel;
  Storage storage;
  Problem<T> q;
  Stored offset, mask, weight;
  std::vector<T> input, grad;
  std::vector<S> wide_input, bias;

  Driver(const Case& c, const Tensors& t, Storage storage)
      : c(c),
        kernel(kernel_for(T{})),
        storage(storage),
        offset(storage, t.offset),
        mask(storage, t.mask),
        weight(storage, c.weight_rows ? turned(t.weight, c.g.channels / c.g.groups, c.g.taps(), true) : t.weight) {
    const Geometry& g = c.g;
    q.g = g, q.panel = kernel.panel;
    q.offset = view(offset, 2 * entries(g), g.positions());
    if (g.use_mask) q.mask = view(mask, entries(g), g.positions());
    if (kernel.wide_pixels) {
      wide_input = rows_of<S>(t.input, g.channels, g.height * g.width);
      q.wide_input = wide_input.data();
    } else {
      input = rows_of<T>(t.input, g.channels, g.height * g.width);
      q.input = input.data();
    }
    grad = rows_of<T>(t.grad, g.out_channels, g.positions());
    q.grad = grad.data();
    Stored given(storage, t.bias);
    bias.resize(t.bias.size());
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = S(given.get(i));
    q.bias = c.bias ? bias.data() : nullptr;
  }

  // By the kernel, in two shares.
  template <typename R>
  std::vector<R> rows_of(const std::vector<double>& numbers, int64_t channels, int64_t positions) const {
    const Kernel<R>& kernel = kernel_for(R{});
    Stored given(storage, numbers);
    std::vector<R> rows(numbers.size());
    const int64_t all = c.g.batch * positions;
    const Strided from = view(given, channels, positions);
    kernel.to_rows(from, channels, positions, 0, all / 3, rows.data());
    kernel.to_rows(from, channels, positions, all / 3, all, rows.data());
    return rows;
  }

  Strided weight_view() {
    Strided found = view(weight, c.g.channels / c.g.groups, c.g.taps(), c.weight_rows);
    return found;
  }

  std::vector<double> forward() {
    const Geometry& g = c.g;
    Stored out(storage, size_t(g.batch * g.out_channels * g.positions()));
    Problem<T> p = q;
    p.out = view(out, g.out_channels, g.positions(), c.out_rows);
    p.unpacked = weight_view();
    const int64_t all = g.batch * g.positions(), units = kernel.forward_units(p);
    Guarded packed(p.weight_size() * sizeof(T));
    T* const to = reinterpret_cast<T*>(packed.data());
    if (!kernel.takes_unpacked(p, p.unpacked, all)) {
      kernel.pack_forward(p, p.unpacked, 0, units / 2, to);
      kernel.pack_forward(p, p.unpacked, units / 2, units, to);
      p.weight = to;
    }
    for (int64_t worker = 0; worker < c.workers; ++worker) {
      Guarded scratch(kernel.forward_scratch(p));
      kernel.forward(p, all * worker / c.workers, all * (worker + 1) / c.workers, scratch.data());
      if (!scratch.intact()) fail("a forward pass wrote behind its scratch memory");
    }
    if (!packed.intact()) fail("a weight was packed beyond its memory");
    const std::vector<double> found = numbers_of(out);
    return c.out_rows ? turned(found, g.out_channels, g.positions(), false) : found;
  }

  Results backward() {
    const Geometry& g = c.g;
    const int64_t all = g.batch * g.positions(), image = g.channels * g.height * g.width, w = c.workers;
    const Needs& needs = c.needs;
    Stored to_input(storage, g.batch * image), to_offset(storage, all * 2 * entries(g)),
        to_mask(storage, all * entries(g)), to_weight(storage, weight.bytes.size() / size_of(storage)),
        to_bias(storage, g.out_channels);
    Problem<T> p = q;
    const int64_t units = kernel.backward_units(p), weights = p.grad_weight_size();
    Guarded packed(p.weight_t_size() * sizeof(T));
    kernel.pack_backward(p, weight_view(), 0, units / 2, reinterpret_cast<T*>(packed.data()));
    kernel.pack_backward(p, weight_view(), units / 2, units, reinterpret_cast<T*>(packed.data()));
    if (!packed.intact()) fail("a weight was packed beyond its memory");
    p.weight_t = reinterpret_cast<const T*>(packed.data());
    std::vector<S> input_sum(g.batch * image), heads(w * image), weight_sum(w * weights), bias_sum(w * g.out_channels);
    if (needs.input) p.grad_input = input_sum.data();
    if (needs.offset) p.grad_offset = view(to_offset, 2 * entries(g), g.positions());
    if (needs.mask && g.use_mask) p.grad_mask = view(to_mask, entries(g), g.positions());
    const int64_t blocks = kernel.blocks(p);
    const auto run = [&](const BackwardRange<T>& r) {
      Guarded scratch(kernel.backward_scratch(p));
      kernel.backward(p, r, scratch.data());
      if (!scratch.intact()) fail("a backward pass wrote behind its scratch memory");
    };
    for (int64_t worker = 0; worker < w; ++worker) {
      BackwardRange<T> r;
      r.begin = all * worker / w, r.end = all * (worker + 1) / w, r.last_block = blocks;
      if (needs.weight && !c.share_weight) r.grad_weight = weight_sum.data() + worker * weights;
      if (needs.bias) r.grad_bias = bias_sum.data() + worker * g.out_channels;
      const bool inside = worker > 0 && r.begin % g.positions() != 0;
      if (needs.input && inside) r.head = heads.data() + worker * image;
      run(r);
      S* const whole = input_sum.data() + r.begin / g.positions() * image;
      for (int64_t i = 0; r.head && i < image; ++i) whole[i] += r.head[i];
    }
    // Where workers share one sum of the weight, each has some blocks of K at all positions.
    for (int64_t worker = 0; needs.weight && c.share_weight && worker < w; ++worker) {
      BackwardRange<T> r;
      r.end = all, r.first_block = blocks * worker / w, r.last_block = blocks * (worker + 1) / w;
      r.grad_weight = weight_sum.data(), r.columns = false;
      run(r);
    }
    for (int64_t i = g.out_channels; i < w * g.out_channels; ++i) bias_sum[i % g.out_channels] += bias_sum[i];
    kernel.from_rows(bias_sum.data(), g.out_channels, 1, 0, 1, {to_bias.bytes.data(), {0, 1, 0}, storage});
    const Strided inputs = view(to_input, g.channels, g.height * g.width);
    kernel.from_rows(input_sum.data(), g.channels, g.height * g.width, 0, g.batch * g.height * g.width, inputs);
    Strided weights_view = weight_view();
    weights_view.data = to_weight.bytes.data();
    kernel.unpack_weight(p, weight_sum.data(), c.share_weight ? 1 : w, 0, kernel.forward_units(p), weights_view);
    const std::vector<double> found = numbers_of(to_weight);
    return {{},
            numbers_of(to_input),
            numbers_of(to_offset),
            numbers_of(to_mask),
            c.weight_rows ? turned(found, g.channels / g.groups, g.taps(), false) : found,
            numbers_of(to_bias)};
  }
};

// ---- Comparison ----

double worst_of_all = 0;
int64_t compared = 0;

// Compares, where `sampled` is the share by which samples were rounded before they were multiplied.
void compare(const std::string& name, const std::vector<double>& found, const std::vector<double>& want,
             const std::vector<double>& magnitude, Precision precision, double sums) {
  if (found.size() != want.size()) fail(name + " has another size");
  for (size_t i = 0; i < want.size(); ++i, ++compared) {
    if (std::isnan(want[i]) && std::isnan(found[i])) continue;
    const double allowed = precision.relative * std::abs(want[i]) + precision.absolute + sums * magnitude[i];
    const double difference = std::abs(found[i] - want[i]), share = difference == 0 ? 0 : difference / allowed;
    if (!(share <= 1)) {
      char words[160];
      std::snprintf(words, sizeof(words), "[%zu] is %.9g, not %.9g: %.3g times what rounding explains", i, found[i],
                    want[i], share);
      fail(name + words);
    }
    worst_of_all = std::max(worst_of_all, share);
  }
}

// Runs one type with one storage. Sums of n products differ from exact ones by n roundings of magnitudes at most, a few
// more in samples; products of pairs round the samples to bfloat16 besides.
template <typename T>
void check(const Case& c, const Tensors& t, const Results& want, const Results& magnitude, Storage storage,
           const std::string& name) {
  const Geometry& g = c.g;
  const double unit = sizeof(Sum<T>) == 8 ? 0x1p-53 : 0x1p-24;
  const double sampled = sizeof(T) == 2 ? 1.01 * 0x1p-8 : 0;
  const auto sums = [&](int64_t terms) { return double(terms + 16) * unit; };
  const int64_t depth = g.taps() * g.channels / g.groups, outputs = g.out_channels / g.groups;
  const int64_t channels = g.channels / g.offset_groups;
  Driver<T> driver(c, t, storage);
  const Precision p = precision_of(storage);
  compare(name + " out", driver.forward(), want.out, magnitude.out, p, sums(depth) + sampled);
  const Results r = driver.backward();
  const int64_t places = g.batch * g.positions();
  if (c.needs.input)
    compare(name + " grad input", r.input, want.input, magnitude.input, p, sums(outputs + g.taps() * places));
  if (c.needs.offset)
    compare(name + " grad offset", r.offset, want.offset, magnitude.offset, p, sums(outputs + 4 * channels));
  if (c.needs.mask && g.use_mask)
    compare(name + " grad mask", r.mask, want.mask, magnitude.mask, p, sums(outputs + 4 * channels));
  if (c.needs.weight)
    compare(name + " grad weight", r.weight, want.weight, magnitude.weight, p, sums(places) + sampled);
  if (c.needs.bias) compare(name + " grad bias", r.bias, want.bias, magnitude.bias, p, sums(places));
}

// ---- Cases ----

std::mt19937_64 generator;

int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

std::vector<double> draw(int64_t count, int64_t low, int64_t high, double unit) {
  std::vector<double> found(count);
  for (double& value : found) value = double(between(low, high)) * unit;
  return found;
}

Case shape(int64_t batch, int64_t channels, int64_t outputs, int64_t height, int64_t width, int64_t kernel = 3,
           int64_t groups = 1, int64_t offset_groups = 1, bool mask = true) {
  Case c = {};
  Geometry& g = c.g;
  g.batch = batch, g.channels = channels, g.height = height, g.width = width, g.out_channels = outputs;
  g.kernel_h = g.kernel_w = kernel, g.pad_h = g.pad_w = kernel / 2;
  g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = 1;
  g.groups = groups, g.offset_groups = offset_groups, g.use_mask = mask;
  c.bias = mask, c.workers = 1;
  c.needs = Needs();
  return c;
}

void finish(Case& c) {
  Geometry& g = c.g;
  g.out_height = (g.height + 2 * g.pad_h - g.dilation_h * (g.kernel_h - 1) - 1) / g.stride_h + 1;
  g.out_width = (g.width + 2 * g.pad_w - g.dilation_w * (g.kernel_w - 1) - 1) / g.stride_w + 1;
}

std::vector<Case> fixed_shapes() {
  std::vector<Case> all = {
      shape(1, 64, 64, 7, 7),
      shape(2, 3, 5, 9, 8),
      shape(1, 128, 96, 6, 5),
      shape(2, 32, 32, 14, 13),
      shape(1, 256, 32, 4, 4),
      shape(1, 640, 32, 3, 3),
      shape(3, 1, 1, 5, 6),
      shape(1, 24, 24, 9, 9, 3, 24),
      shape(2, 64, 64, 5, 5, 3, 2),
      shape(1, 64, 32, 6, 6, 3, 1, 2),
      shape(1, 12, 18, 7, 5, 3, 3, 2),
      shape(1, 96, 64, 5, 5, 1),
      shape(1, 16, 8, 20, 21, 2, 1, 1, false),
      shape(1, 32, 32, 7, 7, 5),
      shape(1, 72, 7, 4, 9, 3, 1, 3),
  };
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].out_rows = i % 2, all[i].weight_rows = i % 3 == 1, all[i].workers = 1 + int64_t(i) % 3;
    all[i].share_weight = i % 4 == 3;
  }
  // Each gradient alone.
  for (int alone = 0; alone < 5; ++alone) {
    Case c = shape(2, 32, 32, 5, 6);
    c.needs = {alone == 0, alone == 1, alone == 2, alone == 3, alone == 4};
    all.push_back(c);
  }
  for (Case& c : all) finish(c);
  return all;
}

Case random_shape() {
  const int64_t groups = between(1, 3), vector = between(0, 2) ? 1 : 32, kernel = between(1, 3);
  const int64_t each = vector == 1 ? between(1, 40) : 32 * between(1, 2), outputs = vector == 1 ? between(1, 40) : 32;
  const int64_t offset_groups = groups * each % 2 == 0 && (vector == 1 || groups * each % 64 == 0) ? between(1, 2) : 1;
  Case c = shape(between(1, 3), groups * each, groups * outputs, between(3, 12), between(3, 12), kernel, groups,
                 offset_groups, between(0, 1));
  Geometry& g = c.g;
  g.kernel_w = between(1, 3), g.stride_h = between(1, 2), g.stride_w = between(1, 3), g.pad_h = between(0, 2);
  g.pad_w = between(0, 2), g.dilation_h = between(1, 2);
  g.pad_h = std::max(g.pad_h, g.dilation_h * (g.kernel_h - 1) / 2);
  c.out_rows = between(0, 1), c.weight_rows = between(0, 1), c.share_weight = between(0, 1), c.workers = between(1, 4);
  finish(c);
  return c;
}

Tensors numbers_for(const Case& c, bool wild) {
  const Geometry& g = c.g;
  const int64_t places = g.batch * g.positions();
  Tensors t;
  t.input = draw(g.batch * g.channels * g.height * g.width, -127, 127, 0x1p-5);
  t.weight = draw(g.out_channels * g.channels / g.groups * g.taps(), -127, 127, 0x1p-7);
  t.offset = draw(places * 2 * entries(g), -63, 63, 0x1p-4);
  t.mask = draw(places * entries(g), 0, 64, 0x1p-6);
  t.bias = draw(g.out_channels, -127, 127, 0x1p-5);
  t.grad = draw(places * g.out_channels, -127, 127, 0x1p-6);
  if (wild) {
    const double infinite = std::numeric_limits<double>::infinity();
    t.offset[3] = std::numeric_limits<double>::quiet_NaN(), t.offset[5] = infinite, t.offset[7] = -infinite;
    t.offset[9] = 0x1p15, t.offset[11] = -0x1p15;
  }
  return t;
}

void run(const Case& c, const std::string& name, bool wild = false) {
  const Tensors t = numbers_for(c, wild);
  Results want = zeros(c), magnitude = zeros(c);
  Direct{c, t, [](double v) { return v; }, want}.add_all();
  Direct{c, t, [](double v) { return std::abs(v); }, magnitude}.add_all();
  check<float>(c, t, want, magnitude, Storage::kFloat32, name + " float32");
  check<float>(c, t, want, magnitude, Storage::kFloat16, name + " float16");
  check<float>(c, t, want, magnitude, Storage::kBFloat16, name + " bfloat16, widened");
  check<double>(c, t, want, magnitude, Storage::kFloat64, name + " float64");
  if (multiplies_pairs(c.g)) check<BFloat16>(c, t, want, magnitude, Storage::kBFloat16, name + " bfloat16 in pairs");
}

}  // namespace

int main(int count, char** words) {
  const long random = count > 1 ? std::atol(words[1]) : 20, seed = count > 2 ? std::atol(words[2]) : 0;
  if (count > 3 || random < 0) {
    std::fprintf(stderr, "usage: drive_kernels [random shapes] [seed]\n");
    return 2;
  }
  generator.seed(uint64_t(seed));
  std::vector<Case> shapes = fixed_shapes();
  const size_t fixed = shapes.size();
  for (long i = 0; i < random; ++i) shapes.push_back(random_shape());
  int64_t pairs = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    run(shapes[i], (i < fixed ? "shape " : "random shape ") + std::to_string(i < fixed ? i : i - fixed));
    pairs += multiplies_pairs(shapes[i].g);
  }
  run(fixed_shapes()[3], "wild offsets", true);
  std::printf(
      "instruction set %lld: %zu shapes, %lld of them with bfloat16 in pairs; %lld numbers, the worst %.3f of its bound\n",
      static_cast<long long>(instruction_set()), shapes.size() + 1, static_cast<long long>(pairs),
      static_cast<long long>(compared), worst_of_all);
  return 0;
}
