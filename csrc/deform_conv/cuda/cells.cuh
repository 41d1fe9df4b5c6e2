// The input's gradient without atomics: each pixel finds the samples that read it, in a fixed order.
//
// A sample belongs to the cell of its top-left pixel, of (height + 1) x (width + 1) cells; a pixel is read by the
// samples of the four cells around it. Cells are counted and filled by integer atomics, in whichever order threads
// come; then each cell's samples are brought into their own order. What is added up afterwards depends on that order
// alone, so that every run gives the same bits.
#pragma once

#include "columns.cuh"

namespace flowers_bench {

// Takes the i-th of a chunk's samples apart, [image][offset group][tap][position]: neighbouring threads have
// neighbouring offsets.
template <typename T>
struct Sampled {
  int32_t list, number;  // image and offset group; position times taps plus tap, of the image
  int32_t cell;          // -1 outside
  Spot spot;

  FB_DEVICE static Sampled of(const Chunk<T>& c, int32_t list, int32_t number) {
    const auto groups = static_cast<int32_t>(c.p.g.offset_groups), taps = static_cast<int32_t>(c.p.g.taps());
    const int32_t image = list / groups, group = list - image * groups, position = number / taps;
    const Place place = place_in(c, image * static_cast<int32_t>(c.p.g.positions()) + position);
    const Spot spot = spot_of(c.p, place, number - position * taps, group);
    const int32_t cell = (spot.row + 1) * static_cast<int32_t>(c.p.g.width + 1) + spot.column + 1;
    return {list, number, spot.inside ? cell : -1, spot};
  }

  FB_DEVICE static Sampled by_tap(const Chunk<T>& c, int32_t i) {
    const int32_t list = i / c.samples(), rest = i - list * c.samples();
    const auto positions = static_cast<int32_t>(c.p.g.positions()), taps = static_cast<int32_t>(c.p.g.taps());
    const int32_t tap = rest / positions;
    return of(c, list, (rest - tap * positions) * taps + tap);
  }

  FB_DEVICE int32_t* starts(const Chunk<T>& c) const { return c.starts + int64_t(list) * (c.cells() + 1); }
};

// Counts each cell's samples, and notes who came when.
template <typename T>
struct CountCells {
  using Params = Chunk<T>;
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 4;

  static int64_t blocks(const Params& c) { return ceil_div(c.all_samples(), kThreads); }

  static FB_DEVICE void run(const Params& c, int64_t block, const Team<CountCells>& team) {
    team.phase([&](int thread, Registers&) {
      const auto i = static_cast<int32_t>(block * kThreads) + thread;
      if (i >= c.all_samples()) return;
      const auto sample = Sampled<T>::by_tap(c, i);
      c.ranks[i] = sample.cell < 0 ? -1 : count_up(sample.starts(c) + sample.cell);
    });
  }
};

// Replaces counts by the places where cells begin: a block sums up one list, a thread 16 cells at a time.
template <typename T>
struct ScanCells {
  using Params = Chunk<T>;
  static constexpr int kEach = 16;
  struct Shared {
    int32_t sums[2][kThreads];
  };
  struct Registers {
    int32_t before;  // cells' samples in all that was scanned
  };
  static constexpr int kResident = 1;

  static int64_t blocks(const Params& c) { return c.lists(); }

  static FB_DEVICE void run(const Params& c, int64_t block, const Team<ScanCells>& team) {
    int32_t* const starts = c.starts + block * (c.cells() + 1);
    const int32_t count = c.cells() + 1;
    auto& sums = team.shared.sums;
    team.phase([](int, Registers& r) { r.before = 0; });
    for (int32_t first = 0; first < count; first += kThreads * kEach) {
      team.phase([&](int thread, Registers&) {
        int32_t sum = 0;
        for_mine(first, count, thread, [&](int32_t cell) { sum += starts[cell]; });
        sums[0][thread] = sum;
      });
      int turn = 0;
      for (int apart = 1; apart < kThreads; apart *= 2, turn ^= 1) {
        team.phase([&](int thread, Registers&) {
          sums[turn ^ 1][thread] = sums[turn][thread] + (thread >= apart ? sums[turn][thread - apart] : 0);
        });
      }
      team.phase([&](int thread, Registers& r) {
        int32_t sum = r.before + (thread > 0 ? sums[turn][thread - 1] : 0);
        for_mine(first, count, thread, [&](int32_t cell) {
          const int32_t own = starts[cell];
          starts[cell] = sum;
          sum += own;
        });
        r.before += sums[turn][kThreads - 1];
      });
    }
  }

  template <typename F>
  static FB_DEVICE void for_mine(int32_t first, int32_t count, int thread, const F& f) {
    const int32_t begin = first + thread * kEach;
    for (int32_t cell = begin; cell < begin + kEach && cell < count; ++cell) f(cell);
  }
};

// Puts samples where their cells are.
template <typename T>
struct FillCells {
  using Params = Chunk<T>;
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 4;

  static FB_DEVICE void run(const Params& c, int64_t block, const Team<FillCells>& team) {
    team.phase([&](int thread, Registers&) {
      const auto i = static_cast<int32_t>(block * kThreads) + thread;
      if (i >= c.all_samples() || c.ranks[i] < 0) return;
      const auto sample = Sampled<T>::by_tap(c, i);
      c.found[sample.list * c.samples() + sample.starts(c)[sample.cell] + c.ranks[i]] = sample.number;
    });
  }
};

// Brings each cell's samples into their order, and says where between its pixels each lies. A sample's place is the
// number of its cell's samples that come before it: cells have some 9 samples of a 3x3 kernel. All samples of a large
// image in one cell take long.
template <typename T>
struct SortCells {
  using Params = Chunk<T>;
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 4;

