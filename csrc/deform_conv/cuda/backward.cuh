// Computes the gradients: of input, offset and mask; of weight and bias; the sum of their parts.
#pragma once

#include <cmath>

#include "products.cuh"

namespace flowers_bench {

// ---- Gradients of input, offset and mask ----

// Computes the columns' gradients and what follows from them. Each is a product of the output's gradient and the
// weight. From there, each channel's thread adds to the four pixels (the input's gradient), and each position's four
// threads sum over the channels (offset and mask). `Ordered` says who adds to the input:
// - false: a block has 64 positions, one tap, all channels of an offset group; blocks meet in atomics. Offsets and
//   masks belong to one block alone and are summed in a fixed order.
// - true: a block has 64 channels of some rows of an image. It goes through all positions and taps in their order,
//   skips tiles that sample elsewhere, and has each pixel of a channel in the hands of one thread: nobody else adds to
//   it. Only the input's gradient.
template <typename T, bool Wide, bool Ordered>
struct BackwardColumns {
  using A = Accumulator<T>;
  using Params = Plan<T>;
  using S = Strides<T, kTile>;
  using Shared = Tiles<T>;
  static constexpr int kResident = kResidentProducts<T>;
  struct Registers : Work<T, kTile, Wide, Matrix<T, kTile, kDepth<T>, S::kLeft, Wide>> {
    A sum_y, sum_x, sum_mask;
  };
  using Crew = Team<BackwardColumns>;
  // Pixels of an image, counted row by row.
  struct Pixels {
    int32_t begin, end;
  };

  static Params plan(const Problem<T>& p) {
    const int64_t entries = ceil_div(p.total(), kTile) * p.g.taps() * p.g.offset_groups, each = p.g.batch * slices(p);
    if (!Ordered) return {p, slices(p), 1, entries, 1};
    // Taps sample some rows around their own: with fewer than four rows, blocks would mostly repeat each other's work.
    const int64_t bands = least(ceil_div(kManyBlocks, each > 0 ? each : 1), ceil_div(p.g.height, 4));
    return {p, slices(p), bands, each * bands, 1};
  }

  static FB_DEVICE void run(const Params& q, int64_t block, const Crew& team) {
    const Problem<T>& p = q.p;
    if constexpr (Ordered) {
      const int64_t image = block / (q.slices * q.tiles);
      const int64_t begin = image * p.g.positions(), end = begin + p.g.positions();
      const int rest = static_cast<int>(block - image * q.slices * q.tiles), bands = static_cast<int>(q.tiles);
      const int slice = rest / bands, band = rest - slice * bands, channel = slice_begin(p, slice);
      const auto pixel = [&](int64_t edge) { return static_cast<int32_t>(p.g.height * edge / bands * p.g.width); };
      const Pixels mine = {pixel(band), pixel(band + 1)};
      for (int tap = 0; tap < p.g.taps(); ++tap) {
        for (int64_t first = begin; first < end; first += kTile) {
          add_tap(p, first, end, tap, channel, slice_end(p, channel), mine, team);
        }
      }
    } else {
      const int64_t tile = block / (p.g.offset_groups * p.g.taps()), first = tile * kTile;
      const int rest = static_cast<int>(block - tile * p.g.offset_groups * p.g.taps());
      const int tap = rest / static_cast<int>(p.g.offset_groups), group = rest % static_cast<int>(p.g.offset_groups);
      const int channel = group * p.offset_channels;
      const Pixels all = {0, static_cast<int32_t>(p.g.height * p.g.width)};
      add_tap(p, first, p.total(), tap, channel, channel + p.offset_channels, all, team);
      if (p.grad_offset || p.grad_mask) finish(p, first, tap, group, team);
    }
  }

