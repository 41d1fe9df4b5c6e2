// One kernel source for two worlds: nvcc makes a CUDA kernel of it, a host compiler runs it thread by thread.
//
// A kernel is a struct with a static `run(params, block, team)`. Everything that depends on the thread stands in
// phases, `team.phase([&](int thread, Registers& mine) {...})`, and a barrier follows each. On the device a phase is
// executed by the block's threads at once; on the host by a loop over them, each with registers of its own, so that
// no fibers are needed and a debugger or a sanitizer sees ordinary C++. What `run` does between phases must be the
// same for all threads of the block. `emulation::reversed` runs the threads backwards: a phase whose result depends
// on their order has a race. `team.step` is a phase without the barrier, for what reads nothing that
// another thread writes in a step; `team.lane_sum` adds up registers of neighbouring threads between two steps.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../geometry.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define FB_DEVICE __device__ __forceinline__
#define FB_PRAGMA(text) _Pragma(#text)
#define FB_UNROLL(times) FB_PRAGMA(unroll times)
#else
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstring>
#include <memory>
#define FB_DEVICE inline
#define FB_UNROLL(times)
#endif

namespace flowers_bench {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

#if defined(__CUDACC__)

// ---- Device ----

using Half = __half;
using BFloat16 = __nv_bfloat16;
using Stream = cudaStream_t;

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

// Adds 1 and returns what was there before: who comes when is not fixed, the last sum is.
FB_DEVICE int32_t count_up(int32_t* to) { return atomicAdd(to, 1); }

template <typename Kernel>
struct Team {
  typename Kernel::Shared& shared;
  typename Kernel::Registers& registers;

  template <typename F>
  FB_DEVICE void phase(const F& f) const {
    f(static_cast<int>(threadIdx.x), registers);
    __syncthreads();
  }

  template <typename F>
  FB_DEVICE void step(const F& f) const {
    f(static_cast<int>(threadIdx.x), registers);
  }

  // Sums `values(registers)`, an array, over each `lanes` neighbours (a power of two, at most a warp), in a fixed tree:
  // all of them get the same bits.
  template <int N, typename F>
  FB_DEVICE void lane_sum(int lanes, const F& values) const {
    float (&value)[N] = values(registers);
    for (int apart = lanes / 2; apart > 0; apart /= 2) {
#pragma unroll
      for (int i = 0; i < N; ++i) value[i] += __shfl_xor_sync(0xffffffffu, value[i], apart);
    }
  }

  // Runs a phase from which all threads learn whether it is true for any.
  template <typename F>
  FB_DEVICE bool any(const F& f) const {
    return __syncthreads_or(f(static_cast<int>(threadIdx.x), registers)) != 0;
  }
};

// Blocks that a multiprocessor can hold by its threads: 1,024 on Turing, more on all later ones.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kMostResident = 1024 / kThreads;
#else
constexpr int kMostResident = 1536 / kThreads;
#endif

template <typename Kernel>
__global__ void __launch_bounds__(kThreads, Kernel::kResident < kMostResident ? Kernel::kResident : kMostResident)
    run_blocks(typename Kernel::Params params, int64_t blocks) {
  __shared__ typename Kernel::Shared shared;
  typename Kernel::Registers registers;
  const Team<Kernel> team{shared, registers};
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) Kernel::run(params, block, team);
}

// Enqueues zeros; the caller asks for cudaGetLastError.
inline void fill_zero(void* to, int64_t bytes, Stream stream) {
  if (bytes > 0) cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), stream);
}

// Enqueues `blocks` blocks; the caller asks for cudaGetLastError.
template <typename Kernel>
void launch(const typename Kernel::Params& params, int64_t blocks, Stream stream) {
  if (blocks == 0) return;
  constexpr int64_t kLargestGrid = INT32_MAX;
  const auto grid = static_cast<unsigned>(blocks < kLargestGrid ? blocks : kLargestGrid);
  run_blocks<Kernel><<<grid, kThreads, 0, stream>>>(params, blocks);
}

#else

// ---- Host ----

using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;
struct Stream {};

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

inline int32_t count_up(int32_t* to) { return (*to)++; }

inline void fill_zero(void* to, int64_t bytes, Stream) { std::memset(to, 0, static_cast<size_t>(bytes)); }

namespace emulation {
inline bool reversed = false;
}

template <typename Kernel>
struct Team {
  typename Kernel::Shared& shared;
  typename Kernel::Registers* registers;

  template <typename F>
  void phase(const F& f) const {
    for (int i = 0; i < kThreads; ++i) {
      const int thread = emulation::reversed ? kThreads - 1 - i : i;
      f(thread, registers[thread]);
    }
  }

  template <typename F>
  void step(const F& f) const {
    phase(f);
  }

  // The device's tree: every thread adds what its partner had.
  template <int N, typename F>
  void lane_sum(int lanes, const F& values) const {
    for (int apart = lanes / 2; apart > 0; apart /= 2) {
      float before[kThreads][N];
      for (int thread = 0; thread < kThreads; ++thread) {
        for (int i = 0; i < N; ++i) before[thread][i] = values(registers[thread])[i];
      }
      for (int thread = 0; thread < kThreads; ++thread) {
        for (int i = 0; i < N; ++i) values(registers[thread])[i] += before[thread ^ apart][i];
      }
    }
  }

  template <typename F>
  FB_DEVICE bool any(const F& f) const {
    bool found = false;
    phase([&](int thread, typename Kernel::Registers& mine) { found = f(thread, mine) || found; });
    return found;
  }
};

template <typename Kernel>
void launch(const typename Kernel::Params& params, int64_t blocks, Stream) {
  using Shared = typename Kernel::Shared;
  using Registers = typename Kernel::Registers;
  const auto shared = std::make_unique<Shared>();
  const auto registers = std::make_unique<Registers[]>(kThreads);
  const Team<Kernel> team{*shared, registers.get()};
  for (int64_t i = 0; i < blocks; ++i) {
    // All ones is NaN in every type: a value that is read before it is written shows.
    std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(Shared));
    std::memset(static_cast<void*>(registers.get()), 0xff, kThreads * sizeof(Registers));
    Kernel::run(params, emulation::reversed ? blocks - 1 - i : i, team);
  }
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
