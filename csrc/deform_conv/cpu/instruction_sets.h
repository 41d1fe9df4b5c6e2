// The instruction sets that the kernels are compiled for, and how a file is compiled for one of them.
#pragma once

// AMX: compilers that know its instructions, and Linux, which wants to be asked before a process uses them. What is
// compiled for one machine may do without it, and without AVX512-BF16 (FB_WITHOUT_BF16).
#if defined(__x86_64__) && defined(__linux__) && !defined(FB_WITHOUT_AMX) && \
    (defined(__clang__) ? __clang_major__ >= 12 : defined(__GNUC__) && __GNUC__ >= 11)
#define FB_HAS_AMX
#endif

namespace flowers_bench {

// What the kernels have to know of an instruction set, and of the processors that have it.
struct InstructionSet {
  int vector_bytes;
  int rows;  // of a microkernel: its sums fill most of the vector registers
  // Whether a core has a second-level cache of 1 MiB or more, as those with vectors of 512 bits do; else 512 KiB.
  bool large_cache;
};

// Each namespace also holds the kernels of its instruction set: see body/kernels.inl.
namespace generic {
inline constexpr InstructionSet kInstructionSet = {16, 6, false};
}
namespace avx2 {
inline constexpr InstructionSet kInstructionSet = {32, 6, false};
}
namespace avx512 {
inline constexpr InstructionSet kInstructionSet = {64, 12, true};
}
namespace avx512bf16 {
inline constexpr InstructionSet kInstructionSet = avx512::kInstructionSet;
}
namespace avx512amx {
inline constexpr InstructionSet kInstructionSet = {64, 32, true};
}
// Of 32 registers, 22 hold sums, eight the right factors of four steps, and two the left factors of a row and of the
// next. Many of these processors have a cache of 512 KiB for a core, some less.
namespace neon {
inline constexpr InstructionSet kInstructionSet = {16, 11, false};
}
namespace neonbf16 {
inline constexpr InstructionSet kInstructionSet = neon::kInstructionSet;
}

}  // namespace flowers_bench

// Between these two, functions are compiled for instructions that the rest of the file does without.
#define FB_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FB_BEGIN_TARGET(features) \
  FB_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FB_END_TARGET FB_PRAGMA(clang attribute pop)
#else
#define FB_BEGIN_TARGET(features) FB_PRAGMA(GCC push_options) FB_PRAGMA(GCC target(features))
#define FB_END_TARGET FB_PRAGMA(GCC pop_options)
#endif
