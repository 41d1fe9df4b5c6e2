// Multiplies two tiles in shared memory: tensor cores for half and bfloat16, multiply-adds for the rest.
#pragma once

#include "tiles.cuh"

namespace flowers_bench {

// Computes result += left * right, each thread a square of 4 x 4 values, or, of a wide result, two of them 64 columns
// apart: as many loads of four as there are multiplications by 8.
template <typename T, int Columns, bool Transposed>
struct ThreadProduct {
  using A = Accumulator<T>;
  using S = Strides<T, Columns>;
  static constexpr int kEach = kTile / 16, kSquares = Columns / kTile;
  static constexpr int kAligned = kEach * sizeof(T) < 16 ? kEach * sizeof(T) : 16;
  A sum[kSquares][kEach][kEach];

  FB_DEVICE static int row(int thread) { return thread / 16 * kEach; }
  FB_DEVICE static int column(int thread, int square) { return square * kTile + thread % 16 * kEach; }

  FB_DEVICE void clear(int) {
    for (int square = 0; square < kSquares; ++square) {
      for (int i = 0; i < kEach; ++i) {
        for (int j = 0; j < kEach; ++j) sum[square][i][j] = A(0);
      }
    }
  }

  FB_DEVICE static void load(const T* from, A (&to)[kEach]) {
    from = static_cast<const T*>(__builtin_assume_aligned(from, kAligned));
    for (int i = 0; i < kEach; ++i) to[i] = widen(from[i]);
  }

  FB_DEVICE void add(const typename Tiles<T, Columns>::Factors& f, int thread) {
    for (int k = 0; k < kDepth<T>; k += kEach) {
      A left[kEach][kEach];  // [depth][row] if transposed, else [row][depth]
      for (int i = 0; i < kEach; ++i) {
        load(Transposed ? f.left + (k + i) * S::kLeftTransposed + row(thread)
                        : f.left + (row(thread) + i) * S::kLeft + k,
             left[i]);
      }
      for (int square = 0; square < kSquares; ++square) add(f, k, left, square, thread);
    }
  }

  FB_DEVICE void add(const typename Tiles<T, Columns>::Factors& f, int k, const A (&left)[kEach][kEach], int square,
                     int thread) {
    for (int at = 0; at < kEach; ++at) {
      A right[kEach];
      load(f.right + (k + at) * S::kRight + column(thread, square), right);
      for (int i = 0; i < kEach; ++i) {
        for (int j = 0; j < kEach; ++j) sum[square][i][j] += (Transposed ? left[at][i] : left[i][at]) * right[j];
      }
    }
  }

  FB_DEVICE void store(A* result, int thread) const {
    for (int square = 0; square < kSquares; ++square) {
      for (int i = 0; i < kEach; ++i) {
        A* const to = result + (row(thread) + i) * S::kResult + column(thread, square);
        for (int j = 0; j < kEach; ++j) to[j] = sum[square][i][j];
      }
    }
  }
};

// Computes the same by tensor cores: each of 8 warps has 32 columns, and 16 rows or, of a wide result, 32.
template <typename T, int Columns, bool Transposed>
struct WarpProduct {
  using S = Strides<T, Columns>;
  // Warps that share their rows.
  static constexpr int kAcross = Columns / 32;
  static constexpr int kRows = kTile * kAcross / (kThreads / kWarp) / 16, kColumns = 2;  // squares of 16 of each
  WarpSum sum[kRows][kColumns];

  FB_DEVICE static int row(int thread) { return thread / kWarp / kAcross * 16 * kRows; }
  FB_DEVICE static int column(int thread) { return thread / kWarp % kAcross * 16 * kColumns; }

  FB_DEVICE void clear(int thread) {
    if (!speaks_for_warp(thread)) return;
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) sum[i][j].clear();
    }
  }

  FB_DEVICE void add(const typename Tiles<T, Columns>::Factors& f, int thread) {
    if (!speaks_for_warp(thread)) return;
    for (int k = 0; k < kDepth<T>; k += 16) {
      WarpLeft<T, Transposed> left[kRows];
      for (int i = 0; i < kRows; ++i) {
        const int at = row(thread) + 16 * i;
        if constexpr (Transposed) {
          left[i].load(f.left + k * S::kLeftTransposed + at, S::kLeftTransposed);
        } else {
          left[i].load(f.left + at * S::kLeft + k, S::kLeft);
        }
      }
      for (int j = 0; j < kColumns; ++j) {
        WarpRight<T> right;
        right.load(f.right + k * S::kRight + column(thread) + 16 * j, S::kRight);
        for (int i = 0; i < kRows; ++i) multiply_add(left[i], right, sum[i][j]);
      }
    }
  }

  FB_DEVICE void store(float* result, int thread) const {
    if (!speaks_for_warp(thread)) return;
    for (int i = 0; i < kRows; ++i) {
      float* const to = result + (row(thread) + 16 * i) * S::kResult + column(thread);
      for (int j = 0; j < kColumns; ++j) sum[i][j].store(to + 16 * j, S::kResult);
    }
  }
};

template <typename T, int Columns, bool Transposed, bool TensorCores>
struct ProductOf {
  using type = ThreadProduct<T, Columns, Transposed>;
};
template <typename T, int Columns, bool Transposed>
struct ProductOf<T, Columns, Transposed, true> {
  using type = WarpProduct<T, Columns, Transposed>;
};
template <typename T, int Columns, bool Transposed>
using Product = typename ProductOf<T, Columns, Transposed, HasTensorCores<T>::value>::type;

// Holds what a thread carries from step to step. A step fetches `left` and `right`, then calls `step`.
template <typename T, int Columns, bool Wide, typename Left>
struct Work {
  Left left;
  Matrix<T, kDepth<T>, Columns, Strides<T, Columns>::kRight, Wide> right;
  Product<T, Columns, Left::kTransposed> product;

  // Multiplies what the step before has put, and puts what was fetched meanwhile.
  FB_DEVICE void step(Tiles<T, Columns>& s, int turn, int thread) {
    finish(s, turn, thread);
    left.put(s.factors[turn % 2].left, thread);
    right.put(s.factors[turn % 2].right, thread);
  }

  FB_DEVICE void finish(const Tiles<T, Columns>& s, int turns, int thread) {
    if (turns > 0) product.add(s.factors[(turns - 1) % 2], thread);
  }
};

// Writes the first rows and columns of a result, each value as `finished(value, column)`, to rows of `length` values.
template <int Columns, typename A, typename To, typename F>
FB_DEVICE void write_rows(const A* result, To* to, int64_t length, int rows, int columns, int thread,
                          const F& finished) {
  const int column = thread % Columns;
  if (column >= columns) return;
  for (int row = thread / Columns; row < rows; row += kThreads / Columns) {
    to[row * length + column] = finished(result[row * Strides<A, Columns>::kResult + column], column);
  }
}

template <int Columns, typename A>
FB_DEVICE void write_rows(const A* result, A* to, int64_t length, int rows, int columns, int thread) {
  write_rows<Columns>(result, to, length, rows, columns, thread, [](A value, int) { return value; });
}

}  // namespace flowers_bench
