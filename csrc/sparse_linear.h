// What the operator sparse_linear and its kernels share.
#pragma once
#include <type_traits>

#include "vec.h"

// What the kernels of one call share; x [batch, in], y [batch, out].
template <class X> struct SparseLinear {
  const X* x;
  const X* values;
  const int32_t* columns;
  const int64_t* offsets;
  const X* bias;
  X* y;
  int64_t batch, in, out;
};

// How many nonzeros a row of a panel has within one block of inputs.
struct Segment {
  int32_t row, count;
};

// Some rows of the weight with their nonzeros in the order of use: block by block of inputs, within a block by the
// length of the segments, so that the processor foresees where one ends.
template <class X> struct Panel {
  int64_t begin, rows;
  int64_t blocks, shift;  // a block holds 2^shift inputs, the last one the rest
  X* values;
  int32_t* columns;
  Segment* segments;  // [blocks, rows]
  int32_t* bounds;    // [rows, blocks + 1]
};

// inputs to leave unused behind each vector's, so that the vectors of one input fall into different cache sets
constexpr int64_t PAD = 5;

// rows of x in a tile: as many sums as the registers hold
template <class A> constexpr int64_t tile_of(int bytes) { return (bytes == 64 ? 4 : 8) * bytes / sizeof(A); }

KERNEL(template <class A> int64_t tile_size())
KERNEL(template <class T, class A> void transpose_tile(const T* x, int64_t rows, int64_t in, A* tile))
KERNEL(bool below(const int32_t* columns, int64_t n, int64_t limit))
KERNEL(template <class X, class A> void multiply_tile(const SparseLinear<X>& op, const A* tile, int64_t first,
                                                      int64_t begin, int64_t end))
KERNEL(template <class X> bool arrange(const SparseLinear<X>& op, const Panel<X>& panel))
KERNEL(template <class X, class A> void multiply_panel(const SparseLinear<X>& op, const Panel<X>& panel, const A* tile,
                                                       int64_t first, A* sums))
KERNEL(template <class T, class A> void widen_row(const T* x, int64_t n, A* wide))
KERNEL(template <class X, class A> bool multiply_one(const SparseLinear<X>& op, const A* x, int64_t begin, int64_t end))

#ifdef ISA
namespace ISA {
template <class A> constexpr int MOST = tile_of<A>(BYTES) / WIDTH<A>;  // vectors in a tile
}  // namespace ISA
#endif
