// sampled_product: elements of left.T @ right at the packed positions only, zeros elsewhere; sums in fp32 or fp64.
//
// Both factors are transposed, so that an element is a dot product of two contiguous rows. The row of the left one stays
// in registers; the partial sums of a vector of elements are transposed and added up together.
#include "vec.h"

// What the kernels of one call share; rows of the factors have a length that is a multiple of the vectors'.
template <class A> struct Sampled {
  const A *left, *right;  // [out, length], [in, length]
  const int32_t* columns;
  const int64_t* offsets;
  A* y;  // [out, in]
  int64_t in, length;
};

KERNEL(template <class A> int64_t vector_width())
KERNEL(template <class A> void transpose_columns(const A* x, int64_t rows, int64_t n, int64_t begin, int64_t end,
                                                           int64_t length, A* turned))
KERNEL(template <class A> void sample_rows(const Sampled<A>& op, int64_t begin, int64_t end))

#ifdef ISA
namespace ISA {

template <class A> int64_t vector_width() { return WIDTH<A>; }

template <class A> static inline Vec<A> multiply_add(Vec<A> a, Vec<A> b, Vec<A> c) {
#ifdef __AVX512F__
  if constexpr (sizeof(A) == 4) return _mm512_fmadd_ps(a, b, c);
  if constexpr (sizeof(A) == 8) return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return _mm256_fmadd_ps(a, b, c);
  if constexpr (sizeof(A) == 8) return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// Columns [begin, end) of x [rows, n] to rows of ``turned``, zeros behind them.
template <class A>
void transpose_columns(const A* x, int64_t rows, int64_t n, int64_t begin, int64_t end, int64_t length, A* turned) {
  constexpr int W = WIDTH<A>;
  for (int64_t c = begin; c < end; c += W) {
    for (int64_t r = 0; r < length; r += W) {
      if (r + W <= rows && c + W <= end) {
        Vec<A> block[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) block[i] = load(x + (r + i) * n + c);
        transpose<W / 2, A>(block);
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) store(turned + (c + i) * length + r, block[i]);
        continue;
      }
      for (int64_t i = c; i < c + W && i < end; i++) {
        for (int64_t j = r; j < r + W; j++) turned[i * length + j] = j < rows ? x[j * n + i] : 0;
      }
    }
  }
}

// What J vectors of the rows' length, from ``at`` on, add to one row of y.
template <int J, class A> static void sample_part(const Sampled<A>& op, int64_t row, int64_t at) {
  constexpr int W = WIDTH<A>;
  Vec<A> left[J];
#pragma GCC unroll 16
  for (int j = 0; j < J; j++) left[j] = load(op.left + row * op.length + at + j * W);
  A* y = op.y + row * op.in;
  for (int64_t k = op.offsets[row], end = op.offsets[row + 1]; k < end; k += W) {
    int64_t count = end - k < W ? end - k : W;
    Vec<A> block[W];
    for (int64_t i = 0; i < W; i++) {
      const A* right = op.right + op.columns[k + (i < count ? i : 0)] * op.length + at;
      Vec<A> even = left[0] * load(right), odd = {};
#pragma GCC unroll 16
      for (int j = 1; j < J; j++) {
        if (j % 2) {
          odd = multiply_add<A>(left[j], load(right + j * W), odd);
        } else {
          even = multiply_add<A>(left[j], load(right + j * W), even);
        }
      }
      block[i] = even + odd;
    }
    transpose<W / 2, A>(block);
#pragma GCC unroll 4
    for (int step = W / 2; step; step /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < step; i++) block[i] += block[i + step];
    }
    for (int64_t i = 0; i < count; i++) y[op.columns[k + i]] += block[0][i];
  }
}

template <class A> void sample_rows(const Sampled<A>& op, int64_t begin, int64_t end) {
  constexpr int64_t W = WIDTH<A>, MOST = (BYTES == 64 ? 16 : 8) * W;
  for (int64_t row = begin; row < end; row++) {
    memset(op.y + row * op.in, 0, op.in * sizeof(A));
    int64_t at = 0;
    for (; at + MOST <= op.length; at += MOST) sample_part<MOST / W>(op, row, at);
    for (; at + 4 * W <= op.length; at += 4 * W) sample_part<4>(op, row, at);
    for (; at < op.length; at += W) sample_part<1>(op, row, at);
  }
}

#define INSTANTIATE(A)                                                                             \
  template int64_t vector_width<A>();                                                     \
  template void transpose_columns(const A*, int64_t, int64_t, int64_t, int64_t, int64_t, A*); \
  template void sample_rows(const Sampled<A>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace ISA
#else
#include "op.h"

namespace {

template <class A> void sample(Sampled<A> op, const A* left, const A* right, int64_t batch, int64_t out_features) {
  int64_t width = PICK(vector_width<A>());
  op.length = (batch + width - 1) / width * width;
  A* room = scratch<A>((out_features + op.in) * op.length);
  auto turn = [&](const A* from, int64_t n, A* to) {
    parallel_for(0, (n + width - 1) / width, 4, [&](int64_t begin, int64_t end) {
      PICK(transpose_columns(from, batch, n, begin * width, std::min(end * width, n), op.length, to));
    });
    return to;
  };
  op.left = turn(left, out_features, room);
  op.right = turn(right, op.in, room + out_features * op.length);
  parallel_for(0, out_features, 8, [&](int64_t begin, int64_t end) { PICK(sample_rows(op, begin, end)); });
}

Tensor sampled_product(const Tensor& left, const Tensor& right, const Tensor& columns, const Tensor& offsets) {
  auto kind = left.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  auto plain = [&](const Tensor& t) { return torch::stable::contiguous(torch::stable::to(t, kind)); };
  auto lc = plain(left), rc = plain(right);
  auto cc = torch::stable::contiguous(columns), oc = torch::stable::contiguous(offsets);
  int64_t batch = left.size(0), out_features = left.size(1), in_features = right.size(1);
  const int32_t* column = in<int32_t>(cc);
  const int64_t* offset = in<int64_t>(oc);
  STD_TORCH_CHECK(right.size(0) == batch && offsets.numel() == out_features + 1 && offset[0] == 0 &&
                      offset[out_features] == columns.numel() &&
                      std::is_sorted(offset, offset + out_features + 1),
                  "sampled_product: want offsets that ascend from 0 to the ", columns.numel(), " positions; got others");
  uint32_t largest = 0;
  for (int64_t k = 0; k < columns.numel(); k++) largest = std::max(largest, uint32_t(column[k]));
  STD_TORCH_CHECK(columns.numel() == 0 || largest < in_features, "sampled_product: want columns from 0 to ",
                  in_features - 1, "; got one outside");
  auto y = torch::stable::new_empty(lc, {out_features, in_features});
  if (kind == ScalarType::Double) {
    sample(Sampled<double>{nullptr, nullptr, column, offset, out<double>(y), in_features}, in<double>(lc),
           in<double>(rc), batch, out_features);
  } else {
    sample(Sampled<float>{nullptr, nullptr, column, offset, out<float>(y), in_features}, in<float>(lc), in<float>(rc),
           batch, out_features);
  }
  return torch::stable::to(y, left.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("sampled_product", TORCH_BOX(&sampled_product)); }
#endif
