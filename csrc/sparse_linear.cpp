// sparse_linear: x @ weight.T + bias with the nonzeros of a packed weight, sums in fp32 (fp64 for fp64).
//
// A tile of x, some rows of the batch, is transposed to [vectors, in, WIDTH]: then a nonzero meets a vector of inputs
// that lie side by side, and the sums of a row of the weight stay in registers: per nonzero one broadcast and a fused
// multiply-add per vector. One row of x alone is a dot product per row of the weight.
//
// The tile lives in L2, and what bounds the product is the rate at which L1 gets lines from there. The vectors of one
// input are not neighbours in memory, because four lines in a row make the processor prefetch a fifth that is not used.
//
// Where enough nonzeros meet enough tiles, the product goes block by block of inputs, whose part of a tile is little
// more than L1, and keeps the sums of a panel of the weight meanwhile. Its nonzeros are moved into that order first: to
// jump through the index would cost more than the blocks save.
#include "sparse_linear.h"

#ifndef ISA
#include <atomic>

#include "op.h"

namespace {

// The first row of each part, for parts of about as many nonzeros.
std::vector<int64_t> split(const int64_t* offsets, int64_t rows, int64_t parts) {
  std::vector<int64_t> first(parts + 1, rows);
  for (int64_t p = 0; p < parts; p++) {
    first[p] = std::lower_bound(offsets, offsets + rows, offsets[rows] * p / parts) - offsets;
  }
  first[0] = 0;
  return first;
}

template <class X> using Sum = std::conditional_t<std::is_same_v<X, double>, double, float>;

template <class X> bool multiply(const SparseLinear<X>& op) {
  using A = Sum<X>;
  int64_t tile_width = op.batch == 1 ? 1 : PICK(tile_size<A>());
  int64_t threads = torch::stable::get_num_threads(), tiles = (op.batch + tile_width - 1) / tile_width;
  int64_t parts = tiles % threads == 0 || tiles >= 8 * threads ? 1 : threads;
  threads = std::min(threads, parts * tiles);
  auto first = split(op.offsets, op.out, parts);
  A* tiles_memory = scratch<A>(threads * (op.in + PAD) * tile_width);
  std::atomic<bool> fits{true};
  parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; worker++) {
      A* tile = tiles_memory + worker * (op.in + PAD) * tile_width;
      int64_t last = -1, begin_task = parts * tiles * worker / threads;
      int64_t end_task = parts * tiles * (worker + 1) / threads;
      for (int64_t task = begin_task; task < end_task; task++) {
        int64_t t = task / parts, from = first[task % parts], to = first[task % parts + 1];
        int64_t nonzeros = op.offsets[to] - op.offsets[from];
        bool unseen = tile_width > 1 && task < begin_task + parts;
        if (unseen && !PICK(below(op.columns + op.offsets[from], nonzeros, op.in))) {
          fits = false;
          break;
        }
        const X* x = op.x + t * tile_width * op.in;
        if (tile_width == 1) {
          if (t != last) PICK(widen_row(x, op.in, tile));
          last = t;
          if (!PICK(multiply_one(op, static_cast<const A*>(tile), from, to))) fits = false;
          continue;
        }
        if (t != last) PICK(transpose_tile(x, std::min(tile_width, op.batch - t * tile_width), op.in, tile));
        last = t;
        PICK(multiply_tile(op, static_cast<const A*>(tile), t * tile_width, from, to));
      }
    }
  });
  return fits;
}

constexpr int64_t SHIFT = 8, BLOCK = 1 << SHIFT;  // inputs in a block: 64 KB of a tile
constexpr int64_t CHUNK = 1 << 23;                // bytes of x that are transposed at a time: level 3 cache
constexpr int64_t ROWS = 256;                     // most rows of the weight in a panel
constexpr double FEWEST = 20, DENSEST = 0.25;     // nonzeros of a row in a block, and density, between which blocks pay

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class X> bool blocks_pay(const SparseLinear<X>& op) {
  double nonzeros = double(op.offsets[op.out]), density = nonzeros / op.out / op.in;
  return op.batch > 2 * PICK(tile_size<Sum<X>>()) && op.in >= 4 * BLOCK && nonzeros < 0x1p31 &&
         density * BLOCK >= FEWEST && density <= DENSEST;  // at most, the moved nonzeros of a panel are as large as x
}

