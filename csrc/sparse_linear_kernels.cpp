// Kernels of sparse_linear: tiles of x, rows of the weight with a tile, and dot products with one row of x.
#include "sparse_linear.h"

#ifdef ISA
namespace ISA {

template <class A> int64_t tile_size() { return tile_of<A>(BYTES); }

bool below(const int32_t* columns, int64_t n, int64_t limit) {
  uint32_t largest = 0;  // a negative column is a very large one
  for (int64_t i = 0; i < n; i++) largest = uint32_t(columns[i]) > largest ? columns[i] : largest;
  return n == 0 || largest < limit;
}

// x [rows, in] to a tile, zeros where there are fewer rows than the vectors in use hold.
template <class T, class A> void transpose_tile(const T* x, int64_t rows, int64_t in, A* tile) {
  constexpr int W = WIDTH<A>;
  for (int64_t first = 0; first < rows; first += W) {
    int64_t count = rows - first < W ? rows - first : W, c = 0;
    if constexpr (sizeof(T) == sizeof(A)) {
      for (; count == W && c + W <= in; c += W) {
        Vec<A> block[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) block[i] = load(x + (first + i) * in + c);
        transpose<W / 2, A>(block);
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) store(tile + first * (in + PAD) + (c + i) * W, block[i]);
      }
    }
    for (; c < in; c++) {
      A* to = tile + first * (in + PAD) + c * W;
      for (int64_t i = 0; i < W; i++) to[i] = i < count ? widen(x[(first + i) * in + c]) : 0;
    }
  }
}

template <class T, class A> void widen_row(const T* x, int64_t n, A* wide) {
  for (int64_t i = 0; i < n; i++) wide[i] = widen(x[i]);
}

// Rows [begin, begin + rows) of the weight with J vectors of the tile, transposed back into y.
template <int J, class X, class A>
static void multiply_block(const SparseLinear<X>& op, const A* tile, int64_t first, int64_t begin, int rows) {
  constexpr int W = WIDTH<A>, CHAINS = J >= 4 ? 1 : 4 / J;  // enough sums in flight
  const int64_t plane = (op.in + PAD) * W;
  Vec<A> block[J][W];
  for (int r = 0; r < rows; r++) {
    Vec<A> sum[CHAINS][J] = {};
    A bias = op.bias ? widen(op.bias[begin + r]) : 0;
#pragma GCC unroll 8
    for (int j = 0; j < J; j++) sum[0][j] += bias;
    int64_t k = op.offsets[begin + r], end = op.offsets[begin + r + 1];
    for (; k + CHAINS <= end; k += CHAINS) {
#pragma GCC unroll 4
      for (int c = 0; c < CHAINS; c++) {
        A value = widen(op.values[k + c]);
        const A* inputs = tile + op.columns[k + c] * int64_t(W);
#pragma GCC unroll 8
        for (int j = 0; j < J; j++) sum[c][j] = fma(value, load(inputs + j * plane), sum[c][j]);
      }
    }
    for (; k < end; k++) {
      A value = widen(op.values[k]);
      const A* inputs = tile + op.columns[k] * int64_t(W);
#pragma GCC unroll 8
      for (int j = 0; j < J; j++) sum[0][j] = fma(value, load(inputs + j * plane), sum[0][j]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < J; j++) {
#pragma GCC unroll 4
      for (int c = 1; c < CHAINS; c++) sum[0][j] += sum[c][j];
      block[j][r] = sum[0][j];
    }
  }
  for (int j = 0; j < J; j++) {
    transpose<W / 2, A>(block[j]);
    for (int64_t i = 0; i < W && first + j * W + i < op.batch; i++) {
      X* y = op.y + (first + j * W + i) * op.out + begin;
      if constexpr (sizeof(X) == sizeof(A)) {
        if (rows == W) {
          store(y, block[j][i]);
          continue;
        }
      }
      for (int r = 0; r < rows; r++) narrow(block[j][i][r], y + r);
    }
  }
}

// Rows [begin, end) of the weight with the tile that holds x from row ``first`` on.
template <class X, class A>
void multiply_tile(const SparseLinear<X>& op, const A* tile, int64_t first, int64_t begin, int64_t end) {
  constexpr int W = WIDTH<A>;
  int64_t left = op.batch - first;
  for (; begin < end; begin += W) {
    int rows = end - begin < W ? end - begin : W;
    if (left <= W) {
      multiply_block<1>(op, tile, first, begin, rows);
    } else if (left <= 2 * W) {
      multiply_block<2>(op, tile, first, begin, rows);
    } else if (MOST<A> == 4 || left <= 4 * W) {
      multiply_block<4>(op, tile, first, begin, rows);
    } else {
      multiply_block<MOST<A>>(op, tile, first, begin, rows);
    }
  }
}

#ifdef __AVX512F__
static inline float dot(const float* values, const int32_t* columns, int64_t n, const float* x) {
  __m512 sum[2] = {};
  int64_t k = 0;
  for (; k + 32 <= n; k += 32) {
#pragma GCC unroll 2
    for (int c = 0; c < 2; c++) {
      __m512i where = _mm512_loadu_si512(columns + k + 16 * c);
      __m512 inputs = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, where, x, 4);
      sum[c] = _mm512_fmadd_ps(load(values + k + 16 * c), inputs, sum[c]);
    }
  }
  Vec<float> sums = sum[0] + sum[1];
  float total = 0;
  for (int i = 0; i < 16; i++) total += sums[i];
  for (; k < n; k++) total += values[k] * x[columns[k]];
  return total;
}
#endif

template <class V, class A> static inline A dot(const V* values, const int32_t* columns, int64_t n, const A* x) {
  constexpr int CHAINS = 8;
  A sum[CHAINS] = {};
  int64_t k = 0;
  for (; k + CHAINS <= n; k += CHAINS) {
#pragma GCC unroll 8
    for (int c = 0; c < CHAINS; c++) sum[c] += widen(values[k + c]) * x[columns[k + c]];
  }
  for (; k < n; k++) sum[0] += widen(values[k]) * x[columns[k]];
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

// Rows [begin, end) of the weight with one row of x; false where a column is outside.
template <class X, class A>
bool multiply_one(const SparseLinear<X>& op, const A* x, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; r++) {
    int64_t k = op.offsets[r], n = op.offsets[r + 1] - k;
    if (!below(op.columns + k, n, op.in)) return false;
    A total = dot(op.values + k, op.columns + k, n, x);
    narrow(op.bias ? total + widen(op.bias[r]) : total, op.y + r);
  }
  return true;
}

#define INSTANTIATE(X, A)                                                                                   \
  template void multiply_tile(const SparseLinear<X>&, const A*, int64_t, int64_t, int64_t); \
  template bool multiply_one(const SparseLinear<X>&, const A*, int64_t, int64_t);
EACH_DTYPE(INSTANTIATE)
template void transpose_tile(const double*, int64_t, int64_t, double*);
template void widen_row(const double*, int64_t, double*);
template void transpose_tile(const float*, int64_t, int64_t, float*);
template void widen_row(const float*, int64_t, float*);
template void transpose_tile(const bf16*, int64_t, int64_t, float*);
template void widen_row(const bf16*, int64_t, float*);
template void transpose_tile(const fp16*, int64_t, int64_t, float*);
template void widen_row(const fp16*, int64_t, float*);
template int64_t tile_size<float>();
template int64_t tile_size<double>();

}  // namespace ISA
#endif