  static FB_DEVICE void run(const Params& c, int64_t block, const Team<SortCells>& team) {
    team.phase([&](int thread, Registers&) {
      const auto i = static_cast<int32_t>(block * kThreads) + thread;
      if (i >= c.all_samples()) return;
      const int32_t list = i / c.samples(), first = list * c.samples();
      if (i - first >= c.starts[int64_t(list) * (c.cells() + 1) + c.cells()]) return;
      const auto sample = Sampled<T>::of(c, list, c.found[i]);
      const int32_t begin = sample.starts(c)[sample.cell], end = sample.starts(c)[sample.cell + 1];
      int32_t place = begin;
      for (int32_t other = begin; other < end; ++other) place += c.found[first + other] < sample.number ? 1 : 0;
      c.entries[first + place] = {sample.number, sample.spot.y, sample.spot.x, sample.spot.scale};
    });
  }
};

// ---- Gather ----

// Says what a block of `Gather` has: some rows of 8 pixels of one image and offset group.
template <typename T>
struct GatherPlan {
  static constexpr int32_t kAcross = 8;
  Chunk<T> chunk;
  int32_t down, tiles_down, tiles_across;

  static GatherPlan of(const Chunk<T>& c) {
    // As many pixels as there are groups of lanes, 8 x 4 at least: neighbours share the columns that they read.
    const int32_t runs = kThreads / c.lanes, down = runs < 32 ? 4 : runs / kAcross;
    return {c, down, static_cast<int32_t>(ceil_div(c.p.g.height, down)),
            static_cast<int32_t>(ceil_div(c.p.g.width, kAcross))};
  }

  int64_t blocks() const { return int64_t(chunk.lists()) * tiles_down * tiles_across; }
};

// Computes the input's gradient from the columns'. Lanes share a pixel, each with its own channels; sums are float32
// and written once.
template <typename T>
struct Gather {
  using Params = GatherPlan<T>;
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 3;

  static FB_DEVICE void run(const Params& q, int64_t block, const Team<Gather>& team) {
    const Chunk<T>& c = q.chunk;
    const int32_t tiles = q.tiles_down * q.tiles_across;
    const auto list = static_cast<int32_t>(block / tiles), tile = static_cast<int32_t>(block - int64_t(list) * tiles);
    const int32_t top = tile / q.tiles_across * q.down, left = tile % q.tiles_across * Params::kAcross;
    team.phase([&](int thread, Registers&) {
      for (int32_t i = thread / c.lanes; i < q.down * Params::kAcross; i += kThreads / c.lanes) {
        const int32_t y = top + i / Params::kAcross, x = left + i % Params::kAcross;
        if (y < c.p.g.height && x < c.p.g.width) sum_pixel(c, list, y, x, thread % c.lanes);
      }
    });
  }

  static FB_DEVICE void sum_pixel(const Chunk<T>& c, int32_t list, int32_t y, int32_t x, int32_t lane) {
    constexpr int kCount = Pack<T>::kCount;
    const auto groups = static_cast<int32_t>(c.p.g.offset_groups), width = static_cast<int32_t>(c.p.g.width);
    const int32_t image = list / groups, group = list - image * groups;
    const int64_t pixel = (c.first + image) * c.p.g.height * width + y * width + x;
    for (int32_t pack = lane; pack < c.packs; pack += c.lanes) {
      const Slice<T> slice = slice_of(c, group, pack);
      float sum[kCount] = {};
      for (int32_t below = 0; below < 2; ++below) add_cells(c, slice, list, y, x, below, sum);
      store_pack(c.grad_input + pixel * c.p.g.channels + group * c.p.offset_channels + pack * kCount,
                 narrowed_pack<T>(sum));
    }
  }

  // Adds the samples of the two cells above the pixel, or below it, which lie behind each other in memory.
  static FB_DEVICE void add_cells(const Chunk<T>& c, const Slice<T>& slice, int32_t list, int32_t y, int32_t x,
                                  int32_t below, float (&sum)[Pack<T>::kCount]) {
    const int32_t image = list / static_cast<int32_t>(c.p.g.offset_groups);
    const int32_t cell = (y + below) * static_cast<int32_t>(c.p.g.width + 1) + x;
    const int32_t* const starts = c.starts + int64_t(list) * (c.cells() + 1) + cell;
    const int32_t begin = starts[0], right = starts[1], end = starts[2];
    const Entry* const entries = c.entries + list * c.samples();
    FB_UNROLL(4)
    for (int32_t i = begin; i < end; ++i) {
      const Entry entry = entries[i];
      const float weight_y = below ? 1.0f - entry.y : entry.y, weight_x = i < right ? entry.x : 1.0f - entry.x;
      const float weight = weight_y * weight_x * entry.scale;
      const Pack<T> gradient = load_pack<true>(slice.at(image * c.samples() + entry.sample), Pack<T>::kCount);
      float value[Pack<T>::kCount];
      widen_pack(gradient, value);
      for (int j = 0; j < Pack<T>::kCount; ++j) sum[j] += weight * value[j];
    }
  }
};

}  // namespace flowers_bench
