// Chooses the instruction set, once; on 64-bit ARM, dispatch_arm.cpp does.
#include "dispatch.h"

#if !defined(__aarch64__)
#include <cstdlib>
#include <cstring>

#if defined(FB_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace flowers_bench {
namespace {

// In the order of INSTRUCTION_SETS.
enum Instructions : int64_t { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAvx512Amx };

bool asked_for(const char* name) {
  const char* asked = std::getenv("FLOWERS_BENCH_KERNEL");
  return asked && !std::strcmp(asked, name);
}

// Says whether AMX may be used: processor and system have it, and the system lets this process use it. Linux wants to
// be asked, since every thread that does then needs 8 KiB more for its registers; asking twice does no harm.
bool may_use_amx() {
#if defined(FB_HAS_AMX)
  constexpr unsigned kTileAndBf16 = 1u << 24 | 1u << 22, kSavedBySystem = 3u << 17, kSavesAll = 1u << 27;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl's, Linux 5.16
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSavesAll)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTileAndBf16) != kTileAndBf16) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kSavedBySystem) != kSavedBySystem) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Chooses how bfloat16 is multiplied where there is AVX-512: as the environment asks, else by what the processor gains.
// A Xeon with AMX multiplied 15 times as many bfloat16 as floats in a time (in registers), and with this kernel takes a
// third to a half of what widening takes (docs/performance/cpu.md). AVX512-BF16 is used on AMD's; the Intel
// processors measured multiply 16 floats twice as often as 32 bfloat16 or more, so that there it is used only where
// asked for.
Instructions choose_avx512() {
#if defined(__x86_64__) && !defined(FB_WITHOUT_BF16)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bf16") || asked_for("avx512")) return kAvx512;
  if (asked_for("avx512bf16")) return kAvx512Bf16;
  if (may_use_amx()) return kAvx512Amx;
  if (__builtin_cpu_is("amd")) return kAvx512Bf16;
#endif
  return kAvx512;
}

#if defined(FB_ONLY)

// Built for the one instruction set of the machine that compiles it (ops/_build.py): the others' kernels are not there.
Instructions choose_instructions() { return FB_ONLY == kAvx512 ? choose_avx512() : static_cast<Instructions>(FB_ONLY); }

const Kernels& kernels() {
#if FB_ONLY == 2
  return avx512::kernels();
#elif FB_ONLY == 1
  return avx2::kernels();
#else
  return generic::kernels();
#endif
}

#else

// Takes the best that this processor has, or less where FLOWERS_BENCH_KERNEL asks for it.
Instructions choose_instructions() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || asked_for("generic")) return kGeneric;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512 || asked_for("avx2")) return kAvx2;
  return choose_avx512();
#else
  return kGeneric;
#endif
}

const Kernels& kernels_of(Instructions instructions) {
#if defined(__x86_64__)
  if (instructions >= kAvx512) return avx512::kernels();
  if (instructions == kAvx2) return avx2::kernels();
#endif
  (void)instructions;
  return generic::kernels();
}

#endif

Instructions instructions() {
  static const Instructions chosen = choose_instructions();
  return chosen;
}

#if !defined(FB_ONLY)
const Kernels& kernels() { return kernels_of(instructions()); }
#endif

}  // namespace

int64_t instruction_set() { return instructions(); }

const Kernel<float>& kernel_for(float) { return kernels().f32; }
const Kernel<double>& kernel_for(double) { return kernels().f64; }

const Kernel<BFloat16>& kernel_for(BFloat16) {
#if FB_HAS_FLOAT && defined(__x86_64__) && !defined(FB_WITHOUT_BF16) && (!defined(FB_ONLY) || FB_ONLY == 2)
#if defined(FB_HAS_AMX)
  if (instructions() == kAvx512Amx) return avx512amx::kernel();
#endif
  return avx512bf16::kernel();
#else
  std::abort();  // multiplies_pairs has said no
#endif
}

bool has_pairs() { return instructions() >= kAvx512Bf16; }

}  // namespace flowers_bench

#endif
