// The two passes by columns: chunk after chunk of whole images, with a library's matrix products between the kernels.
//
// `Products` is a parameter: torch's (cuBLAS) in op.cu, plain loops in the tests on a host. Every sum has one order,
// so that there is one way for torch's deterministic and non-deterministic settings.
#pragma once

#include "cells.cuh"
#include "kernels.cuh"

namespace flowers_bench {

// What a chunk's columns may take, unless one image takes more.
constexpr int64_t kColumnBytes = int64_t(64) << 20;

// Names a matrix in device memory, or one for each weight group; distances are counted in values.
template <typename T>
struct Operand {
  T* data;
  int64_t rows, columns;
  int64_t row, column, group;  // from one to the next

  Operand transposed() const { return {data, columns, rows, column, row, group}; }
  Operand<const T> read_only() const { return {data, rows, columns, row, column, group}; }
};

// Adds one sum to another.
struct AddTo {
  struct Params {
    const float* from;
    float* to;
    int64_t count;
  };
  struct Shared {};
  struct Registers {};
  static constexpr int kResident = 1;

  static int64_t blocks(const Params& p) { return ceil_div(p.count, kThreads); }

  static FB_DEVICE void run(const Params& p, int64_t block, const Team<AddTo>& team) {
    team.phase([&](int thread, Registers&) {
      const int64_t i = block * kThreads + thread;
      if (i < p.count) p.to[i] += p.from[i];
    });
  }
};

// Holds the memory that a pass needs beside its tensors; the caller allocates it, with addresses of 16 bytes.
struct ColumnsMemory {
  void* columns = nullptr;
  void* index = nullptr;    // of the cells
  float* weight = nullptr;  // sums of the weight's gradient
  float* bias = nullptr;    // sums of the bias's
};

// Counts what it must have room for, in bytes.
template <typename T>
struct ColumnsRoom {
  int64_t images = 0;  // in a chunk
  int64_t columns = 0, entries = 0, samples = 0, starts = 0, weight = 0, bias = 0;

  static ColumnsRoom of(const Problem<T>& p, bool need_input, bool need_weight, bool need_bias, int64_t limit) {
    ColumnsRoom room;
    room.images = images_at_once(p, limit);
    const int64_t samples = room.images * p.g.positions() * p.g.taps();
    room.columns = samples * p.g.channels * static_cast<int64_t>(sizeof(T));
    if (need_input) {
      room.entries = samples * p.g.offset_groups * static_cast<int64_t>(sizeof(Entry));
      room.samples = samples * p.g.offset_groups * static_cast<int64_t>(sizeof(int32_t));
      room.starts = room.images * p.g.offset_groups * ((p.g.height + 1) * (p.g.width + 1) + 1) *
                    static_cast<int64_t>(sizeof(int32_t));
    }
    const int64_t sums = room.images < p.g.batch ? 2 : 1;
    if (need_weight) room.weight = sums * p.weight_size() * static_cast<int64_t>(sizeof(float));
    if (need_bias) {
      room.bias = BackwardBias<T>::plan(p).parts * p.g.out_channels * static_cast<int64_t>(sizeof(float));
    }
    return room;
  }

