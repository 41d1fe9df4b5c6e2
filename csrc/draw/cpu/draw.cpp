// Draws images on a CPU: cut out, resize, mirror and colour uint8 images, in whole numbers.
//
// An image lies with its channels beside each other, row after row. Row by row, first the rows that an output row is
// made of are summed up into one line, then the line's pixels into the output's: between the two a line of uint8 exists
// and nothing larger. Mirroring is an order of weights. Colours wait for the mean grey, hence for the whole image.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../parameters.h"
#include "lines.h"

namespace flowers_bench::draw {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Image {
  const uint8_t* pixels;
  int64_t height, width, row;  // row: bytes from one to the next
};

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
      for (int32_t i = 0; i < taps.count; ++i) {
        const int64_t before = taps.rounded(sum);
        sum += taps.raw(taps.first + i);
        weight[i] = static_cast<int16_t>(taps.rounded(sum) - before);
      }
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

bool changes_colours(const Parameters& p) {
  constexpr int32_t kOne = 1 << kColourBits;
  bool same = p.of_mean == 0;
  for (int i = 0; i < 9; ++i) same = same && p.matrix[i] == (i % 4 == 0 ? kOne : 0);
  for (int i = 0; i < 3; ++i) same = same && p.offset[i] == 0;
  return !same;
}

// Memory that one image after the other is drawn with.
struct Scratch {
  std::vector<uint8_t> line, uncoloured;
  std::vector<Pairs> pairs;
};

// Draws one image, side * side * 3 bytes.
void draw_one(const Image& image, const Parameters& p, int64_t side, Scratch& scratch, uint8_t* out) {
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
  const uint8_t* const corner = image.pixels + p.top * image.row + 3 * p.left;
  uint8_t* const resized = coloured ? scratch.uncoloured.data() : out;
  for (int64_t y = 0; y < side; ++y) {
    kernel.down(corner + down.first[y] * image.row, image.row, down, y, bytes, scratch.line.data());
    kernel.across(scratch.line.data(), across, scratch.pairs.data(), resized + y * side * 3, sums);
  }
  if (!coloured) return;
  const int32_t grey = added_grey(sums, pixels, p.of_mean);
  const int32_t added[3] = {p.offset[0] + grey, p.offset[1] + grey, p.offset[2] + grey};
  kernel.colour(resized, pixels, p.matrix, added, out);
}

Image image_of(const Tensor& tensor, const Parameters& p) {
  STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == 3 && tensor.scalar_type() == ScalarType::Byte,
                  "draw: an image must be uint8 (3, H, W)");
  STD_TORCH_CHECK(tensor.stride(0) == 1 && (tensor.stride(2) == 3 || tensor.size(2) == 1),
                  "draw: an image's channels must lie beside each other");
  const int64_t height = tensor.size(1), width = tensor.size(2);
  STD_TORCH_CHECK(p.top >= 0 && p.left >= 0 && p.height > 0 && p.width > 0 && p.height <= height - p.top &&
                      p.width <= width - p.left,
                  "draw: a box does not lie in its image");
  return {static_cast<const uint8_t*>(tensor.const_data_ptr()), height, width, tensor.stride(1)};
}

Tensor draw(std::vector<Tensor> images, Tensor parameters, int64_t side) {
  const auto count = static_cast<int64_t>(images.size());
  STD_TORCH_CHECK(parameters.dim() == 2 && parameters.size(0) == count && parameters.size(1) == kParameters &&
                      parameters.scalar_type() == ScalarType::Int && parameters.is_contiguous(),
                  "draw: the parameters must be int32, one row for each image");
  STD_TORCH_CHECK(side > 0 && side < (1 << 15), "draw: the side is out of range");
  const auto* const drawn = static_cast<const Parameters*>(parameters.const_data_ptr());
  std::vector<Image> given;
  for (int64_t i = 0; i < count; ++i) given.push_back(image_of(images[i], drawn[i]));
  const std::vector<int64_t> sizes = {count, 3, side, side};
  Tensor out = torch::stable::empty(sizes, ScalarType::Byte, std::nullopt, parameters.device(), std::nullopt,
                                    torch::headeronly::MemoryFormat::ChannelsLast);
  auto* const to = static_cast<uint8_t*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch;
    for (int64_t i = begin; i < end; ++i) draw_one(given[i], drawn[i], side, scratch, to + i * side * side * 3);
  });
  return out;
}

}  // namespace
}  // namespace flowers_bench::draw

STABLE_TORCH_LIBRARY(flowers_bench_draw, m) { m.def("draw(Tensor[] images, Tensor parameters, int side) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(flowers_bench_draw, CPU, m) { m.impl("draw", TORCH_BOX(&flowers_bench::draw::draw)); }
