// The loops over a line: plain ones, which compilers make vectors of where they can, and those for AVX2.
#include "lines.h"

#include "../parameters.h"

namespace flowers_bench::draw {
namespace {

// Counts the taps that weigh something or lie before one that does.
int64_t used(const int16_t* weight, int64_t taps) {
  while (taps > 1 && weight[taps - 1] == 0) --taps;
  return taps;
}

// ---- Any processor ----

void prepare_nothing(const Line&, Pairs*) {}

// Sums bytes [begin, bytes).
void down_from(int64_t begin, const uint8_t* from, int64_t row, const int16_t* weight, int64_t taps, int64_t bytes,
               uint8_t* to) {
  constexpr int64_t kBlock = 256;
  for (; begin < bytes; begin += kBlock) {
    const int64_t count = bytes - begin < kBlock ? bytes - begin : kBlock;
    int32_t sum[kBlock];
    for (int64_t x = 0; x < count; ++x) sum[x] = kHalf;
    for (int64_t i = 0; i < taps; ++i) {
      const uint8_t* const pixels = from + i * row + begin;
      for (int64_t x = 0; x < count; ++x) sum[x] += static_cast<int16_t>(pixels[x]) * weight[i];
    }
    for (int64_t x = 0; x < count; ++x) to[begin + x] = weighted(sum[x]);
  }
}

void down(const uint8_t* from, int64_t row, const Line& line, int64_t at, int64_t bytes, uint8_t* to) {
  const int16_t* const weight = line.weight + at * line.taps;
  down_from(0, from, row, weight, used(weight, line.taps), bytes, to);
}

void across(const uint8_t* from, const Line& line, const Pairs*, uint8_t* to, int64_t (&sums)[3]) {
  int64_t total[3] = {0, 0, 0};
  for (int64_t x = 0; x < line.side; ++x) {
    const uint8_t* const pixel = from + 3 * line.first[x];
    const int16_t* const weight = line.weight + x * line.taps;
    int32_t sum[3] = {kHalf, kHalf, kHalf};
    for (int64_t i = 0; i < line.taps; ++i) {
      for (int c = 0; c < 3; ++c) sum[c] += pixel[3 * i + c] * weight[i];
    }
    for (int c = 0; c < 3; ++c) {
      to[3 * x + c] = weighted(sum[c]);
      total[c] += to[3 * x + c];
    }
  }
  for (int c = 0; c < 3; ++c) sums[c] += total[c];
}

void colour(const uint8_t* from, int64_t count, const int32_t (&matrix)[9], const int32_t (&added)[3], uint8_t* to) {
  for (int64_t i = 0; i < 3 * count; i += 3) {
    const int32_t red = from[i], green = from[i + 1], blue = from[i + 2];
    for (int c = 0; c < 3; ++c) to[i + c] = coloured(matrix + 3 * c, red, green, blue, added[c]);
  }
}

}  // namespace

Kernels plain_kernels() { return {prepare_nothing, down, across, colour}; }

}  // namespace flowers_bench::draw

#if defined(__x86_64__)

// ---- AVX2 ----

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