  int64_t index() const { return entries + 2 * samples + starts; }
};

template <typename T>
Chunk<T> chunk_of(const Problem<T>& p, const ColumnsRoom<T>& room, const ColumnsMemory& memory, int64_t first) {
  Chunk<T> c;
  c.p = p;
  c.first = first;
  c.images = static_cast<int32_t>(least(room.images, p.g.batch - first));
  c.packs = packs_of_a_point(p);
  c.lanes = lanes_for(c.packs);
  c.columns = static_cast<T*>(memory.columns);
  auto* const index = static_cast<char*>(memory.index);
  if (!index) return c;
  c.entries = reinterpret_cast<Entry*>(index);
  c.ranks = reinterpret_cast<int32_t*>(index + room.entries);
  c.found = reinterpret_cast<int32_t*>(index + room.entries + room.samples);
  c.starts = reinterpret_cast<int32_t*>(index + room.entries + 2 * room.samples);
  return c;
}

// ---- Matrices ----

template <typename T>
int64_t column_length(const Problem<T>& p) {
  return p.g.taps() * p.group_channels;
}

// The chunk's columns, positions x (taps x channels).
template <typename T>
Operand<T> columns_matrix(const Chunk<T>& c) {
  const int64_t length = column_length(c.p), rows = c.rows();
  return {c.columns, rows, length, length, 1, rows * length};
}

// A channels-last weight (OC, taps, channels of a group): outputs x (taps x channels).
template <typename T>
Operand<const T> weight_matrix(const Problem<T>& p, const T* weight) {
  const int64_t length = column_length(p), outputs = p.group_outputs;
  return {weight, outputs, length, length, 1, outputs * length};
}

// The chunk's rows of a tensor (N, OH * OW, OC): positions x outputs.
template <typename T, typename U>
Operand<U> outputs_matrix(const Chunk<T>& c, U* values) {
  const int64_t all = c.p.g.out_channels, outputs = c.p.group_outputs;
  return {values + c.first * c.p.g.positions() * all, c.rows(), outputs, all, 1, outputs};
}

// ---- Forward ----

// Computes the output (N, OH * OW, OC) from a channels-last weight, with `p.bias` if there is one.
template <typename T, typename Products>
void run_forward_by_columns(const Problem<T>& p, const T* weight, const ColumnsRoom<T>& room,
                            const ColumnsMemory& memory, const Products& products, Stream stream) {
  for (int64_t first = 0; first < p.g.batch; first += room.images) {
    const Chunk<T> c = chunk_of(p, room, memory, first);
    const ColumnsPlan<T> plan = plan_columns(c);
    launch<Columns<T>>(plan, plan.blocks, stream);
    products.multiply(p.g.groups, columns_matrix(c).read_only(), weight_matrix(p, weight).transposed(),
                      outputs_matrix(c, p.out), p.bias);
  }
}

// ---- Backward ----

// Lists which samples read which pixel.
template <typename T>
void index_cells(const Chunk<T>& c, Stream stream) {
  fill_zero(c.starts, int64_t(c.lists()) * (c.cells() + 1) * static_cast<int64_t>(sizeof(int32_t)), stream);
  const int64_t blocks = CountCells<T>::blocks(c);
  launch<CountCells<T>>(c, blocks, stream);
  launch<ScanCells<T>>(c, ScanCells<T>::blocks(c), stream);
  launch<FillCells<T>>(c, blocks, stream);
  launch<SortCells<T>>(c, blocks, stream);
}

template <typename T, typename Products>
void backward_chunk(const Chunk<T>& c, const T* weight, const ColumnsMemory& memory, const Products& products,
                    Stream stream) {
  const Problem<T>& p = c.p;
  const T* const no_bias = nullptr;
  const Operand<const T> grad = outputs_matrix(c, p.grad);
  const bool samples = p.grad_offset || p.grad_mask;
  if (c.grad_input || samples) {
    products.multiply(p.g.groups, grad, weight_matrix(p, weight), columns_matrix(c), no_bias);
  }
  if (c.grad_input) {
    index_cells(c, stream);
    const auto plan = GatherPlan<T>::of(c);
    launch<Gather<T>>(plan, plan.blocks(), stream);
  }
  const ColumnsPlan<T> plan = plan_columns(c, p.grad_weight != nullptr);
  if (samples) {
    launch<BackwardSamples<T>>(plan, plan.blocks, stream);
  } else if (p.grad_weight) {
    launch<Columns<T>>(plan, plan.blocks, stream);
  }
  if (!p.grad_weight) return;
  float* const to = c.first == 0 ? memory.weight : memory.weight + p.weight_size();
  const int64_t length = column_length(p), outputs = p.group_outputs;
  const Operand<float> sums = {to, length, outputs, outputs, 1, length * outputs};
  products.multiply(p.g.groups, columns_matrix(c).read_only().transposed(), grad, sums, no_bias);
  const typename AddTo::Params add = {to, memory.weight, p.weight_size()};
  if (c.first > 0) launch<AddTo>(add, AddTo::blocks(add), stream);
}

// Computes the gradients that `p` and `grad_input` (N, H, W, C) ask for, from a channels-last weight.
template <typename T, typename Products>
void run_backward_by_columns(Problem<T> p, const T* weight, T* grad_input, const ColumnsRoom<T>& room,
                             const ColumnsMemory& memory, const Products& products, Stream stream) {
  if (p.grad_weight && p.g.batch == 0) fill_zero(memory.weight, room.weight, stream);
  if (grad_input || p.grad_offset || p.grad_mask || p.grad_weight) {
    for (int64_t first = 0; first < p.g.batch; first += room.images) {
      Chunk<T> c = chunk_of(p, room, memory, first);
      c.grad_input = grad_input;
      backward_chunk(c, weight, memory, products, stream);
    }
  }
  if (p.grad_weight) add_weight_parts(p, memory.weight, 1, stream);
  if (p.grad_bias) {
    p.parts = memory.bias;
    run_backward_bias(p, stream);
  }
}

}  // namespace flowers_bench
