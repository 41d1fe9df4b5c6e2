// The CUDA kernels of `draw` as a host library, behind a plain C interface that test_cuda_draw.py calls.
#include <vector>

#include "draw/cuda/kernels.cuh"

// Draws by lines of at most `limit` bytes at once; returns whether nothing was written outside of the memory beside the
// output. `reversed`: threads and blocks run backwards.
extern "C" bool emulate_draw(const flowers_bench::draw::Box* boxes, const flowers_bench::draw::Parameters* parameters,
                             int64_t count, int64_t side, int64_t limit, bool reversed, uint8_t* out) {
  using namespace flowers_bench;
  constexpr int64_t kGuard = 4096;
  emulation::reversed = reversed;
  const draw::Call call = {boxes, parameters, count, side, out};
  const draw::Room room = draw::Room::of(call, limit);
  const int64_t words = (room.bytes() + 2 * kGuard) / 8 + 1;
  std::vector<uint64_t> memory(words, 0xa5a5a5a5a5a5a5a5);
  auto* const bytes = reinterpret_cast<uint8_t*>(memory.data());
  draw::run_draw(call, room, bytes + kGuard, {});
  for (int64_t i = 0; i < 8 * words; ++i) {
    if ((i < kGuard || i >= kGuard + room.bytes()) && bytes[i] != 0xa5) return false;
  }
  return true;
}
