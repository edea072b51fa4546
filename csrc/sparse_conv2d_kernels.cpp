// Kernels of sparse_conv2d: the sums, and the way from sums to y in its layout.
#include "sparse_conv2d.h"

#ifdef ISA
namespace ISA {

template <class A> int64_t lanes() { return WIDTH<A>; }

template <class X, class A> static inline void store_narrow(const A* from, int64_t n, X* to) {
  for (int64_t i = 0; i < n; i++) narrow(from[i], to + i);
}

// R rows of V vectors of sums over the nonzeros [k, end); ``apart``: from row to row of the sums.
template <int R, int V, class A>
static void multiply(const A* values, const int32_t* places, int64_t k, int64_t end, A bias, const A* copy, int64_t row,
                     A* sums, int64_t apart) {
  constexpr int W = WIDTH<A>;
  Vec<A> sum[R * V] = {};
#pragma GCC unroll 8
  for (int i = 0; i < R * V; i++) sum[i] += bias;
  for (; k < end; k++) {
    const A* inputs = copy + places[k];
    A value = values[k];
#pragma GCC unroll 8
    for (int i = 0; i < R * V; i++) sum[i] = fma(value, load(inputs + i / V * row + i % V * W), sum[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < R * V; i++) store(sums + i / V * apart + i % V * W, sum[i]);
}

// Where one block of sums lies in y: R rows of V vectors, their first pixel at (h, w), none below
// ``bottom``, from channel ``channel`` on.
struct Block {
  int64_t unit, bottom, h, w, channel, channels;
};

// Pixels of one image, vector by vector.
template <int R, int V, class X, class A> static void write_pixels(const SparseConv<X, A>& op, Block b, const A* sums) {
  constexpr int W = WIDTH<A>;
  int64_t width = op.y_sizes[3], high = op.y_strides[2];
  for (int64_t c = 0; c < b.channels; c++, sums += R * V * W) {
    X* y = op.y + b.unit * op.y_strides[0] + (b.channel + c) * op.y_strides[1] + b.h * high;
    for (int r = 0; r < R && !op.flat; r++) {
      int64_t n = least(V * W, width - b.w);
      if (n == V * W) {
        store_narrow(sums + r * V * W, V * W, y + r * high + b.w);
      } else {
        store_narrow(sums + r * V * W, n, y + r * high + b.w);
      }
    }
    for (int64_t p = 0, h = b.w / op.pitch, w = b.w % op.pitch; op.flat && p < V * W; h++, p += op.pitch - w, w = 0) {
      if (b.h + h >= b.bottom) break;
      store_narrow(sums + p, least(V * W - p, width - w), y + h * high + w);  // a negative number: none
    }
  }
}

// Pixels of W images: transposed, so that an image's pixels lie side by side.
template <int R, int V, class X, class A> static void write_images(const SparseConv<X, A>& op, Block b, const A* sums) {
  constexpr int W = WIDTH<A>, ROOM = (R * V + W - 1) / W * W;
  int64_t first = b.unit * W, images = least(W, op.y_sizes[0] - first);
  for (int64_t c = 0; c < b.channels; c++, sums += R * V * W) {
    A pixels[W][ROOM];
    for (int j = 0; j < R * V; j += W) {
      Vec<A> block[W] = {};
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) {
        if (j + i < R * V) block[i] = load(sums + (j + i) * W);
      }
      transpose<W / 2, A>(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) store(pixels[i] + j, block[i]);
    }
    X* y = op.y + first * op.y_strides[0] + (b.channel + c) * op.y_strides[1] + b.h * op.y_strides[2] + b.w;
    for (int64_t n = 0; n < images; n++, y += op.y_strides[0]) {
      for (int r = 0; r < R; r++) store_narrow(pixels[n] + r * V, V, y + r * op.y_strides[2]);
    }
  }
}

// Any layout of y: transposed, so that a pixel's channels lie side by side.
template <int R, int V, class X, class A>
static void write_channels(const SparseConv<X, A>& op, Block b, const A* sums) {
  constexpr int W = WIDTH<A>;
  for (int j = 0; j < R * V; j++) {
    Vec<A> block[W] = {};
    for (int64_t c = 0; c < b.channels; c++) block[c] = load(sums + (c * R * V + j) * W);
    transpose<W / 2, A>(block);
    for (int64_t i = 0; i < W; i++) {
      int64_t n = b.unit, h = b.h + j / V, w = b.w + j % V;
      if (op.images) {
        n = n * W + i;
      } else {
        w = b.w + j % V * W + i;
        if (op.flat) h += w / op.pitch, w %= op.pitch;
      }
      if (n >= op.y_sizes[0] || h >= b.bottom || w >= op.y_sizes[3]) continue;
      X* y = op.y + n * op.y_strides[0] + b.channel * op.y_strides[1] + h * op.y_strides[2] + w * op.y_strides[3];
      for (int64_t c = 0; c < b.channels; c++) narrow(A(block[i][c]), y + c * op.y_strides[1]);
    }
  }
}

// Rows [begin, end) of the weight for R rows of V vectors, the first at (h, w) of the band that begins at ``top``.
template <int R, int V, class X, class A>
static void convolve_block(const SparseConv<X, A>& op, const A* copy, int64_t unit, int64_t top, int64_t h, int64_t w,
                           int64_t begin, int64_t end) {
  constexpr int W = WIDTH<A>;
  alignas(BYTES) A sums[W * R * V * W];
  int64_t column = op.images ? W : 1, row = op.pitch * column;
  bool whole = sizeof(X) == sizeof(A) && !op.images && !op.flat && op.y_strides[3] == 1 && w + V * W <= op.y_sizes[3];
  for (int64_t o = begin; o < end; o += W) {
    Block block{unit, least(top + op.band, op.y_sizes[2]), top + h, w, o, least(W, end - o)};
    for (int64_t c = 0; c < block.channels; c++) {
      A* to = sums + c * R * V * W;
      int64_t apart = V * W;
      if constexpr (sizeof(X) == sizeof(A)) {
        if (whole) {  // no detour: the sums are rows of y
          to = op.y + unit * op.y_strides[0] + (o + c) * op.y_strides[1] + block.h * op.y_strides[2] + w;
          apart = op.y_strides[2];
        }
      }
      multiply<R, V>(op.values, op.places, op.offsets[o + c], op.offsets[o + c + 1], op.bias ? op.bias[o + c] : A(0),
                     copy + h * row + w * column, row, to, apart);
    }
    if (whole) continue;
    if (op.y_strides[3] != 1) {
      write_channels<R, V>(op, block, sums);
    } else if (op.images) {
      write_images<R, V>(op, block, sums);
    } else {
      write_pixels<R, V>(op, block, sums);
    }
  }
}

template <int R, int V, class X, class A>
static void convolve_rows(const SparseConv<X, A>& op, const A* copy, int64_t unit, int64_t top, int64_t h, int64_t w,
                          int64_t rows, int64_t begin, int64_t end) {
  for (; rows >= R; h += R, rows -= R) convolve_block<R, V>(op, copy, unit, top, h, w, begin, end);
  if constexpr (R > 1) {
    if (rows > 0) convolve_rows<R / 2, V>(op, copy, unit, top, h, w, rows, begin, end);
  }
}

// Rows [begin, end) of the weight with the band of y that begins at row ``top``.
template <class X, class A>
void convolve_band(const SparseConv<X, A>& op, int64_t unit, int64_t top, const A* copy, int64_t begin, int64_t end) {
  int64_t step = op.images ? 1 : WIDTH<A>, rows = least(op.band, op.y_sizes[2] - top);
  int64_t length = op.flat ? (rows - 1) * op.pitch + op.y_sizes[3] : op.y_sizes[3];
  int64_t vectors = (length + step - 1) / step, pieces = (vectors + 7) / 8, most = (vectors + pieces - 1) / pieces;
  for (int64_t first = 0; first < vectors; first += most) {
    int64_t many = least(most, vectors - first), w = first * step;
    // the last block begins earlier where it would run over the end: same sums, written twice
    if (w + many * step > length && many * step <= length) w = length - many * step;
    int64_t high = op.flat ? 1 : rows;
    switch (many) {
      case 1: convolve_rows<8, 1>(op, copy, unit, top, 0, w, high, begin, end); break;
      case 2: convolve_rows<4, 2>(op, copy, unit, top, 0, w, high, begin, end); break;
      case 3: convolve_rows<2, 3>(op, copy, unit, top, 0, w, high, begin, end); break;
      case 4: convolve_rows<2, 4>(op, copy, unit, top, 0, w, high, begin, end); break;
      case 5: convolve_rows<1, 5>(op, copy, unit, top, 0, w, high, begin, end); break;
      case 6: convolve_rows<1, 6>(op, copy, unit, top, 0, w, high, begin, end); break;
      case 7: convolve_rows<1, 7>(op, copy, unit, top, 0, w, high, begin, end); break;
      case 8: convolve_rows<1, 8>(op, copy, unit, top, 0, w, high, begin, end); break;
    }
  }
}

#define INSTANTIATE(X, A) \
  template void convolve_band(const SparseConv<X, A>&, int64_t, int64_t, const A*, int64_t, int64_t);
EACH_DTYPE(INSTANTIATE)
template int64_t lanes<float>();
template int64_t lanes<double>();

}  // namespace ISA
#endif