// The same, block by block. A chunk of x is transposed as a whole; then whichever worker is free takes the next panel.
template <class X> bool multiply_blocks(const SparseLinear<X>& op) {
  using A = Sum<X>;
  int64_t threads = torch::stable::get_num_threads(), width = PICK(tile_size<A>()), tile = (op.in + PAD) * width;
  int64_t tiles = ceil_div(op.batch, width), chunk = std::min(tiles, std::max<int64_t>(CHUNK / (tile * sizeof(A)), 4));
  int64_t panels = ceil_div(ceil_div(op.out, ROWS), threads) * threads;
  int64_t rows = ceil_div(ceil_div(op.out, panels), 16) * 16;  // whole vectors of y
  int64_t blocks = (op.in + BLOCK / 2) / BLOCK, workers = std::min(threads, panels), longest = 0;
  for (int64_t r = 0; r < op.out; r += rows) {
    longest = std::max(longest, op.offsets[std::min(r + rows, op.out)] - op.offsets[r]);
  }
  // of each worker: sums, moved values and columns, segments, bounds
  int64_t parts[] = {int64_t(rows * width * sizeof(A)), int64_t((longest + 16) * sizeof(X)), (longest + 16) * 4,
                     int64_t(rows * blocks * sizeof(Segment)), rows * (blocks + 1) * 4};
  int64_t room = 0;
  for (auto& part : parts) room += part = ceil_div(part, 64) * 64;
  char* memory = scratch<char>(chunk * tile * sizeof(A) + workers * room);
  A* inputs = reinterpret_cast<A*>(memory + workers * room);
  std::atomic<bool> fits{true};
  for (int64_t begin_tile = 0; begin_tile < tiles; begin_tile += chunk) {
    int64_t count = std::min(chunk, tiles - begin_tile), first = begin_tile * width;
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        int64_t row = first + t * width;
        PICK(transpose_tile(op.x + row * op.in, std::min(width, op.batch - row), op.in, inputs + t * tile));
      }
    });
    std::atomic<int64_t> next{0};
    parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; worker++) {
        char* at = memory + worker * room;
        A* sums = reinterpret_cast<A*>(at);
        Panel<X> panel{0, 0, blocks, SHIFT};
        panel.values = reinterpret_cast<X*>(at += parts[0]);
        panel.columns = reinterpret_cast<int32_t*>(at += parts[1]);
        panel.segments = reinterpret_cast<Segment*>(at += parts[2]);
        panel.bounds = reinterpret_cast<int32_t*>(at += parts[3]);
        for (int64_t p = next++; p < panels && fits; p = next++) {
          panel.begin = std::min(p * rows, op.out), panel.rows = std::min(rows, op.out - panel.begin);
          if (!PICK(arrange(op, panel))) fits = false;
          for (int64_t t = 0; t < count && fits; t++) {
            PICK(multiply_panel(op, panel, static_cast<const A*>(inputs + t * tile), first + t * width, sums));
          }
        }
      }
    });
  }
  return fits;
}

Tensor sparse_linear(const Tensor& x, const Tensor& values, const Tensor& columns, const Tensor& offsets,
                     const std::optional<Tensor>& bias) {
  int64_t in_features = x.size(x.dim() - 1), out_features = offsets.numel() - 1, nonzeros = values.numel();
  auto sizes = std::vector<int64_t>(x.sizes().begin(), x.sizes().end());
  sizes.back() = out_features;
  auto y = torch::stable::new_empty(x, sizes);
  auto xc = torch::stable::contiguous(x);
  // as PyTorch would round the dense weight
  auto vc = torch::stable::contiguous(torch::stable::to(values, x.scalar_type()));
  auto cc = torch::stable::contiguous(columns), oc = torch::stable::contiguous(offsets);
  const int64_t* offset = in<int64_t>(oc);
  STD_TORCH_CHECK(offset[0] == 0 && offset[out_features] == nonzeros && columns.numel() == nonzeros &&
                      std::is_sorted(offset, offset + out_features + 1),
                  "sparse_linear: want offsets that ascend from 0 to the ", nonzeros, " nonzeros; got others");
  if (y.numel() == 0) return y;
  int64_t batch = y.numel() / out_features;
  std::optional<Tensor> bc;
  if (bias) {
    STD_TORCH_CHECK(bias->scalar_type() == x.scalar_type(), "sparse_linear: want bias of x's dtype");
    bc = torch::stable::contiguous(*bias);
  }
  bool fits = true;
  by_dtype(x.scalar_type(), [&](auto type) {
    using X = decltype(type);
    SparseLinear<X> op{in<X>(xc), in<X>(vc), in<int32_t>(cc), offset, bc ? in<X>(*bc) : nullptr, out<X>(y), batch,
                       in_features, out_features};
    fits = blocks_pay(op) ? multiply_blocks(op) : multiply(op);
  });
  STD_TORCH_CHECK(fits, "sparse_linear: want columns from 0 to ", in_features - 1, "; got one outside");
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("sparse_linear", TORCH_BOX(&sparse_linear)); }
#endif
