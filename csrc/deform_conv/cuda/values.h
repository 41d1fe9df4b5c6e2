// What the kernels compute with: types of numbers, packs of 128 bits, atomic additions, and products of tensor cores.
//
// On a host, the same in plain C++ (../../cuda/launch.h): loops take the place of tensor cores.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../cuda/launch.h"
#include "../geometry.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstring>
#endif

namespace flowers_bench {

#if defined(__CUDACC__)

// ---- Device ----

using Half = __half;
using BFloat16 = __nv_bfloat16;

// Converts by named functions, since torch's build flags take the implicit conversions away.
FB_DEVICE float widen(Half value) { return __half2float(value); }
FB_DEVICE float widen(BFloat16 value) { return __bfloat162float(value); }
FB_DEVICE void narrow(float value, Half& to) { to = __float2half(value); }
FB_DEVICE void narrow(float value, BFloat16& to) { to = __float2bfloat16(value); }

// Adds N neighbours, by one instruction where the device has one (Hopper and later: four floats, aligned).
template <int N, typename A>
FB_DEVICE void atomic_add(A* to, const A (&value)[N]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kVector = N == 4 && sizeof(A) == 4;
#else
  constexpr bool kVector = false;
#endif
  if constexpr (kVector) {
    atomicAdd(reinterpret_cast<float4*>(to), make_float4(value[0], value[1], value[2], value[3]));
  } else {
    for (int i = 0; i < N; ++i) atomicAdd(to + i, value[i]);
  }
}

#else

// ---- Host ----

using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;

inline float widen(Half value) { return static_cast<float>(value); }
inline float widen(BFloat16 value) { return static_cast<float>(value); }
inline void narrow(float value, Half& to) { to = Half(value); }
inline void narrow(float value, BFloat16& to) { to = BFloat16(value); }

template <int N, typename A>
void atomic_add(A* to, const A (&value)[N]) {
  for (int i = 0; i < N; ++i) to[i] += value[i];
  // The device would stop at an address that is not aligned.
  if (N > 1 && reinterpret_cast<uintptr_t>(to) % (N * sizeof(A)) != 0) to[0] = A(NAN);
}

#endif

FB_DEVICE float widen(float value) { return value; }
FB_DEVICE double widen(double value) { return value; }
FB_DEVICE void narrow(float value, float& to) { to = value; }
FB_DEVICE void narrow(double value, double& to) { to = value; }

template <typename T>
FB_DEVICE T narrowed(float value) {
  T result;
  narrow(value, result);
  return result;
}

template <typename T>
FB_DEVICE T narrowed(double value) {
  return static_cast<T>(value);
}

// What sums of T are kept in.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

// Says how many neighbours a thread adds to at once where they are aligned. Without an instruction for four, a warp's
// threads do better side by side.
template <typename A>
struct AtomicWidth {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  static constexpr int value = 1;
#else
  static constexpr int value = sizeof(A) == 4 ? 4 : 1;
#endif
};

// Holds 128 bits: the widest load that a thread can make.
template <typename T>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(T);
  uint32_t word[4];
};

// Loads at most kCount values from `from`, `count` if that is less, zeros after them. `Wide` promises an aligned
// address, and all values or none.
template <bool Wide, typename T>
FB_DEVICE Pack<T> load_pack(const T* from, int count) {
  Pack<T> pack = {};
  if constexpr (Wide) {
    if (count > 0) pack = *reinterpret_cast<const Pack<T>*>(from);
  } else {
    T value[Pack<T>::kCount] = {};
    for (int i = 0; i < Pack<T>::kCount; ++i) {
      if (i < count) value[i] = from[i];
    }
    __builtin_memcpy(pack.word, value, sizeof(pack.word));
  }
  return pack;
}

template <typename T>
FB_DEVICE void widen_pack(const Pack<T>& pack, Accumulator<T> (&to)[Pack<T>::kCount]) {
  T value[Pack<T>::kCount];
  __builtin_memcpy(value, pack.word, sizeof(value));
  for (int i = 0; i < Pack<T>::kCount; ++i) to[i] = widen(value[i]);
}

template <typename T>
FB_DEVICE Pack<T> narrowed_pack(const Accumulator<T> (&from)[Pack<T>::kCount]) {
  Pack<T> pack;
  T value[Pack<T>::kCount];
  for (int i = 0; i < Pack<T>::kCount; ++i) value[i] = narrowed<T>(from[i]);
  __builtin_memcpy(pack.word, value, sizeof(value));
  return pack;
}

