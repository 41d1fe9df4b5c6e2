// Multiplies matrices of bfloat16 with AMX: registers that hold a matrix each.
//
// Intel calls such a register a tile; in these files a tile is positions that are computed together, and a register
// here is "a square", of 16 rows of 64 bytes. One instruction multiplies two of them: 16 rows of 32 bfloat16 with 16
// rows of 16 pairs, into 16 x 16 floats. Squares 0 to 3 hold sums, two beside and two below each other; 4 and 5 what is
// on the left, 6 and 7 what is on the right.
//
// The instructions are written as assembly, which names what it reads and writes: GCC's functions for them do not
// say that they read memory, so that stores could move behind them.
#pragma once

#include "vectors.inl"

#if defined(FB_AMX)
namespace flowers_bench::FB_ISA {
namespace {

constexpr int64_t kSquare = 16;          // rows of a square, and sums in a row
constexpr int64_t kStrip = 2 * kSquare;  // rows, or columns, that a microkernel computes at once
constexpr int64_t kSquareDepth = 32;     // numbers in a row: what one instruction sums over
static_assert(kPanel<BFloat16> == kStrip && kRows == kStrip && kPairedChannels % kSquareDepth == 0);

// What LDTILECFG reads: Intel's manual, volume 1, section 18.3.
struct alignas(64) SquareShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Gives squares their shapes for strips of `height` rows, 1 to kStrip.
FB_INLINE void shape_squares(int64_t height) {
  SquareShapes shapes;
  const uint8_t upper = uint8_t(smaller(height, kSquare)), lower = uint8_t(height > kSquare ? height - kSquare : 1);
  const uint8_t rows[8] = {upper, upper, lower, lower, upper, lower, uint8_t(kSquare), uint8_t(kSquare)};
  for (int i = 0; i < 8; ++i) shapes.rows[i] = rows[i], shapes.row_bytes[i] = 64;
  asm volatile("ldtilecfg %0" ::"m"(shapes));
}

// Leaves the registers as they were found, empty: the system then has nothing to keep of them.
FB_INLINE void release_squares() { asm volatile("tilerelease" ::: "memory"); }

template <int kNumber>
FB_INLINE void zero_square() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kNumber));
}
// Loads rows that lie `stride` bytes apart.
template <int kNumber>
FB_INLINE void load_square(const void* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kNumber), "r"(from), "r"(stride) : "memory");
}
template <int kNumber>
FB_INLINE void store_square(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kNumber), "r"(to), "r"(stride) : "memory");
}
template <int kSum, int kLeft, int kRight>
FB_INLINE void multiply_squares() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

// Says where a factor of a product lies: the distance between its rows in bytes, and between what one instruction sums
// over and the next.
struct Side {
  const char* data;
  int64_t stride, step;

  FB_INLINE Side at(int64_t bytes) const { return {data + bytes, stride, step}; }
};

// Computes c = or += left x right, c a strip of one or two squares below each other and two beside each other.
template <bool kTall>
void micro_squares(int64_t steps, Side left, Side right, float* c, int64_t stride, bool add) {
  const int64_t below = kSquare * left.stride, bytes = stride * int64_t(sizeof(float));
  float* const lower = c + kSquare * stride;
  if (add) {
    load_square<0>(c, bytes), load_square<1>(c + kSquare, bytes);
    if constexpr (kTall) load_square<2>(lower, bytes), load_square<3>(lower + kSquare, bytes);
  } else {
    zero_square<0>(), zero_square<1>();
    if constexpr (kTall) zero_square<2>(), zero_square<3>();
  }
  for (int64_t i = 0; i < steps; ++i, left.data += left.step, right.data += right.step) {
    load_square<4>(left.data, left.stride), load_square<6>(right.data, right.stride);
    load_square<7>(right.data + 64, right.stride);
    multiply_squares<0, 4, 6>(), multiply_squares<1, 4, 7>();
    if constexpr (kTall) {
      load_square<5>(left.data + below, left.stride);
      multiply_squares<2, 5, 6>(), multiply_squares<3, 5, 7>();
    }
  }
  store_square<0>(c, bytes), store_square<1>(c + kSquare, bytes);
  if constexpr (kTall) store_square<2>(lower, bytes), store_square<3>(lower + kSquare, bytes);
}

// Computes c (rows, columns) = or += left x right, both columns and depth whole strips. `right_panel` is the distance
// between what is on the right of one strip's columns and of the next's.
FB_INLINE void product_of_squares(int64_t rows, int64_t columns, int64_t depth, const Side& left, const Side& right,
                                  int64_t right_panel, const RowsTo<float>& c, bool add) {
  const int64_t whole = rows / kStrip * kStrip, steps = depth / kSquareDepth;
  for (int64_t first = 0; first < rows; first = first < whole ? whole : rows) {
    const int64_t last = first < whole ? whole : rows, height = smaller(kStrip, last - first);
    shape_squares(height);
    for (int64_t j = 0; j < columns; j += kStrip) {
      const Side panel = right.at(j / kStrip * right_panel);
      for (int64_t i = first; i < last; i += kStrip) {
        float* const to = c.from(i, j).data;
        if (height > kSquare) {
          micro_squares<true>(steps, left.at(i * left.stride), panel, to, c.stride, add);
        } else {
          micro_squares<false>(steps, left.at(i * left.stride), panel, to, c.stride, add);
        }
      }
    }
  }
}

}  // namespace
}  // namespace flowers_bench::FB_ISA
#endif
