// Kernels of sparse_conv2d: the copy of a band of the input, in any layout, with its padding.
#include "sparse_conv2d.h"

#ifdef ISA
namespace ISA {

template <class X, class A> static inline Vec<A> load_wide(const X* p) {
  if constexpr (sizeof(X) == sizeof(A)) return load(p);
  Vec<A> v;
  for (int i = 0; i < WIDTH<A>; i++) v[i] = widen(p[i]);
  return v;
}

// W streams of W elements each, ``apart`` from one another, transposed.
template <class X, class A> static inline void load_block(const X* x, int64_t apart, Vec<A>* block) {
#pragma GCC unroll 16
  for (int i = 0; i < WIDTH<A>; i++) block[i] = load_wide<X, A>(x + i * apart);
  transpose<WIDTH<A> / 2, A>(block);
}

// The columns [begin, end) of the copy whose inputs are in the row x; from: column of x for column 0 (may be negative).
template <class X, class A>
static inline void inside(const SparseConv<X, A>& op, const X* x, int64_t from, int64_t& begin, int64_t& end) {
  int64_t step = op.stride[1], width = op.x_sizes[3];
  begin = from < 0 ? least((step - 1 - from) / step, op.pitch) : 0;
  end = x && from < width ? least((width - 1 - from) / step + 1, op.pitch) : 0;
  if (end < begin) begin = end = 0;
}

// One row of one channel and phase; x: its row.
template <class X, class A>
static void copy_row(const SparseConv<X, A>& op, const X* x, int64_t count, int64_t from, A* to) {
  constexpr int W = WIDTH<A>;
  int64_t step = op.stride[1], apart = op.x_strides[0], across = op.x_strides[3], unit = op.images ? W : 1;
  int64_t width = op.x_sizes[3];
  bool near = -W <= from && from <= 0 && width - from <= op.pitch && op.pitch <= width - from + W;
  // a whole row between narrow pads: the inputs overwrite what is zeroed too much
  if (x && near && !op.images && step == 1 && across == 1 && width >= W) {
    store(to, Vec<A>{});
    store(to + op.pitch - W, Vec<A>{});
    to -= from;
    for (int64_t q = 0; q + W <= width; q += W) store(to + q, load_wide<X, A>(x + q));
    if (width % W) store(to + width - W, load_wide<X, A>(x + width - W));
    return;
  }
  int64_t q, last;
  inside(op, x, from, q, last);
  bool narrow_pads = q * unit <= W && (op.pitch - last) * unit <= W && op.pitch * unit >= W;
  if (narrow_pads) {  // the inputs then overwrite what is zeroed too much
    store(to, Vec<A>{});
    store(to + op.pitch * unit - W, Vec<A>{});
  } else {
    memset(to, 0, q * unit * sizeof(A));
    memset(to + last * unit, 0, (op.pitch - last) * unit * sizeof(A));
  }
  if (!op.images) {
    if (step == 1 && across == 1) {
      for (; q + W <= last; q += W) store(to + q, load_wide<X, A>(x + from + q));
    }
    for (; q < last; q++) to[q] = widen(x[(from + q * step) * across]);
    return;
  }
  for (; count == W && step == 1 && across == 1 && q + W <= last; q += W) {
    Vec<A> block[W];
    load_block<X, A>(x + from + q, apart, block);
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) store(to + (q + i) * W, block[i]);
  }
  for (; q < last; q++) {
    const X* pixel = x + (from + q * step) * across;
    for (int64_t i = 0; i < W; i++) to[q * W + i] = i < count ? widen(pixel[i * apart]) : 0;
  }
}