  // Adds what one tap gives at 64 positions: channels [channel, last) of one offset group, at this block's pixels.
  static FB_DEVICE void add_tap(const Problem<T>& p, int64_t first, int64_t end, int tap, int channel, int last,
                                const Pixels& mine, const Crew& team) {
    Shared& s = team.shared;
    const bool touched = team.any([&](int thread, Registers& r) {
      r.sum_y = r.sum_x = r.sum_mask = A(0);
      if (thread >= kTile) return false;
      Point<A> point = locate(p, place_of(p.g, first + thread, end), tap, channel / p.offset_channels);
      bool any = false;
      for (int corner = 0; corner < 4; ++corner) {
        const bool here = point.index[corner] >= mine.begin && point.index[corner] < mine.end;
        if (!here) point.index[corner] = -1;
        any = any || here;
      }
      s.points[thread] = point;
      return any;
    });
    if (!touched) return;
    for (int stop; channel < last; channel = stop) {
      stop = slice_end(p, channel);
      multiply(p, first, at_most(kTile, end - first), tap, channel, stop - channel, team);
      team.phase([&](int thread, Registers& r) {
        if (p.grad_input) scatter<Wide && !Ordered ? AtomicWidth<A>::value : 1>(p, s, channel, stop - channel, thread);
        if (!Ordered && (p.grad_offset || p.grad_mask)) sum_channels(p, s, channel, stop - channel, thread, r);
      });
    }
  }

  // Computes the columns' gradients into s.result[position][channel], of `count` channels from `channel` on.
  static FB_DEVICE void multiply(const Problem<T>& p, int64_t first, int positions, int tap, int channel, int count,
                                 const Crew& team) {
    Shared& s = team.shared;
    const int group = channel / p.group_channels, channels = p.group_channels, outputs = p.group_outputs;
    const T* grad = p.grad + first * p.g.out_channels + int64_t(group) * outputs;
    const T* weight = p.weight_t + (group * p.g.taps() + tap) * outputs * channels + channel - group * channels;
    team.phase([&](int thread, Registers& r) { r.product.clear(thread); });
    int turn = 0;
    for (int output = 0; output < outputs; output += kDepth<T>, ++turn) {
      team.phase([&](int thread, Registers& r) {
        r.left.fetch(grad, static_cast<int>(p.g.out_channels), positions, outputs - output, thread);
        r.right.fetch(weight, channels, outputs - output, count, thread);
        r.step(s, turn, thread);
      });
      grad += kDepth<T>, weight += kDepth<T> * int64_t(channels);
    }
    team.phase([&](int thread, Registers& r) { r.finish(s, turn, thread); });
    team.phase([&](int thread, Registers& r) { r.product.store(s.result, thread); });
  }

  // Adds them to the pixels. A warp's threads have neighbouring channels, `Width` each: their atomics to one pixel fill
  // whole sectors. Threads of one channel share the rows or, where the order counts, the pixels: each has every fourth
  // to itself.
  template <int Width>
  static FB_DEVICE void scatter(const Problem<T>& p, const Shared& s, int channel, int count, int thread) {
    constexpr int kAcross = kTile / Width, kShared = kThreads / kAcross;
    const int column = thread % kAcross * Width, mine = thread / kAcross;
    if (column >= count) return;
    for (int row = Ordered ? 0 : mine; row < kTile; row += Ordered ? 1 : kShared) {
      const Point<A>& point = s.points[row];
      for (int corner = 0; corner < 4; ++corner) {
        if (point.index[corner] < 0 || (Ordered && point.index[corner] % kShared != mine)) continue;
        A add[Width];
        for (int i = 0; i < Width; ++i) {
          add[i] = s.result[row * S::kResult + column + i] * point.scale * point.weight(corner);
        }
        atomic_add(p.grad_input + point.image + point.index[corner] * p.g.channels + channel + column, add);
      }
    }
  }

  // Sums over the channels what the gradients of offset and mask need.
  static FB_DEVICE void sum_channels(const Problem<T>& p, const Shared& s, int channel, int count, int thread,
                                     Registers& r) {
    constexpr int kCount = Pack<T>::kCount;
    const int row = thread / kWays;
    const Point<A>& point = s.points[row];
    const A* const result = s.result + row * S::kResult;
    for (int begin = thread % kWays * kCount; begin < count; begin += kWays * kCount) {
      for (int corner = 0; corner < 4; ++corner) {
        if (point.index[corner] < 0) continue;
        const int pixel = static_cast<int>(p.g.channels);
        const T* const from = row_of(p.input + point.image + (channel + begin), point.index[corner], pixel);
        A value[kCount], dot = A(0);
        widen_pack(load_pack<Wide>(from, count - begin), value);
        for (int i = 0; i < kCount; ++i) dot += i < count - begin ? result[begin + i] * value[i] : A(0);
        const A weight_x = point.weight_x[corner & 1], weight_y = point.weight_y[corner >> 1];
        r.sum_y += dot * (corner >> 1 ? weight_x : -weight_x);
        r.sum_x += dot * (corner & 1 ? weight_y : -weight_y);
        r.sum_mask += dot * weight_y * weight_x;
      }
    }
  }

