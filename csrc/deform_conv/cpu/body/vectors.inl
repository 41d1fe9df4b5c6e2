// Vectors, the types that tensors are stored in, and scratch memory.
#pragma once

#include "../kernel.h"

#if !defined(FB_ISA)  // read alone, by a tool or a test
#define FB_ISA generic
#endif

#if defined(FB_PAIRS) && defined(__aarch64__)
#include <arm_neon.h>
#elif defined(FB_PAIRS)
#include <immintrin.h>
#endif

#define FB_INLINE inline __attribute__((always_inline))

namespace flowers_bench::FB_ISA {
namespace {

constexpr int64_t kVectorBytes = kInstructionSet.vector_bytes;
constexpr int kRows = kInstructionSet.rows;
constexpr bool kLargeCache = kInstructionSet.large_cache;

#if defined(FB_AMX)
// Products take so little that sampling decides: pixels are widened once, not for each of their samples. Processors
// with AMX have 2 MiB of second-level cache.
constexpr bool kWidePixels = true;
constexpr int64_t kMaxTile = 416, kSmallTile = 8 * kRows, kTileBytes = 1600 << 10;
#else
constexpr bool kWidePixels = false;
constexpr int64_t kMaxTile = kLargeCache ? 192 : 96;                 // positions
constexpr int64_t kSmallTile = kLargeCache ? 8 * kRows : 4 * kRows;  // of a forward pass with a small weight
constexpr int64_t kTileBytes = (kLargeCache ? 700 : 300) << 10;      // of a tile's buffers
#endif

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
constexpr int64_t kLanes = kVectorBytes / sizeof(Sum<T>);
// The columns of a product's result that a microkernel computes.
template <typename T>
constexpr int64_t kPanel = 2 * kLanes<T>;
// The deepest block of a backward pass: a panel of the weight this deep fits the first-level cache (or fills it, where
// the second is large).
template <typename T>
constexpr int64_t kDepth = (kLargeCache ? 32768 : 16384) / (kPanel<T> * sizeof(Sum<T>));
// The deepest block of a forward pass, and the deepest product: a panel comes from a large second-level cache in time,
// and nine taps of 64 channels are one block.
template <typename T>
constexpr int64_t kForwardDepth = kLargeCache ? kDepth<T> * 5 / 2 : kDepth<T>;

// What a channel of a pixel is read as.
template <typename T>
struct PixelOf {
  typedef T Type;
};
#if defined(FB_AMX)
template <>
struct PixelOf<BFloat16> {
  typedef float Type;
};
#endif
template <typename T>
using Pixel = typename PixelOf<T>::Type;

template <typename T>
FB_INLINE const Pixel<T>* pixels(const Problem<T>& q) {
  if constexpr (kWidePixels) {
    return q.wide_input;
  } else {
    return q.input;
  }
}

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

// Converts to the type that `to` points to.
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
template <typename F>
FB_INLINE void with_storage(Storage, BFloat16, F f) {
  f(static_cast<BFloat16*>(nullptr));
}

// ---- Factors: what a product takes from memory at once ----

// Consecutive numbers, in what a product sums over, that make one factor: one, or a pair of bfloat16. A pair is as
// large as a float, and travels as one.
template <typename T>
constexpr int64_t kFactor = sizeof(Sum<T>) / sizeof(T);

template <typename T>
FB_INLINE const Sum<T>* factors(const T* p) {
  return reinterpret_cast<const Sum<T>*>(p);
}

// Returns where number k of the sum of output `o` lies in a panel, which has whole factors of its outputs side by side.
template <typename T>
FB_INLINE int64_t in_panel(int64_t k, int64_t o) {
  return (k / kFactor<T> * kPanel<T> + o) * kFactor<T> + k % kFactor<T>;
}

typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t LooseHalfBits __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

// Loads a vector of numbers as what they are summed in.
FB_INLINE Vector<float> load_wide(const float* p) { return load(p); }
FB_INLINE Vector<double> load_wide(const double* p) { return load(p); }
FB_INLINE Vector<float> load_wide(const BFloat16* p) {
  const HalfBits bits = *reinterpret_cast<const LooseHalfBits*>(p);
  return (Vector<float>)(__builtin_convertvector(bits, Bits) << 16);
}

// Stores numbers that T can hold without rounding.
FB_INLINE void store_exact(float* p, Vector<float> v) { store(p, v); }
FB_INLINE void store_exact(double* p, Vector<double> v) { store(p, v); }
FB_INLINE void store_exact(BFloat16* p, Vector<float> v) {
  *reinterpret_cast<LooseHalfBits*>(p) = __builtin_convertvector((Bits)v >> 16, HalfBits);
}

// Stores number k of the sums of a vector of outputs, from `o` on, into a panel; of a pair, the first goes first.
template <typename T>
FB_INLINE void store_in_panel(T* panel, int64_t k, int64_t o, Vector<Sum<T>> v) {
  Sum<T>* const to = reinterpret_cast<Sum<T>*>(panel) + k / kFactor<T> * kPanel<T> + o;
  if constexpr (kFactor<T> == 1) {
    store(to, v);
  } else {
    store(to, (Vector<float>)(k % 2 ? (Bits)load(to) | (Bits)v : (Bits)v >> 16));
  }
}

// Adds left x right: of pairs, both products.
template <typename T>
FB_INLINE void multiply_add(Vector<Sum<T>>& sum, Sum<T> left, Vector<Sum<T>> right) {
#if defined(FB_PAIRS) && defined(__aarch64__)
  if constexpr (kFactor<T> == 2) {
    sum = (Vector<float>)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)right, (bfloat16x8_t)vdupq_n_f32(left));
    return;
  }
#elif defined(FB_PAIRS)
  if constexpr (kFactor<T> == 2) {
    sum = (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(left), (__m512bh)right);
    return;
  }
#endif
  sum += left * right;
}

