// What the operator sparse_conv2d and its kernels share.
#pragma once
#include "vec.h"

// What the kernels of one call share. Order of sizes and strides: images, channels, rows, columns.
template <class X, class A> struct SparseConv {
  const X* x;
  X* y;
  const A *values, *bias;
  const int32_t* places;   // where in the copy a nonzero finds its input
  const int64_t* bounds;   // [rows of the weight, blocks] and the end: where the nonzeros of a block of channels begin
  int64_t blocks;
  int64_t x_sizes[4], x_strides[4], y_sizes[4], y_strides[4];
  int64_t stride[2], padding[2];
  const int64_t *phases[2];  // remainders of the taps by the stride: the copy holds each as an image of stride 1
  int64_t n_phases[2];
  int64_t band, rows, pitch;  // rows of y in a band; rows and columns of an image in the copy
  bool images;                // lanes are images
  bool flat;                  // lanes run on from row to row, over the columns of the copy that y does not have
  bool direct;                // no copy: x itself, a 1x1 kernel over one long row
};

KERNEL(template <class A> int64_t lanes())
KERNEL(template <class X, class A> void copy_band(const SparseConv<X, A>& op, int64_t unit, int64_t top, A* copy))
KERNEL(template <class X, class A> void convolve_band(const SparseConv<X, A>& op, int64_t unit, int64_t top,
                                                       const A* copy, int64_t begin, int64_t end, A* sums))

#ifdef ISA
namespace ISA {
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
}  // namespace ISA
#endif