  // Adds up the sums of each position's four threads, always in the same order, and writes them.
  static FB_DEVICE void finish(const Problem<T>& p, int64_t first, int tap, int group, const Crew& team) {
    A(*const sums)[3] = reinterpret_cast<A(*)[3]>(team.shared.result);
    team.phase([&](int thread, Registers& r) {
      sums[thread][0] = r.sum_y, sums[thread][1] = r.sum_x, sums[thread][2] = r.sum_mask;
    });
    team.phase([&](int thread, Registers&) {
      if (thread >= kTile) return;
      const Place place = place_of(p.g, first + thread, p.total());
      if (!place.exists) return;
      const Point<A>& point = team.shared.points[thread];
      A total[3] = {A(0), A(0), A(0)};
      for (int way = 0; way < kWays; ++way) {
        for (int i = 0; i < 3; ++i) total[i] += sums[thread * kWays + way][i];
      }
      for (int i = 0; i < 3; ++i) total[i] = point.finite ? total[i] * (i < 2 ? point.scale : A(1)) : A(NAN);
      const int64_t plane = (place.image * p.g.offset_groups + group) * p.g.taps() + tap, positions = p.g.positions();
      if (p.grad_offset) p.grad_offset[plane * 2 * positions + place.at] = narrowed<T>(total[0]);
      if (p.grad_offset) p.grad_offset[(plane * 2 + 1) * positions + place.at] = narrowed<T>(total[1]);
      if (p.grad_mask) p.grad_mask[plane * positions + place.at] = narrowed<T>(total[2]);
    });
  }
};

// ---- Gradients of weight and bias ----

// Chooses how many blocks share the positions: some 500 in all, none with less than 256 positions. Of shapes alone, so
// that a shape always sums in the same order.
FB_HD int64_t share_positions(int64_t total, int64_t blocks) {
  const int64_t most = ceil_div(total, 256), wanted = ceil_div(512, blocks);
  return most < 1 ? 1 : least(most, wanted);
}

// Computes the gradient of the weight. A block has 64 channels of a segment, `Columns` outputs of their weight group,
// one tap, a share of the positions.
template <typename T, int Columns, bool Wide>
struct BackwardWeight {
  using S = Strides<T, Columns>;
  using Params = Plan<T>;
  using Shared = Tiles<T, Columns>;
  static constexpr int kResident = kResidentProducts<T>;
  using Registers = Work<T, Columns, Wide, Samples<T, kDepth<T>, kTile, S::kLeftTransposed, Wide, true>>;

  static Params plan(const Problem<T>& p) {
    const int64_t tiles = ceil_div(p.group_outputs, Columns), blocks = tiles * p.g.taps() * slices(p);
    return {p, slices(p), tiles, blocks, share_positions(p.total(), blocks)};
  }

