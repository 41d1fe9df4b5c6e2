// Computes the output, and the sum of its parts.
#pragma once

#include "products.cuh"

namespace flowers_bench {

// Computes the output. A block has 64 positions of any images, `Columns` outputs of one weight group, all taps or,
// where blocks are few, some.
template <typename T, int Columns, bool Wide>
struct Forward {
  using A = Accumulator<T>;
  using S = Strides<T, Columns>;
  using Params = Plan<T>;
  using Shared = Tiles<T, Columns>;
  static constexpr int kResident = kResidentProducts<T>;
  struct Registers : Work<T, Columns, Wide, Samples<T, kTile, kDepth<T>, S::kLeft, Wide, false>> {
    Place place;
  };
  using Crew = Team<Forward>;

  // Parts follow from shapes alone, so that a shape always sums in the same order.
  static Params plan(const Problem<T>& p) {
    const int64_t tiles = ceil_div(p.group_outputs, Columns), blocks = ceil_div(p.total(), kTile) * p.g.groups * tiles;
    const int64_t room = blocks == 0 ? 1 : kManyBlocks / blocks;
    return {p, 1, tiles, blocks, room == 0 ? 1 : least(p.g.taps(), room)};
  }

  static FB_DEVICE void run(const Params& q, int64_t block, const Crew& team) {
    const Problem<T>& p = q.p;
    // Neighbouring blocks sample at the same places.
    const int64_t part = block / q.blocks, tile = block - part * q.blocks, column = tile % (q.tiles * p.g.groups);
    const int64_t first = tile / (q.tiles * p.g.groups) * kTile;
    const int group = static_cast<int>(column / q.tiles), output = static_cast<int>(column % q.tiles) * Columns;
    team.phase([&](int thread, Registers& r) {
      r.product.clear(thread);
      r.place = place_of(p.g, first + thread % kTile, p.total());
    });
    int turn = 0;
    const int end = static_cast<int>((part + 1) * p.g.taps() / q.parts);
    for (int tap = static_cast<int>(part * p.g.taps() / q.parts); tap < end; tap += kPoints<T> / kTile) {
      add_taps(p, group, output, tap, at_most(tap + kPoints<T> / kTile, end), turn, team);
    }
    team.phase([&](int thread, Registers& r) { r.finish(team.shared, turn, thread); });
    team.phase([&](int thread, Registers& r) { r.product.store(team.shared.result, thread); });
    team.phase([&](int thread, Registers& r) {
      const int outputs = at_most(Columns, p.group_outputs - output), positions = at_most(kTile, p.total() - first);
      const int64_t o = int64_t(group) * p.group_outputs + output;
      if (q.parts > 1) {
        A* const to = p.parts + (part * p.total() + first) * p.g.out_channels + o;
        write_rows<Columns>(team.shared.result, to, p.g.out_channels, positions, outputs, thread);
      } else {
        write(p, first, r.place, o, positions, outputs, team.shared.result, thread);
      }
    });
  }

  // Adds taps [first, end), whose points fit into shared memory together, of all channels of a weight group.
  static FB_DEVICE void add_taps(const Problem<T>& p, int group, int output, int first, int end, int& turn,
                                 const Crew& team) {
    Shared& s = team.shared;
    const int channels = p.group_channels, outputs = p.group_outputs;
    for (int segment = 0; segment < channels; segment += p.segment) {
      team.phase([&](int thread, Registers& r) {
        const int tap = first + thread / kTile;
        if (tap < end) s.points[thread] = locate(p, r.place, tap, (group * channels + segment) / p.offset_channels);
      });
      for (int tap = first; tap < end; ++tap) {
        const T* weight = p.weight + ((group * p.g.taps() + tap) * channels + segment) * outputs + output;
        for (int channel = 0; channel < p.segment; channel += kDepth<T>, ++turn) {
          team.phase([&](int thread, Registers& r) {
            r.left.fetch(p, s.points + (tap - first) * kTile, group * channels + segment + channel, p.segment - channel,
                         thread);
            r.right.fetch(weight, outputs, p.segment - channel, outputs - output, thread);
            r.step(s, turn, thread);
          });
          weight += kDepth<T> * int64_t(outputs);
        }
      }
    }
  }

  // Writes the output. Neighbouring threads write neighbouring values, whichever way it lies.
  static FB_DEVICE void write(const Problem<T>& p, int64_t first, const Place& place, int64_t o, int positions,
                              int outputs, const A* result, int thread) {
    const auto finished = [&](A value, int column) {
      return narrowed<T>(value + (p.bias ? widen(p.bias[o + column]) : A(0)));
    };
    if (p.out_rows) {
      T* const to = p.out + first * p.g.out_channels + o;
      write_rows<Columns>(result, to, p.g.out_channels, positions, outputs, thread, finished);
    } else if (thread % kTile < positions) {
      // `place` is that of row `thread % kTile`.
      T* const to = p.out + (place.image * p.g.out_channels + o) * p.g.positions() + place.at;
      for (int column = thread / kTile; column < outputs; column += kWays) {
        to[column * p.g.positions()] = finished(result[thread % kTile * S::kResult + column], column);
      }
    }
  }
};

// Adds the parts up in their order.
template <typename T>
struct AddTaps {
  using A = Accumulator<T>;
  struct Params {
    Problem<T> p;
    int64_t count;
    FB_HD int64_t size() const { return p.total() * p.g.out_channels; }
  };
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 1;

  static int64_t blocks(const Params& q) { return ceil_div(q.size(), kThreads); }

  static FB_DEVICE void run(const Params& q, int64_t block, const Team<AddTaps>& team) {
    team.phase([&](int thread, Registers&) {
      const Problem<T>& p = q.p;
      const int64_t i = block * kThreads + thread, outputs = p.g.out_channels;
      if (i >= q.size()) return;
      const int64_t position = i / outputs, o = i - position * outputs;
      A sum = p.bias ? widen(p.bias[o]) : A(0);
      for (int64_t part = 0; part < q.count; ++part) sum += p.parts[part * q.size() + i];
      const int64_t image = position / p.g.positions(), at = position - image * p.g.positions();
      p.out[p.out_rows ? i : (image * outputs + o) * p.g.positions() + at] = narrowed<T>(sum);
    });
  }
};

}  // namespace flowers_bench
