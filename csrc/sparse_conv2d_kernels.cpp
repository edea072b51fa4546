// Kernels of sparse_conv2d: the sums, and the way from sums to y in its layout.
#include "sparse_conv2d.h"

#ifdef ISA
namespace ISA {

template <class A> int64_t lanes() { return WIDTH<A>; }

template <class X, class A> static inline void store_narrow(const A* from, int64_t n, X* to) {
  for (int64_t i = 0; i < n; i++) narrow(from[i], to + i);
}

// R rows of V vectors of sums over the nonzeros [k, end), added to ``sums`` where MORE; ``apart``: from row to row.
template <int R, int V, bool MORE, class A>
static void multiply(const A* values, const int32_t* places, int64_t k, int64_t end, A bias, const A* copy, int64_t row,
                     A* sums, int64_t apart) {
  constexpr int W = WIDTH<A>;
  Vec<A> sum[R * V] = {};
  if constexpr (!MORE) {
#pragma GCC unroll 8
    for (int i = 0; i < R * V; i++) sum[i] += bias;
  }
  for (; k < end; k++) {
    const A* inputs = copy + places[k];
    A value = values[k];
#pragma GCC unroll 8
    for (int i = 0; i < R * V; i++) sum[i] = fma(value, load(inputs + i / V * row + i % V * W), sum[i]);
  }
  if constexpr (MORE) {
#pragma GCC unroll 8
    for (int i = 0; i < R * V; i++) sum[i] += load(sums + i / V * apart + i % V * W);
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

template <class X, class A> static inline void write_pixel(Vec<A> sums, int64_t channels, int64_t apart, X* y) {
  if constexpr (sizeof(X) == sizeof(A)) {
    if (channels == WIDTH<A> && apart == 1) return store(y, sums);
  }
  for (int64_t c = 0; c < channels; c++) narrow(A(sums[c]), y + c * apart);
}

// Any layout of y: transposed, so that a pixel's channels lie side by side.
template <int R, int V, class X, class A>
static void write_channels(const SparseConv<X, A>& op, Block b, const A* sums) {
  constexpr int W = WIDTH<A>;
  for (int j = 0; j < R * V; j++) {
    Vec<A> block[W] = {};
    for (int64_t c = 0; c < b.channels; c++) block[c] = load(sums + (c * R * V + j) * W);
    transpose<W / 2, A>(block);
    int64_t n = op.images ? b.unit * W : b.unit, h = b.h + j / V, w = b.w + j % V * (op.images ? 1 : W);
    if (op.flat) h += w / op.pitch, w %= op.pitch;
    for (int64_t i = 0; i < W; i++) {
      if (n < op.y_sizes[0] && h < b.bottom && w < op.y_sizes[3]) {
        X* y = op.y + n * op.y_strides[0] + b.channel * op.y_strides[1] + h * op.y_strides[2] + w * op.y_strides[3];
        write_pixel<X, A>(block[i], b.channels, op.y_strides[1], y);
      }
      if (op.images) n++;
      else if (++w == op.pitch && op.flat) w = 0, h++;
    }
  }
}

// Rows [begin, end) of the weight for R rows of V vectors, the first at (h, w) of the band that begins at ``top``;
// sums: room for [end - begin, R, V] vectors, or for WIDTH rows of the weight where there is one block of channels.
template <int R, int V, class X, class A>
static void convolve_block(const SparseConv<X, A>& op, const A* copy, int64_t unit, int64_t top, int64_t h, int64_t w,
                           int64_t begin, int64_t end, A* sums) {
  constexpr int W = WIDTH<A>;
  int64_t column = op.images ? W : 1, row = op.pitch * column, many = op.blocks == 1 ? W : end - begin;
  bool whole = sizeof(X) == sizeof(A) && !op.images && !op.flat && op.y_strides[3] == 1 && w + V * W <= op.y_sizes[3] &&
               op.blocks == 1;
  const A* inputs = copy + h * row + w * column;
  for (int64_t first = begin; first < end; first += many) {
    int64_t last = least(first + many, end);
    for (int64_t b = 0; b < op.blocks; b++) {
      for (int64_t o = first; o < last; o++) {
        A* to = sums + (o - first) * R * V * W;
        int64_t apart = V * W;
        const int64_t* bounds = op.bounds + o * op.blocks + b;
        if constexpr (sizeof(X) == sizeof(A)) {
          if (whole) {  // no detour: the sums are rows of y
            to = op.y + unit * op.y_strides[0] + o * op.y_strides[1] + (top + h) * op.y_strides[2] + w;
            apart = op.y_strides[2];
            int64_t next = o + 1 < last ? op.y_strides[1] : 0;  // whose lines may be far away
            for (int i = 0; i < R * V && !op.direct; i++) __builtin_prefetch(to + next + i / V * apart + i % V * W, 1);
          }
        }
        A bias = op.bias ? op.bias[o] : A(0);
        if (b == 0) {
          multiply<R, V, false>(op.values, op.places, bounds[0], bounds[1], bias, inputs, row, to, apart);
        } else {
          multiply<R, V, true>(op.values, op.places, bounds[0], bounds[1], bias, inputs, row, to, apart);
        }
      }
    }
    for (int64_t o = first; o < last && !whole; o += W) {
      Block block{unit, least(top + op.band, op.y_sizes[2]), top + h, w, o, least(W, last - o)};
      const A* from = sums + (o - first) * R * V * W;
      if (op.y_strides[3] != 1) {
        write_channels<R, V>(op, block, from);
      } else if (op.images) {
        write_images<R, V>(op, block, from);
      } else {
        write_pixels<R, V>(op, block, from);
      }
    }
  }
}

template <int R, int V, class X, class A>
static void convolve_rows(const SparseConv<X, A>& op, const A* copy, int64_t unit, int64_t top, int64_t h, int64_t w,
                          int64_t rows, int64_t begin, int64_t end, A* sums) {
  for (; rows >= R; h += R, rows -= R) convolve_block<R, V>(op, copy, unit, top, h, w, begin, end, sums);
  if constexpr (R > 1) {
    if (rows > 0) convolve_rows<R / 2, V>(op, copy, unit, top, h, w, rows, begin, end, sums);
  }
}

// Rows [begin, end) of the weight with the band of y that begins at row ``top``.
template <class X, class A>
void convolve_band(const SparseConv<X, A>& op, int64_t unit, int64_t top, const A* copy, int64_t begin, int64_t end,
                   A* sums) {
  int64_t step = op.images ? 1 : WIDTH<A>, rows = least(op.band, op.y_sizes[2] - top);
  int64_t length = op.flat ? (rows - 1) * op.pitch + op.y_sizes[3] : op.y_sizes[3];
  int64_t vectors = (length + step - 1) / step, pieces = (vectors + 7) / 8, most = (vectors + pieces - 1) / pieces;
  for (int64_t first = 0; first < vectors; first += most) {
    int64_t many = least(most, vectors - first), w = first * step;
    // the last block begins earlier where it would run over the end: same sums, written twice
    if (w + many * step > length && many * step <= length) w = length - many * step;
    int64_t high = op.flat ? 1 : rows;
    switch (many) {
      case 1: convolve_rows<8, 1>(op, copy, unit, top, 0, w, high, begin, end, sums); break;
      case 2: convolve_rows<4, 2>(op, copy, unit, top, 0, w, high, begin, end, sums); break;
      case 3: convolve_rows<2, 3>(op, copy, unit, top, 0, w, high, begin, end, sums); break;
      case 4: convolve_rows<2, 4>(op, copy, unit, top, 0, w, high, begin, end, sums); break;
      case 5: convolve_rows<1, 5>(op, copy, unit, top, 0, w, high, begin, end, sums); break;
      case 6: convolve_rows<1, 6>(op, copy, unit, top, 0, w, high, begin, end, sums); break;
      case 7: convolve_rows<1, 7>(op, copy, unit, top, 0, w, high, begin, end, sums); break;
      case 8: convolve_rows<1, 8>(op, copy, unit, top, 0, w, high, begin, end, sums); break;
    }
  }
}

#define INSTANTIATE(X, A) \
  template void convolve_band(const SparseConv<X, A>&, int64_t, int64_t, const A*, int64_t, int64_t, A*);
EACH_DTYPE(INSTANTIATE)
template int64_t lanes<float>();
template int64_t lanes<double>();

}  // namespace ISA
#endif
