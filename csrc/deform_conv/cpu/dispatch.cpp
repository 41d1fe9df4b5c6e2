// Chooses the instruction set, once; on 64-bit ARM, dispatch_arm.cpp does.
#include "dispatch.h"

#if !defined(__aarch64__)
#include <cstdlib>
#include <cstring>

namespace flowers_bench {
namespace {

// In the order of INSTRUCTION_SETS.
enum Instructions : int64_t { kGeneric, kAvx2, kAvx512, kAvx512Bf16 };

bool asked_for(const char* name) {
  const char* asked = std::getenv("FLOWERS_BENCH_KERNEL");
  return asked && !std::strcmp(asked, name);
}

// Says whether to multiply pairs where there is AVX-512: where the processor has the instruction and gains by it.
// Intel's multiply 16 floats more than twice as often as 32 bfloat16: there it is used only where it is asked for.
bool takes_pairs() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bf16") || asked_for("avx512")) return false;
  return __builtin_cpu_is("amd") || asked_for("avx512bf16");
#else
  return false;
#endif
}

#if defined(FB_ONLY)

// Built for the one instruction set of the machine that compiles it (ops/_build.py): the others' kernels are not there.
Instructions choose_instructions() {
  return FB_ONLY == kAvx512 && takes_pairs() ? kAvx512Bf16 : static_cast<Instructions>(FB_ONLY);
}

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
  return takes_pairs() ? kAvx512Bf16 : kAvx512;
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
#if defined(__x86_64__) && (!defined(FB_ONLY) || FB_ONLY == 2)
  return avx512bf16::kernel();
#else
  std::abort();  // multiplies_pairs has said no
#endif
}

bool multiplies_pairs(const Geometry& g) {
  const auto whole = [](int64_t channels) { return channels % kPairedChannels == 0; };
  return instructions() == kAvx512Bf16 && whole(g.channels / g.groups) && whole(g.out_channels / g.groups) &&
         whole(g.channels / g.offset_groups);
}

}  // namespace flowers_bench

#endif