  static FB_DEVICE void run(const Params& q, int64_t block, const Team<BackwardWeight>& team) {
    const Problem<T>& p = q.p;
    const int64_t part = block / q.blocks;
    const int64_t share = ceil_div(p.total(), q.parts), end = least((part + 1) * share, p.total());
    const int rest = static_cast<int>(block - part * q.blocks), tiles = static_cast<int>(q.tiles);
    const int taps = static_cast<int>(p.g.taps()), tap = rest / tiles % taps, output = rest % tiles * Columns;
    const int channel = slice_begin(p, rest / (tiles * taps)), count = slice_end(p, channel) - channel;
    const int group = channel / p.group_channels, outputs = p.group_outputs;
    Shared& s = team.shared;
    team.phase([&](int thread, Registers& r) { r.product.clear(thread); });
    int turn = 0;
    for (int64_t located = part * share; located < end; located += kPoints<T>) {
      team.phase([&](int thread, Registers&) {
        if (thread >= kPoints<T>) return;
        s.points[thread] = locate(p, place_of(p.g, located + thread, end), tap, channel / p.offset_channels);
      });
      const int positions = at_most(kPoints<T>, end - located);
      const T* grad = p.grad + located * p.g.out_channels + int64_t(group) * outputs + output;
      for (int first = 0; first < positions; first += kDepth<T>, ++turn) {
        team.phase([&](int thread, Registers& r) {
          r.left.fetch(p, s.points + first, channel, count, thread);
          r.right.fetch(grad, static_cast<int>(p.g.out_channels), positions - first, outputs - output, thread);
          r.step(s, turn, thread);
        });
        grad += kDepth<T> * p.g.out_channels;
      }
    }
    team.phase([&](int thread, Registers& r) { r.finish(s, turn, thread); });
    team.phase([&](int thread, Registers& r) { r.product.store(s.result, thread); });
    team.phase([&](int thread, Registers&) {
      const int64_t row = (group * p.g.taps() + tap) * p.group_channels + channel - group * p.group_channels;
      Accumulator<T>* const to = p.parts + part * p.weight_size() + row * outputs + output;
      write_rows<Columns>(s.result, to, outputs, count, outputs - output, thread);
    });
  }
};

// Computes the gradient of the bias. A block has 64 outputs and a share of the positions.
template <typename T>
struct BackwardBias {
  using A = Accumulator<T>;
  using Params = Plan<T>;
  struct Shared {
    A sums[kThreads];
  };
  struct Registers {};
  static constexpr int kResident = 1;

  static Params plan(const Problem<T>& p) {
    const int64_t tiles = ceil_div(p.g.out_channels, kTile);
    return {p, 1, tiles, tiles, share_positions(p.total(), tiles)};
  }

  static FB_DEVICE void run(const Params& q, int64_t block, const Team<BackwardBias>& team) {
    const Problem<T>& p = q.p;
    const int64_t part = block / q.blocks, first = (block - part * q.blocks) * kTile;
    const int64_t share = ceil_div(p.total(), q.parts), end = least((part + 1) * share, p.total());
    team.phase([&](int thread, Registers&) {
      const int64_t o = first + thread % kTile;
      A sum = A(0);
      for (int64_t i = part * share + thread / kTile; i < end && o < p.g.out_channels; i += kWays) {
        sum += widen(p.grad[i * p.g.out_channels + o]);
      }
      team.shared.sums[thread] = sum;
    });
    team.phase([&](int thread, Registers&) {
      if (thread >= kTile || first + thread >= p.g.out_channels) return;
      A sum = A(0);
      for (int way = 0; way < kWays; ++way) sum += team.shared.sums[way * kTile + thread];
      p.parts[part * p.g.out_channels + first + thread] = sum;
    });
  }
};

// Adds the parts up in their order, from (groups, taps, channels, outputs) to (groups * outputs, channels, taps).
template <typename T>
struct AddParts {
  using A = Accumulator<T>;
  struct Params {
    const A* parts;
    int64_t count, groups, taps, channels, outputs;
    T* to;
    FB_HD int64_t size() const { return groups * taps * channels * outputs; }
  };
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 1;

  static int64_t blocks(const Params& p) { return ceil_div(p.size(), kThreads); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<AddParts>& team) {
    team.phase([&](int thread, Registers&) {
      const int64_t i = block * kThreads + thread;
      if (i >= p.size()) return;
      A sum = A(0);
      for (int64_t part = 0; part < p.count; ++part) sum += p.parts[part * p.size() + i];
      const int64_t output = i % p.outputs, channel = i / p.outputs % p.channels;
      const int64_t tap = i / (p.outputs * p.channels) % p.taps, group = i / (p.outputs * p.channels * p.taps);
      p.to[((group * p.outputs + output) * p.channels + channel) * p.taps + tap] = narrowed<T>(sum);
    });
  }
};

}  // namespace flowers_bench
