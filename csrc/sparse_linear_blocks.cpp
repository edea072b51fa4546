// Kernels of sparse_linear: a panel of the weight, block by block of inputs.
#include "sparse_linear.h"

#ifdef ISA
namespace ISA {

// Where each row's nonzeros pass from block to block. Columns in another order are cut at other places, no less right.
template <class X> static void find_bounds(const SparseLinear<X>& op, const Panel<X>& panel) {
  const int32_t last = int32_t(panel.blocks - 1);
  for (int64_t r = 0; r < panel.rows; r++) {
    int64_t n = op.offsets[panel.begin + r + 1] - op.offsets[panel.begin + r];
    const int32_t* columns = op.columns + op.offsets[panel.begin + r];
    int32_t *bounds = panel.bounds + r * (panel.blocks + 1);
    memset(bounds, 0, (panel.blocks + 1) * sizeof(int32_t));
    for (int64_t k = 0; k < n; k++) {
      int32_t block = columns[k] >> panel.shift;
      bounds[1 + (block < last ? block : last)] = int32_t(k + 1);
    }
    for (int64_t b = 1; b <= panel.blocks; b++) bounds[b] = bounds[b] < bounds[b - 1] ? bounds[b - 1] : bounds[b];
  }
}

// n elements; where ``room``, also some behind them, so that whole vectors can be copied.
template <class T> static inline void copy_some(const T* from, int64_t n, bool room, T* to) {
  constexpr int SOME = BYTES / 4;
  if (!room) {
    memcpy(to, from, n * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < n; i += SOME) memcpy(to + i, from + i, SOME * sizeof(T));
}

// Fills a panel's segments and moves its nonzeros into their order; false where a column is outside.
template <class X> bool arrange(const SparseLinear<X>& op, const Panel<X>& panel) {
  constexpr int LENGTHS = 128, AHEAD = 8;  // longer segments count as equal; as many are prefetched
  const int64_t begin_panel = op.offsets[panel.begin], end_panel = op.offsets[panel.begin + panel.rows];
  if (!below(op.columns + begin_panel, end_panel - begin_panel, op.in)) return false;
  find_bounds(op, panel);
  int64_t moved = 0, nonzeros = op.offsets[op.out];
  for (int64_t b = 0; b < panel.blocks; b++) {
    Segment* segments = panel.segments + b * panel.rows;
    int32_t where[LENGTHS + 1] = {};
    const int32_t* bounds = panel.bounds + b;
    auto length = [](int32_t count) { return count < LENGTHS ? count : LENGTHS - 1; };
    for (int64_t r = 0; r < panel.rows; r++, bounds += panel.blocks + 1) where[1 + length(bounds[1] - bounds[0])]++;
    for (int i = 0; i < LENGTHS; i++) where[i + 1] += where[i];
    bounds = panel.bounds + b;
    for (int64_t r = 0; r < panel.rows; r++, bounds += panel.blocks + 1) {
      int32_t count = bounds[1] - bounds[0];
      segments[where[length(count)]++] = {int32_t(r), count};
    }
    auto begin_of = [&](int64_t i) {
      int64_t row = segments[i].row;
      return op.offsets[panel.begin + row] + panel.bounds[row * (panel.blocks + 1) + b];
    };
    for (int64_t i = 0; i < panel.rows; i++) {
      int64_t begin = begin_of(i), ahead = begin_of(i + AHEAD < panel.rows ? i + AHEAD : i);
      __builtin_prefetch(op.values + ahead);
      __builtin_prefetch(op.values + ahead + 64 / sizeof(X));
      const Segment* s = segments + i;
      bool room = begin + s->count + BYTES / 4 <= nonzeros;
      copy_some(op.values + begin, s->count, room, panel.values + moved);
      copy_some(op.columns + begin, s->count, room, panel.columns + moved);
      moved += s->count;
    }
  }
  return true;
}

// The panel with J vectors of the tile: every block's segments add to the sums, the first block's begin them.
template <int J, class X, class A>
static void multiply_vectors(const SparseLinear<X>& op, const Panel<X>& panel, const A* tile, A* sums) {
  constexpr int W = WIDTH<A>;
  const int64_t plane = (op.in + PAD) * W;
  const Segment *first = panel.segments, *last = first + panel.blocks * panel.rows;
  const X* value = panel.values;
  const int32_t* column = panel.columns;
  for (const Segment* s = first; s < last; s++) {
    A* place = sums + s->row * int64_t(J * W);
    Vec<A> sum[J] = {};  // a block's own sum: more exact than one long one
    for (const X* end = value + s->count; value < end; value++, column++) {
      A factor = widen(*value);
      const A* inputs = tile + *column * int64_t(W);
#pragma GCC unroll 8
      for (int j = 0; j < J; j++) sum[j] = fma(factor, load(inputs + j * plane), sum[j]);
    }
    if (s < first + panel.rows) {
      A bias = op.bias ? widen(op.bias[panel.begin + s->row]) : 0;
#pragma GCC unroll 8
      for (int j = 0; j < J; j++) store(place + j * W, sum[j] + bias);
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < J; j++) store(place + j * W, load(place + j * W) + sum[j]);
    }
  }
}

// The panel's sums, transposed, to y from row ``first`` of the batch on.
template <int J, class X, class A>
static void write(const SparseLinear<X>& op, const Panel<X>& panel, int64_t first, const A* sums) {
  constexpr int W = WIDTH<A>;
  for (int64_t r = 0; r < panel.rows; r += W) {
    int64_t rows = panel.rows - r < W ? panel.rows - r : W;
    for (int j = 0; j < J; j++) {
      Vec<A> block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) block[i] = load(sums + ((r + i) * J + j) * W);  // there is room for whole blocks
      transpose<W / 2, A>(block);
      X* y = op.y + (first + j * W) * op.out + panel.begin + r;
      int64_t left = op.batch - first - j * W;
      if constexpr (sizeof(X) == sizeof(A)) {
        if (rows == W && left >= W) {
#pragma GCC unroll 16
          for (int i = 0; i < W; i++) store(y + i * op.out, block[i]);
          continue;
        }
      }
      A row[W];
      for (int64_t i = 0; i < W && i < left; i++) {
        store(row, block[i]);
        for (int c = 0; c < rows; c++) narrow(row[c], y + i * op.out + c);
      }
    }
  }
}

// A panel of the weight with the tile that holds x from row ``first`` on; sums: room for [rows, vectors].
template <class X, class A>
void multiply_panel(const SparseLinear<X>& op, const Panel<X>& panel, const A* tile, int64_t first, A* sums) {
  auto multiply = [&](auto j) {
    multiply_vectors<decltype(j)::value>(op, panel, tile, sums);
    write<decltype(j)::value>(op, panel, first, sums);
  };
  int64_t vectors = (op.batch - first + WIDTH<A> - 1) / WIDTH<A>;
  if (vectors == 1) {
    multiply(std::integral_constant<int, 1>());
  } else if (vectors == 2) {
    multiply(std::integral_constant<int, 2>());
  } else if (MOST<A> == 4 || vectors <= 4) {
    multiply(std::integral_constant<int, 4>());
  } else {
    multiply(std::integral_constant<int, MOST<A>>());
  }
}

#define INSTANTIATE(X, A)                                       \
  template bool arrange(const SparseLinear<X>&, const Panel<X>&); \
  template void multiply_panel(const SparseLinear<X>&, const Panel<X>&, const A*, int64_t, A*);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#endif
