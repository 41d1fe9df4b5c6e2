// Chooses the instruction set on 64-bit ARM, once; dispatch.cpp does so elsewhere.
#include "dispatch.h"

#if defined(__aarch64__)
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace flowers_bench {
namespace {

// As INSTRUCTION_SETS counts them.
enum Instructions : int64_t { kGeneric = 0, kNeon = 5, kNeonBf16 = 6 };

bool asked_for(const char* name) {
  const char* asked = std::getenv("FLOWERS_BENCH_KERNEL");
  return asked && !std::strcmp(asked, name);
}

// Says whether the processor multiplies pairs of bfloat16.
bool has_bf16() {
#if !defined(FB_NEON_BF16)
  return false;  // the compiler had no such instructions
#elif defined(__linux__)
  constexpr unsigned long kBf16 = 1UL << 14;  // HWCAP2_BF16, which older headers lack
  return getauxval(AT_HWCAP2) & kBf16;
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, nullptr, 0) == 0 && found;
#else
  return false;
#endif
}

[[maybe_unused]] Instructions choose_neon() { return has_bf16() && !asked_for("neon") ? kNeonBf16 : kNeon; }

// Built for one instruction set (ops/_build.py), it has no other's kernels. Else it takes NEON, which all processors
// have, or less where FLOWERS_BENCH_KERNEL asks for it.
#if defined(FB_ONLY) && FB_ONLY == 0
Instructions choose_instructions() { return kGeneric; }
const Kernels& kernels() { return generic::kernels(); }
#elif defined(FB_ONLY)
Instructions choose_instructions() { return choose_neon(); }
const Kernels& kernels() { return neon::kernels(); }
#else
Instructions choose_instructions() { return asked_for("generic") ? kGeneric : choose_neon(); }
const Kernels& kernels() { return instruction_set() == kGeneric ? generic::kernels() : neon::kernels(); }
#endif

}  // namespace

int64_t instruction_set() {
  static const Instructions chosen = choose_instructions();
  return chosen;
}

const Kernel<float>& kernel_for(float) { return kernels().f32; }
const Kernel<double>& kernel_for(double) { return kernels().f64; }

const Kernel<BFloat16>& kernel_for(BFloat16) {
#if FB_HAS_FLOAT && defined(FB_NEON_BF16) && !(defined(FB_ONLY) && FB_ONLY == 0)
  return neonbf16::kernel();
#else
  std::abort();  // multiplies_pairs has said no
#endif
}

bool has_pairs() { return instruction_set() == kNeonBf16; }

}  // namespace flowers_bench

#endif
