// sparse_linear: x @ weight.T + bias with the nonzeros of a packed weight, sums in fp32 (fp64 for fp64).
//
// A tile of x, some rows of the batch, is transposed to [vectors, in, WIDTH]: then a nonzero meets a vector of inputs
// that lie side by side, and the sums of a row of the weight stay in registers: per nonzero one broadcast and a fused
// multiply-add per vector. One row of x alone is a dot product per row of the weight.
//
// The tile lives in L2, and what bounds the product is the rate at which L1 gets lines from there. The vectors of one
// input are not neighbours in memory, because four lines in a row make the processor prefetch a fifth that is not used.
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

// inputs to leave unused behind each vector's, so that the vectors of one input fall into different cache sets
constexpr int64_t PAD = 5;

// rows of x in a tile: as many sums as the registers hold
template <class A> constexpr int64_t tile_of(int bytes) { return (bytes == 64 ? 4 : 8) * bytes / sizeof(A); }

KERNEL(template <class A> int64_t tile_size())
KERNEL(template <class T, class A> void transpose_tile(const T* x, int64_t rows, int64_t in, A* tile))
KERNEL(template <class T, class A> void widen_row(const T* x, int64_t n, A* wide))
KERNEL(template <class X, class A> void multiply_tile(const SparseLinear<X>& op, const A* tile,
                                                                int64_t first, int64_t begin, int64_t end))
KERNEL(template <class X, class A> bool multiply_one(const SparseLinear<X>& op, const A* x, int64_t begin,
                                                               int64_t end))
KERNEL(bool below(const int32_t* columns, int64_t n, int64_t limit))

#ifdef ISA
namespace ISA {

template <class A> int64_t tile_size() { return tile_of<A>(BYTES); }

template <class A> constexpr int MOST = tile_of<A>(BYTES) / WIDTH<A>;  // vectors in a tile

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
      for (int64_t i = 0; i < W; i++) tile[first * (in + PAD) + c * W + i] = i < count ? widen(x[(first + i) * in + c]) : 0;
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
#else
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

template <class X> bool multiply(const SparseLinear<X>& op) {
  using A = std::conditional_t<std::is_same_v<X, double>, double, float>;
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
      int64_t last = -1, begin_task = parts * tiles * worker / threads, end_task = parts * tiles * (worker + 1) / threads;
      for (int64_t task = begin_task; task < end_task; task++) {
        int64_t t = task / parts, from = first[task % parts], to = first[task % parts + 1];
        int64_t nonzeros = op.offsets[to] - op.offsets[from];
        if (tile_width > 1 && task < begin_task + parts && !PICK(below(op.columns + op.offsets[from], nonzeros, op.in))) {
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
    fits = multiply(SparseLinear<X>{in<X>(xc), in<X>(vc), in<int32_t>(cc), offset, bc ? in<X>(*bc) : nullptr, out<X>(y),
                                    batch, in_features, out_features});
  });
  STD_TORCH_CHECK(fits, "sparse_linear: want columns from 0 to ", in_features - 1, "; got one outside");
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("sparse_linear", TORCH_BOX(&sparse_linear)); }
#endif