namespace flowers_bench::draw {
namespace {
namespace avx2 {

typedef char Bytes __attribute__((vector_size(32)));
typedef uint8_t Octets __attribute__((vector_size(16)));
typedef short Words __attribute__((vector_size(32)));
typedef int Sums __attribute__((vector_size(32)));
typedef long long Quads __attribute__((vector_size(32)));
typedef uint8_t Half __attribute__((vector_size(16), aligned(1), may_alias));

inline Half load(const uint8_t* from) { return *reinterpret_cast<const Half*>(from); }
inline void store(uint8_t* to, Half value) { *reinterpret_cast<Half*>(to) = value; }

// Widens 16 bytes to words.
inline Words widened(const uint8_t* from) { return __builtin_convertvector(load(from), Words); }

inline Sums broadcast(int32_t value) { return Sums{} + value; }

// Puts two halves side by side.
inline Bytes joined(Half low, Half high) {
  return (Bytes)__builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                                        20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
}

inline Bytes shuffled(Bytes value, Bytes order) { return __builtin_ia32_pshufb256(value, order); }
inline Sums products(Words left, Words right) { return __builtin_ia32_pmaddwd256(left, right); }

// Bytes that `write` writes: eight pixels, and four more that mean nothing.
constexpr int64_t kWritten = 28;

// Packs four times two pixels, of pixels 0 and 4, 1 and 5, 2 and 6, 3 and 7, to bytes, and writes them.
inline void write(const Sums (&sum)[4], uint8_t* to) {
  const Words first = __builtin_ia32_packssdw256(sum[0], sum[1]), second = __builtin_ia32_packssdw256(sum[2], sum[3]);
  const Bytes packed = __builtin_ia32_packuswb256(first, second);
  const Bytes kDense = {0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1,
                        0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1};
  const Bytes dense = shuffled(packed, kDense);
  store(to, (Half)__builtin_shufflevector(dense, dense, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  store(to + 12,
        (Half)__builtin_shufflevector(dense, dense, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31));
}

// Writes as `write` does; of fewer bytes that there are room for, those.
inline void write_some(const Sums (&sum)[4], int64_t pixels, uint8_t* to) {
  if (3 * pixels >= kWritten) return write(sum, to);
  uint8_t last[kWritten];
  write(sum, last);
  for (int64_t i = 0; i < 3 * (pixels < kAtOnce ? pixels : kAtOnce); ++i) to[i] = last[i];
}

void prepare(const Line& line, Pairs* to) {
  const int64_t blocks = line.taps / 4;
  for (int64_t group = 0; group < line.side; group += kAtOnce) {
    for (int64_t i = 0; i < kAtOnce / 2; ++i) {
      for (int64_t block = 0; block < blocks; ++block, ++to) {
        for (int64_t half = 0; half < 2; ++half) {
          const int64_t x = group + i + 4 * half;
          const int16_t* const weight = line.weight + x * line.taps + 4 * block;
          for (int64_t j = 0; j < 8; ++j) {
            // The fourth of the channels is none.
            const bool some = x < line.side && j < 6;
            to->near[8 * half + j] = some ? weight[j % 2] : 0;
            to->far[8 * half + j] = some ? weight[2 + j % 2] : 0;
          }
        }
      }
    }
  }
}

void down(const uint8_t* from, int64_t row, const Line& line, int64_t at, int64_t bytes, uint8_t* to) {
  const int16_t* const weight = line.weight + at * line.taps;
  const int64_t taps = used(weight, line.taps);
  int64_t x = 0;
  for (; x + 16 <= bytes; x += 16) {
    Sums low = broadcast(kHalf), high = low;
    int64_t i = 0;
    for (; i + 2 <= taps; i += 2) {
      const Words factors = (Words)broadcast(static_cast<uint16_t>(weight[i]) | weight[i + 1] << 16);
      const Words first = widened(from + i * row + x), second = widened(from + (i + 1) * row + x);
      low += products(__builtin_shufflevector(first, second, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27),
                      factors);
      high += products(
          __builtin_shufflevector(first, second, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31), factors);
    }
    if (i < taps) {
      const Words factors = (Words)broadcast(static_cast<uint16_t>(weight[i]));
      const Words first = widened(from + i * row + x), none = {};
      low += products(__builtin_shufflevector(first, none, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27),
                      factors);
      high += products(__builtin_shufflevector(first, none, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31),
                       factors);
    }
    const Words words = __builtin_ia32_packssdw256(low >> kWeightBits, high >> kWeightBits);
    const Quads packed = (Quads)__builtin_ia32_packuswb256(words, words);
    store(to + x, (Half)__builtin_shufflevector(packed, packed, 0, 2));
  }
  down_from(x, from, row, weight, taps, bytes, to);
}

void across(const uint8_t* from, const Line& line, const Pairs* pairs, uint8_t* to, int64_t (&sums)[3]) {
  const Bytes kNear = {0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
                       0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1};
  const Bytes kFar = {6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
                      6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1};
  const int64_t blocks = line.taps / 4, side = line.side;
  Sums total = {};
  for (int64_t group = 0; group < side; group += kAtOnce) {
    Sums sum[4];
    for (int64_t i = 0; i < 4; ++i) {
      // Of pixels beyond the last, any pixel weighs nothing.
      const int64_t x = group + i < side ? group + i : 0, other = group + i + 4 < side ? group + i + 4 : 0;
      const uint8_t *left = from + 3 * line.first[x], *right = from + 3 * line.first[other];
      Sums mine = {};
      for (int64_t block = 0; block < blocks; ++block, ++pairs, left += 12, right += 12) {
        const Bytes pixels = joined(load(left), load(right));
        mine += products((Words)shuffled(pixels, kNear), *reinterpret_cast<const Words*>(pairs->near)) +
                products((Words)shuffled(pixels, kFar), *reinterpret_cast<const Words*>(pairs->far));
      }
      sum[i] = (mine + kHalf) >> kWeightBits;
      total += sum[i];
    }
    write_some(sum, side - group, to + 3 * group);
  }
  for (int c = 0; c < 3; ++c) sums[c] += total[c] + total[4 + c];
}

void colour(const uint8_t* from, int64_t count, const int32_t (&matrix)[9], const int32_t (&added)[3], uint8_t* to) {
  const Bytes kRedGreen = {0, -1, 1, -1, 0, -1, 1, -1, 0, -1, 1, -1, -1, -1, -1, -1,
                           0, -1, 1, -1, 0, -1, 1, -1, 0, -1, 1, -1, -1, -1, -1, -1};
  const Bytes kBlue = {2, -1, -1, -1, 2, -1, -1, -1, 2, -1, -1, -1, -1, -1, -1, -1,
                       2, -1, -1, -1, 2, -1, -1, -1, 2, -1, -1, -1, -1, -1, -1, -1};
  Words red_green = {}, blue = {};
  Sums more = {};
  for (int c = 0; c < 3; ++c) {
    for (int half = 0; half < 2; ++half) {
      const int at = 4 * half + c;
      red_green[2 * at] = static_cast<int16_t>(matrix[3 * c]),
                    red_green[2 * at + 1] = static_cast<int16_t>(matrix[3 * c + 1]);
      blue[2 * at] = static_cast<int16_t>(matrix[3 * c + 2]);
      more[at] = added[c] + kHalfColour;
    }
  }
  Bytes first[4], second[4];  // for pixels 0 and 4, 1 and 5, ... of eight
  for (int i = 0; i < 4; ++i) {
    const Bytes step = Bytes{} + static_cast<char>(3 * i);
    first[i] = kRedGreen + (kRedGreen >= 0 ? step : Bytes{}), second[i] = kBlue + (kBlue >= 0 ? step : Bytes{});
  }
  for (int64_t group = 0; group < count; group += kAtOnce, from += 3 * kAtOnce, to += 3 * kAtOnce) {
    const Bytes pixels = joined(load(from), load(from + 12));
    Sums sum[4];
    for (int i = 0; i < 4; ++i) {
      const Words two = (Words)shuffled(pixels, first[i]), third = (Words)shuffled(pixels, second[i]);
      sum[i] = (products(two, red_green) + products(third, blue) + more) >> kColourBits;
    }
    write_some(sum, count - group, to);
  }
}

}  // namespace avx2
}  // namespace

Kernels avx2_kernels() { return {avx2::prepare, avx2::down, avx2::across, avx2::colour}; }

}  // namespace flowers_bench::draw

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
