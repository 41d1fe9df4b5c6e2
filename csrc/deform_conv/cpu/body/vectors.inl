// Vectors, the types that tensors are stored in, and scratch memory.
#pragma once

#include "../kernel.h"

#if !defined(FB_ISA)  // read alone, by a tool or a test
#define FB_ISA generic
#endif

#define FB_INLINE inline __attribute__((always_inline))

namespace flowers_bench::FB_ISA {
namespace {

constexpr int64_t kVectorBytes = kInstructionSet.vector_bytes;
constexpr int kRows = kInstructionSet.rows;
constexpr bool kLargeCache = kInstructionSet.large_cache;

constexpr int64_t kMaxTile = kLargeCache ? 192 : 96;                 // positions
constexpr int64_t kSmallTile = kLargeCache ? 8 * kRows : 4 * kRows;  // of a forward pass with a small weight
constexpr int64_t kTileBytes = (kLargeCache ? 700 : 300) << 10;      // of a tile's buffers

// A vector of `Bytes` bytes. In memory, `Loose` ones begin at any element.
template <typename T, int64_t Bytes = kVectorBytes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(Bytes)));
  typedef T Loose __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};
template <typename T>
struct ScalarOf {
  typedef T Loose;
};
template <typename T>
using Vector = typename VectorOf<T>::Type;

#if defined(__x86_64__)
// Fails where the compiler has not taken FB_BEGIN_TARGET's features: vectors would be computed piece by piece.
static_assert(alignof(Vector<float>) == kVectorBytes);
#endif

template <typename T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);
// The columns of a product's result that a microkernel computes.
template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;
// The deepest block of a backward pass: a panel of the weight this deep fits the first-level cache (or fills it, where
// the second is large).
template <typename T>
constexpr int64_t kDepth = (kLargeCache ? 32768 : 16384) / (kPanel<T> * sizeof(T));
// The deepest block of a forward pass, and the deepest product: a panel comes from a large second-level cache in time,
// and nine taps of 64 channels are one block.
template <typename T>
constexpr int64_t kForwardDepth = kLargeCache ? kDepth<T> * 5 / 2 : kDepth<T>;

template <typename T>
FB_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::Loose*>(p);
}
template <typename T>
FB_INLINE void store(T* p, Vector<T> v) {
  *reinterpret_cast<typename VectorOf<T>::Loose*>(p) = v;
}

FB_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
FB_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
FB_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FB_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---- Storage types: what tensors hold, converted to and from the type that is computed in ----

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FB_INLINE float as_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
FB_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

FB_INLINE float widen(float v) { return v; }
FB_INLINE double widen(double v) { return v; }
FB_INLINE float widen(BFloat16 v) { return as_float(uint32_t(v.bits) << 16); }
FB_INLINE float widen(Float16 v) {
  // The exponent is rebased by a multiplication, which gets subnormals right; infinity and NaN need their own.
  const uint32_t magnitude = uint32_t(v.bits & 0x7fff) << 13;
  const uint32_t rebased = as_bits(as_float(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u | magnitude : rebased;
  return as_float(special | uint32_t(v.bits & 0x8000) << 16);
}

FB_INLINE void narrow(float v, float* to) { *to = v; }
FB_INLINE void narrow(double v, double* to) { *to = v; }
FB_INLINE void narrow(float v, BFloat16* to) {
  const uint32_t bits = as_bits(v);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest even
  to->bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : uint16_t(rounded);
}
FB_INLINE void narrow(float v, Float16* to) {
  const uint32_t bits = as_bits(v), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xc8000fffu + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  to->bits = uint16_t((magnitude >= 0x47800000u ? special : finite) | (bits >> 16 & 0x8000));
}

// Calls f with a null pointer of the storage's type; `T` decides which are possible.
template <typename F>
FB_INLINE void with_storage(Storage storage, float, F f) {
  if (storage == Storage::kBFloat16) return f(static_cast<BFloat16*>(nullptr));
  if (storage == Storage::kFloat16) return f(static_cast<Float16*>(nullptr));
  return f(static_cast<float*>(nullptr));
}
template <typename F>
FB_INLINE void with_storage(Storage, double, F f) {
  f(static_cast<double*>(nullptr));
}

// ---- Scratch memory ----

// Hands out pieces of one allocation; started at null, it measures how much is needed.
struct Arena {
  char* next;

  template <typename U>
  FB_INLINE U* take(int64_t count) {
    U* piece = reinterpret_cast<U*>(next);
    next = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(next) + round_up(count * sizeof(U), 64));
    return piece;
  }
};

}  // namespace
}  // namespace flowers_bench::FB_ISA
