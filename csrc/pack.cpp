// pack: the nonzeros of a weight, row by row; one pass counts them, one writes them.
#include "vec.h"

KERNEL(template <class T> int64_t count_nonzeros(const T* row, int64_t n))
KERNEL(template <class T> void pack_row(const T* row, int64_t n, T* values, int32_t* columns, int64_t nonzeros))

#ifdef ISA
namespace ISA {

static inline bool nonzero(double v) { return v != 0; }  // a NaN is a nonzero
static inline bool nonzero(float v) { return v != 0; }
static inline bool nonzero(bf16 v) { return v.bits & 0x7fff; }
static inline bool nonzero(fp16 v) { return v.bits & 0x7fff; }

template <class T> int64_t count_nonzeros(const T* row, int64_t n) {
  int64_t total = 0, i = 0;
#ifdef __AVX512F__
  if constexpr (sizeof(Wide<T>) == sizeof(T) && sizeof(T) == 4) {
    for (; i + 16 <= n; i += 16) {
      total += _mm_popcnt_u32(_mm512_cmp_ps_mask(load(row + i), _mm512_setzero_ps(), _CMP_NEQ_UQ));
    }
  }
#endif
  while (i < n) {
    int64_t end = n - i < 1 << 20 ? n : i + (1 << 20);
    int32_t part = 0;  // narrow, so that the loop becomes vector code
    for (; i < end; i++) part += nonzero(row[i]);
    total += part;
  }
  return total;
}

template <class T> void pack_row(const T* row, int64_t n, T* values, int32_t* columns, int64_t nonzeros) {
  int64_t found = 0, i = 0;
#ifdef __AVX512F__
  if constexpr (sizeof(Wide<T>) == sizeof(T) && sizeof(T) == 4) {
    __m512i here = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // a whole vector is written each time, so long as that stays in the row's own part; compressed in a register,
    // because to memory it is slow
    for (; i + 16 <= n && found + 16 <= nonzeros; i += 16) {
      __m512 v = load(row + i);
      __mmask16 keep = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      _mm512_storeu_ps(values + found, _mm512_maskz_compress_ps(keep, v));
      _mm512_storeu_si512(columns + found, _mm512_maskz_compress_epi32(keep, here));
      found += _mm_popcnt_u32(keep);
      here = _mm512_add_epi32(here, _mm512_set1_epi32(16));
    }
  }
#endif
  for (; i < n && found < nonzeros; i++) {
    values[found] = row[i];
    columns[found] = int32_t(i);
    found += nonzero(row[i]);
  }
}

#define INSTANTIATE(T, A)                                       \
  template int64_t count_nonzeros(const T*, int64_t); \
  template void pack_row(const T*, int64_t, T*, int32_t*, int64_t);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#else
#include "op.h"

static std::tuple<Tensor, Tensor, Tensor> pack(const Tensor& weight) {
  auto dense = torch::stable::contiguous(weight);
  int64_t rows = weight.size(0), n = rows ? weight.numel() / rows : 0;
  auto offsets = torch::stable::new_empty(weight, {rows + 1}, ScalarType::Long);
  auto offset = out<int64_t>(offsets);
  Tensor values, columns;
  int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(n, 1));
  by_dtype(weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto row = [&](int64_t r) { return in<T>(dense) + r * n; };
    offset[0] = 0;
    parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) offset[r + 1] = PICK(count_nonzeros(row(r), n));
    });
    for (int64_t r = 0; r < rows; r++) offset[r + 1] += offset[r];
    values = torch::stable::new_empty(weight, {offset[rows]});
    columns = torch::stable::new_empty(weight, {offset[rows]}, ScalarType::Int);
    auto value = out<T>(values);
    auto column = out<int32_t>(columns);
    parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        PICK(pack_row(row(r), n, value + offset[r], column + offset[r], offset[r + 1] - offset[r]));
      }
    });
  });
  return {values, columns, offsets};
}

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("pack", TORCH_BOX(&pack)); }
#endif
