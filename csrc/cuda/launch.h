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

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define FB_DEVICE __device__ __forceinline__
#define FB_PRAGMA(text) _Pragma(#text)
#define FB_UNROLL(times) FB_PRAGMA(unroll times)
#else
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

using Stream = cudaStream_t;

// Adds 1 and returns what was there before: who comes when is not fixed, the last sum is.
FB_DEVICE int32_t count_up(int32_t* to) { return atomicAdd(to, 1); }

// Adds a whole number, which leaves the sum the same in any order.
FB_DEVICE void add_whole(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

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

  // Sums `values(registers)`, an array of N, over each `lanes` neighbours (a power of two, at most a warp), in a fixed
  // tree: all of them get the same bits.
  template <int N, typename F>
  FB_DEVICE void lane_sum(int lanes, const F& values) const {
    auto& value = values(registers);
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

struct Stream {};

inline int32_t count_up(int32_t* to) { return (*to)++; }
inline void add_whole(uint64_t* to, uint64_t value) { *to += value; }

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
      std::remove_reference_t<decltype(values(registers[0])[0])> before[kThreads][N];
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

}  // namespace flowers_bench