#if defined(FB_ELEMENTS)
// Adds element `j` of left times right, which ARM multiplies without a broadcast before.
template <typename T>
FB_INLINE void multiply_add_element(Vector<Sum<T>>& sum, Vector<Sum<T>> left, int j, Vector<Sum<T>> right) {
#if defined(FB_PAIRS)
  const float32x4_t to = (float32x4_t)sum;
  const bfloat16x8_t one = (bfloat16x8_t)left, other = (bfloat16x8_t)right;
  // A number in the instruction, which has to be one in the source.
  sum = (Vector<float>)(j == 0   ? vbfdotq_laneq_f32(to, other, one, 0)
                        : j == 1 ? vbfdotq_laneq_f32(to, other, one, 1)
                        : j == 2 ? vbfdotq_laneq_f32(to, other, one, 2)
                                 : vbfdotq_laneq_f32(to, other, one, 3));
#else
  sum += left[j] * right;
#endif
}
#endif

#if defined(FB_PAIRS)
// Rounds two vectors to bfloat16, and makes pairs of an element of the one and an element of the other.
FB_INLINE Vector<float> pairs(Vector<float> first, Vector<float> second) {
#if defined(__aarch64__)
  const bfloat16x8_t one = vcvtq_low_bf16_f32((float32x4_t)first), other = vcvtq_low_bf16_f32((float32x4_t)second);
  return (Vector<float>)vzip1q_u16((uint16x8_t)one, (uint16x8_t)other);
#else
  typedef uint16_t Lanes __attribute__((vector_size(64)));
  const Lanes order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return (Vector<float>)_mm512_permutexvar_epi16((__m512i)order, both);
#endif
}

// Rounds two vectors to bfloat16, and stores one behind the other.
FB_INLINE void store_rounded(BFloat16* to, Vector<float> first, Vector<float> second) {
#if defined(__aarch64__)
  const bfloat16x8_t lower = vcvtq_low_bf16_f32((float32x4_t)first);
  const Vector<float> both = (Vector<float>)vcvtq_high_bf16_f32(lower, (float32x4_t)second);
#else
  const Vector<float> both = (Vector<float>)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#endif
  store(reinterpret_cast<float*>(to), both);
}
#endif

// ---- Rows of a product ----

// Says where the rows of a product go: row i to row index[i] of memory, or to row i where there is no index.
template <typename T>
struct RowsTo {
  T* data;
  int64_t stride;
  const int32_t* index = nullptr;

  FB_INLINE T* at(int64_t i) const { return data + (index ? index[i] : i) * stride; }
  FB_INLINE RowsTo from(int64_t row, int64_t column) const {
    return {data + (index ? 0 : row * stride) + column, stride, index ? index + row : nullptr};
  }
};

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
