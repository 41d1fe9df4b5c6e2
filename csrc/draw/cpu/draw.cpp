// Draws images on a CPU: cut out, resize, mirror and colour uint8 images, in whole numbers.
//
// An image lies with its channels beside each other, row after row. Row by row, first the rows that an output row is
// made of are summed up into one line, then the line's pixels into the output's: between the two a line of uint8 exists
// and nothing larger. Mirroring is an order of weights. Colours wait for the mean grey, hence for the whole image.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../arguments.h"
#include "lines.h"

namespace flowers_bench::draw {
namespace {

// Holds the weights of a resized line.
class Weights {
 public:
  Weights(int64_t size, int64_t side, bool mirrored) {
    std::vector<Taps> all;
    all.reserve(side);
    line_.side = side, line_.size = size, line_.taps = 0;
    // All lines have as many taps, a multiple of four; what is too many weighs nothing.
    for (int64_t at = 0; at < side; ++at) {
      all.emplace_back(size, side, mirrored ? side - 1 - at : at);
      line_.taps = std::max<int64_t>(line_.taps, all.back().count);
    }
    line_.taps = (line_.taps + 3) / 4 * 4;
    first_.resize(side);
    weight_.assign(side * line_.taps, 0);
    for (int64_t at = 0; at < side; ++at) {
      const Taps& taps = all[at];
      first_[at] = taps.first;
      int16_t* const weight = weight_.data() + at * line_.taps;
      int64_t sum = 0;
      for (int32_t i = 0; i < taps.count; ++i) weight[i] = taps.next_weight(i, sum);
    }
    line_.first = first_.data(), line_.weight = weight_.data();
  }
  const Line& line() const { return line_; }

 private:
  std::vector<int32_t> first_;
  std::vector<int16_t> weight_;
  Line line_;
};

Kernels best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const char* const asked = std::getenv("FLOWERS_BENCH_KERNEL");
  const bool plain = asked && !std::strcmp(asked, "generic");
  if (!plain && __builtin_cpu_supports("avx2")) return avx2_kernels();
#endif
  return plain_kernels();
}

const Kernels& kernels() {
  static const Kernels chosen = best();
  return chosen;
}

// Memory that one image after the other is drawn with.
struct Scratch {
  std::vector<uint8_t> line, uncoloured;
  std::vector<Pairs> pairs;
};

// Draws one image, side * side * 3 bytes.
void draw_one(const Box& box, const Parameters& p, int64_t side, Scratch& scratch, uint8_t* out) {
  const Weights rows(p.height, side, false), columns(p.width, side, p.mirrored);
  const Line &down = rows.line(), &across = columns.line();
  const int64_t bytes = 3 * p.width, pixels = side * side;
  const bool coloured = changes_colours(p);
  // What is read beyond the end of either weighs nothing, or is not kept.
  if (coloured) scratch.uncoloured.resize(3 * pixels + kPadding);
  scratch.line.resize(bytes + 3 * across.taps + kPadding);
  scratch.pairs.resize(pairs_of(across));
  const Kernels& kernel = kernels();
  kernel.prepare(across, scratch.pairs.data());
  int64_t sums[3] = {0, 0, 0};
  uint8_t* const resized = coloured ? scratch.uncoloured.data() : out;
  for (int64_t y = 0; y < side; ++y) {
    kernel.down(box.corner + down.first[y] * box.row, box.row, down, y, bytes, scratch.line.data());
    kernel.across(scratch.line.data(), across, scratch.pairs.data(), resized + y * side * 3, sums);
  }
  if (!coloured) return;
  const int32_t grey = added_grey(sums, pixels, p.of_mean);
  const int32_t added[3] = {p.offset[0] + grey, p.offset[1] + grey, p.offset[2] + grey};
  kernel.colour(resized, pixels, p.matrix, added, out);
}

Tensor draw(std::vector<Tensor> images, Tensor parameters, int64_t side) {
  const std::vector<Box> boxes = boxes_of(images, parameters, side);
  const auto count = static_cast<int64_t>(boxes.size());
  const auto* const drawn = static_cast<const Parameters*>(parameters.const_data_ptr());
  Tensor out = empty_images(count, side, parameters.device());
  auto* const to = static_cast<uint8_t*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t i = begin; i < end; ++i) draw_one(boxes[i], drawn[i], side, scratch, to + i * side * side * 3);
  });
  return out;
}

}  // namespace
}  // namespace flowers_bench::draw

STABLE_TORCH_LIBRARY(flowers_bench_draw, m) { m.def("draw(Tensor[] images, Tensor parameters, int side) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(flowers_bench_draw, CPU, m) { m.impl("draw", TORCH_BOX(&flowers_bench::draw::draw)); }