// Stores to an aligned address. On the device by a type of CUDA's own: of ours, nvcc 13 makes four stores at times.
template <typename T>
FB_DEVICE void store_pack(T* to, const Pack<T>& pack) {
#if defined(__CUDACC__)
  *reinterpret_cast<uint4*>(to) = make_uint4(pack.word[0], pack.word[1], pack.word[2], pack.word[3]);
#else
  *reinterpret_cast<Pack<T>*>(to) = pack;
#endif
}

// ---- Tensor cores: 16x16x16 products that a warp computes together ----

#if defined(__CUDACC__)

// Says whether tensor cores multiply T. Turing's multiply half; bfloat16 came with Ampere.
template <typename T>
struct HasTensorCores {
  static constexpr bool value = false;
};
template <>
struct HasTensorCores<Half> {
  static constexpr bool value = true;
};
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
struct HasTensorCores<BFloat16> {
  static constexpr bool value = true;
};
#endif

// Says whether this thread issues what its warp does together.
FB_DEVICE bool speaks_for_warp(int) { return true; }

FB_DEVICE int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

// Loads four 8x8 squares of 16-bit values from shared memory; each group of eight lanes names the rows of one.
template <bool Transposed, typename T>
FB_DEVICE void load_squares(const T* row, uint32_t (&to)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address));
  }
}

// Computes sum (16 x 8) += a (16 x 16) * b (16 x 8), as the PTX manual lays them out among the lanes.
FB_DEVICE void multiply_squares(const uint32_t (&a)[4], const uint32_t* b, float (&sum)[4], Half) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int half = 0; half < 2; ++half) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}

FB_DEVICE void multiply_squares(const uint32_t (&a)[4], const uint32_t* b, float (&sum)[4], BFloat16) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

struct WarpSum {
  float at[2][4];  // of the left and the right eight columns
  FB_DEVICE void clear() {
    for (int i = 0; i < 8; ++i) at[i / 4][i % 4] = 0.0f;
  }
  FB_DEVICE void store(float* to, int stride) const {
    to += lane() / 4 * stride + lane() % 4 * 2;
    for (int i = 0; i < 8; ++i) to[i % 4 / 2 * 8 * stride + i / 4 * 8 + i % 2] = at[i / 4][i % 4];
  }
};

// Holds a left factor, loaded from [row][depth] or transposed.
template <typename T, bool Transposed>
struct WarpLeft {
  uint32_t square[4];  // top, bottom, each of the left depths, then of the right
  FB_DEVICE void load(const T* from, int stride) {
    const int depth = Transposed ? lane() % 8 + lane() / 16 * 8 : lane() / 16 * 8;
    const int row = Transposed ? lane() / 8 % 2 * 8 : lane() % 16;
    load_squares<Transposed>(from + (Transposed ? depth * stride + row : row * stride + depth), square);
  }
};

// Holds a right factor, loaded from [depth][column].
template <typename T>
struct WarpRight {
  uint32_t square[4];  // upper, lower depths, each of the left columns, then of the right
  FB_DEVICE void load(const T* from, int stride) {
    load_squares<true>(from + lane() % 16 * stride + lane() / 16 * 8, square);
  }
};

template <typename T, bool Transposed>
FB_DEVICE void multiply_add(const WarpLeft<T, Transposed>& left, const WarpRight<T>& right, WarpSum& sum) {
  multiply_squares(left.square, right.square, sum.at[0], T{});
  multiply_squares(left.square, right.square + 2, sum.at[1], T{});
}

#else

// The warp's first thread holds the whole fragment and does the work of all. FLOWERS_BENCH_TURING: as before Ampere.
template <typename T>
struct HasTensorCores {
#if defined(FLOWERS_BENCH_TURING)
  static constexpr bool value = std::is_same_v<T, Half>;
#else
  static constexpr bool value = sizeof(T) == 2;
#endif
};

inline bool speaks_for_warp(int thread) { return thread % kWarp == 0; }

struct WarpSum {
  float at[16][16];
  void clear() { std::memset(at, 0, sizeof(at)); }
  void store(float* to, int stride) const {
    for (int i = 0; i < 16; ++i) std::memcpy(to + i * stride, at[i], sizeof(at[i]));
  }
};

template <typename T, bool Transposed>
struct WarpTile {
  float at[16][16];
  void load(const T* from, int stride) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) at[i][j] = widen(Transposed ? from[j * stride + i] : from[i * stride + j]);
    }
  }
};
template <typename T, bool Transposed>
using WarpLeft = WarpTile<T, Transposed>;
template <typename T>
using WarpRight = WarpTile<T, false>;

template <typename Left, typename Right>
void multiply_add(const Left& left, const Right& right, WarpSum& sum) {
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 16; ++j) sum.at[i][j] += left.at[i][k] * right.at[k][j];
    }
  }
}

#endif

}  // namespace flowers_bench
