// adjoint: the packed weight of the product that gives the input gradient, by a stable counting sort of the nonzeros.
#ifndef ISA
#include <utility>

#include "op.h"

namespace {

// The nonzeros of a weight [outputs * groups, inputs * taps], and the part of its rows that each thread takes.
struct Packed {
  const int32_t* columns;
  const int64_t* offsets;
  int64_t inputs, outputs, taps;  // of a group
  std::vector<int64_t> first;

  // f(k, row, column) with the place in the adjoint of each nonzero of a part, columns ascending within a row of the
  // adjoint: backwards through the rows of a convolution's weight, whose taps change their order.
  template <class F> void each(int64_t part, const F& f) const {
    const int32_t* column = columns;
    for (int64_t r = first[part]; r < first[part + 1]; r++) {
      int64_t k = offsets[r], end = offsets[r + 1], row = r / outputs * inputs, last = (r % outputs + 1) * taps - 1;
      if (taps == 1) {
        for (; k < end; k++) f(k, row + column[k], last);
      } else {
        while (end-- > k) {
          uint32_t input = uint32_t(column[end]) / uint32_t(taps);
          f(end, row + input, last - (column[end] - input * taps));
        }
      }
    }
  }

  bool fits(int64_t part) const {
    uint32_t largest = 0;
    for (int64_t k = offsets[first[part]]; k < offsets[first[part + 1]]; k++) {
      largest = std::max(largest, uint32_t(columns[k]));  // a negative column is a very large one
    }
    return offsets[first[part]] == offsets[first[part + 1]] || largest < inputs * taps;
  }
};

std::tuple<Tensor, Tensor, Tensor> adjoint(const Tensor& values, const Tensor& columns, const Tensor& offsets,
                                           std::vector<int64_t> shape, int64_t groups) {
  auto vc = torch::stable::contiguous(values), cc = torch::stable::contiguous(columns);
  auto oc = torch::stable::contiguous(offsets);
  int64_t rows = shape[0], new_rows = shape[1] * groups, nonzeros = values.numel(), taps = 1;
  for (size_t d = 2; d < shape.size(); d++) taps *= shape[d];
  Packed op{in<int32_t>(cc), in<int64_t>(oc), shape[1], rows / groups, taps};
  STD_TORCH_CHECK(op.offsets[0] == 0 && op.offsets[rows] == nonzeros && columns.numel() == nonzeros &&
                      std::is_sorted(op.offsets, op.offsets + rows + 1),
                  "adjoint: want offsets that ascend from 0 to the ", nonzeros, " nonzeros; got others");
  int64_t parts = nonzeros < 1 << 14 ? 1 : torch::stable::get_num_threads();
  for (int64_t p = 0; p < parts; p++) {
    op.first.push_back(std::lower_bound(op.offsets, op.offsets + rows, nonzeros * p / parts) - op.offsets);
  }
  op.first[0] = 0;
  op.first.push_back(rows);
  auto each_part = [&](auto f) {
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; p++) f(p);
    });
  };
  // how many nonzeros of each part go to each row; then where the first of them goes
  std::vector<int64_t> next(parts * new_rows);
  std::vector<char> fits(parts);
  each_part([&](int64_t p) {
    int64_t* count = next.data() + p * new_rows;
    fits[p] = op.fits(p);
    if (fits[p]) op.each(p, [=](int64_t, int64_t row, int64_t) { count[row]++; });
  });
  STD_TORCH_CHECK(std::find(fits.begin(), fits.end(), 0) == fits.end(), "adjoint: want columns from 0 to ",
                  op.inputs * taps - 1, "; got one outside");
  auto new_values = torch::stable::new_empty(values, {nonzeros});
  auto new_columns = torch::stable::new_empty(columns, {nonzeros});
  auto new_offsets = torch::stable::new_empty(offsets, {new_rows + 1});
  int64_t* offset = out<int64_t>(new_offsets);
  offset[0] = 0;
  for (int64_t r = 0; r < new_rows; r++) {
    offset[r + 1] = offset[r];
    for (int64_t p = 0; p < parts; p++) offset[r + 1] += std::exchange(next[p * new_rows + r], offset[r + 1]);
  }
  int32_t* column = out<int32_t>(new_columns);
  by_dtype(values.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = in<T>(vc);
    T* value = out<T>(new_values);
    each_part([&](int64_t p) {
      int64_t* place = next.data() + p * new_rows;
      op.each(p, [=](int64_t k, int64_t row, int64_t new_column) {
        int64_t to = place[row]++;
        value[to] = from[k];
        column[to] = int32_t(new_column);
      });
    });
  });
  return {new_values, new_columns, new_offsets};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("adjoint", TORCH_BOX(&adjoint)); }
#endif