// W channels of a row where a pixel's channels lie side by side; ``plane``: from channel to channel in the copy.
template <class X, class A>
static void copy_channels(const SparseConv<X, A>& op, const X* x, int64_t from, int64_t plane, A* to) {
  constexpr int W = WIDTH<A>;
  int64_t step = op.stride[1], apart = step * op.x_strides[3], unit = op.images ? W : 1;
  int64_t begin, end;
  inside(op, x, from, begin, end);
  for (int c = 0; c < W; c++) {
    memset(to + c * plane, 0, begin * unit * sizeof(A));
    memset(to + c * plane + end * unit, 0, (op.pitch - end) * unit * sizeof(A));
  }
  const X* pixel = begin < end ? x + (from + begin * step) * op.x_strides[3] : nullptr;
  bool blocks = op.images || end - begin >= W;
  for (int64_t q = begin, many = op.images ? 1 : W; blocks && q < end; q += many) {
    if (q + many > end) q = end - many;  // the last block begins earlier
    Vec<A> block[W];
    load_block<X, A>(pixel + (q - begin) * apart, op.images ? op.x_strides[0] : apart, block);
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) store(to + i * plane + q * unit, block[i]);
  }
  for (int64_t q = begin; !blocks && q < end; q++, pixel += apart) {
    for (int c = 0; c < W; c++) to[c * plane + q] = widen(pixel[c]);
  }
}

// One channel of W images whose rows follow one another: transposed across the rows, which may be short.
template <class X, class A>
static void copy_plane(const SparseConv<X, A>& op, const X* x, int64_t top, int64_t begin, int64_t end, A* to) {
  constexpr int W = WIDTH<A>;
  int64_t width = op.x_sizes[3], n = (end - begin) * width;
  for (int64_t i = 0; i < op.rows * op.pitch; i++) store(to + i * W, Vec<A>{});
  to += ((begin + op.padding[0] - top) * op.pitch + op.padding[1]) * W;
  for (int64_t e = 0, r = 0, w = 0; e < n; e += W) {
    int64_t back = e + W > n ? e + W - n : 0;  // the last block begins earlier
    for (e -= back, w -= back; w < 0; w += width) r--;
    Vec<A> block[W];
    load_block<X, A>(x + begin * width + e, op.x_strides[0], block);
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
      store(to + (r * op.pitch + w) * W, block[i]);
      if (++w == width) w = 0, r++;
    }
  }
}

// The rows of x under output rows [top, top + band) of image ``unit``, or of the W images from W * unit on.
template <class X, class A> void copy_band(const SparseConv<X, A>& op, int64_t unit, int64_t top, A* copy) {
  constexpr int W = WIDTH<A>;
  int64_t first = op.images ? unit * W : unit, count = op.images ? least(W, op.x_sizes[0] - first) : 1;
  int64_t row = op.pitch * (op.images ? W : 1);
  int64_t plane = op.n_phases[0] * op.n_phases[1] * op.rows * row;
  int64_t begin = top < op.padding[0] ? 0 : top - op.padding[0];
  int64_t end = least(top - op.padding[0] + op.rows, op.x_sizes[2]);
  bool planes = op.images && count == W && op.stride[0] == 1 && op.stride[1] == 1 && op.x_strides[3] == 1 &&
                op.x_strides[2] == op.x_sizes[3] && (end - begin) * op.x_sizes[3] >= W;
  for (int64_t c = 0, many; c < op.x_sizes[1]; c += many, copy += many * plane) {
    bool wide = op.x_strides[1] == 1 && c + W <= op.x_sizes[1] && (count == W || !op.images);
    many = wide ? W : 1;
    if (planes && !wide) {
      copy_plane(op, op.x + first * op.x_strides[0] + c * op.x_strides[1], top, begin, end, copy);
      continue;
    }
    for (int64_t i = 0; i < op.n_phases[0] * op.n_phases[1]; i++) {
      int64_t from = op.phases[1][i % op.n_phases[1]] - op.padding[1];
      for (int64_t r = 0; r < op.rows; r++) {
        int64_t h = (top + r) * op.stride[0] + op.phases[0][i / op.n_phases[1]] - op.padding[0];
        const X* x = op.x + first * op.x_strides[0] + c * op.x_strides[1] + h * op.x_strides[2];
        if (h < 0 || h >= op.x_sizes[2]) x = nullptr;
        A* to = copy + (i * op.rows + r) * row;
        if (wide) {
          copy_channels(op, x, from, plane, to);
        } else {
          copy_row(op, x, count, from, to);
        }
      }
    }
  }
}

#define INSTANTIATE(X, A) template void copy_band(const SparseConv<X, A>&, int64_t, int64_t, A*);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#endif
