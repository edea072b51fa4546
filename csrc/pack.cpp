// pack: the kept weights of a matrix, row by row, in one read: each thread collects those of its rows in memory of its
// own, and only then, when every count is known, they are copied to where they belong.
#include "vec.h"

KERNEL(template <class T> int64_t collect_row(const T* row, int64_t n, float threshold, T* values, int32_t* columns))
KERNEL(template <class T, class A> void scale_values(const T* values, int64_t n, A attention, float firm, T* scaled))

#ifdef ISA
namespace ISA {

// As integers magnitudes are ordered as they are as floats, a NaN above infinity, whatever is done with denormals.
static inline uint32_t magnitude(float v) { return bits_of(v) & 0x7fffffff; }

// Writes the kept elements and their positions, with room for a vector more than there are; returns how many.
template <class T> int64_t collect_row(const T* row, int64_t n, float threshold, T* values, int32_t* columns) {
  const uint32_t least = threshold > 0 ? bits_of(threshold) : 1;  // a zero is never kept
  int64_t found = 0, i = 0;
#ifdef __AVX512F__
  if constexpr (sizeof(Wide<T>) == sizeof(T) && sizeof(T) == 4) {
    const __m512i limit = _mm512_set1_epi32(least), sign = _mm512_set1_epi32(0x7fffffff);
    __m512i here = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + 16 <= n; i += 16) {
      __m512i v = _mm512_loadu_si512(row + i);
      __mmask16 keep = _mm512_cmp_epu32_mask(_mm512_and_si512(v, sign), limit, _MM_CMPINT_NLT);
      // compressed in a register, because to memory it is slow
      _mm512_storeu_si512(values + found, _mm512_maskz_compress_epi32(keep, v));
      _mm512_storeu_si512(columns + found, _mm512_maskz_compress_epi32(keep, here));
      found += _mm_popcnt_u32(keep);
      here = _mm512_add_epi32(here, _mm512_set1_epi32(16));
    }
  }
#endif
  for (; i < n; i++) {
    values[found] = row[i];
    columns[found] = int32_t(i);
    if constexpr (sizeof(T) == 8) {
      found += threshold > 0 ? magnitude(float(row[i])) >= least : row[i] != 0;  // not all nonzeros are in fp32
    } else {
      found += magnitude(widen(row[i])) >= least;
    }
  }
  return found;
}

// ``firm``: the threshold where it is firm, or 0.
template <class T, class A> void scale_values(const T* values, int64_t n, A attention, float firm, T* scaled) {
  for (int64_t i = 0; i < n; i++) narrow(attention * shrunk<A>(widen(values[i]), firm), scaled + i);
}

#define INSTANTIATE(T, A)                                                        \
  template int64_t collect_row(const T*, int64_t, float, T*, int32_t*); \
  template void scale_values(const T*, int64_t, double, float, T*);     \
  template void scale_values(const T*, int64_t, float, float, T*);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#else
#include "op.h"

namespace {

// What one thread has collected. realloc moves large blocks without copying them, and pages that are not written to
// cost nothing.
template <class T> struct Collected {
  T* values = nullptr;
  int32_t* columns = nullptr;
  int64_t size = 0, room = 0;

  void reserve(int64_t more) {
    if (size + more <= room) return;
    room = std::max(size + more, 2 * room);
    values = static_cast<T*>(grow(values, room * sizeof(T)));
    columns = static_cast<int32_t*>(grow(columns, room * sizeof(int32_t)));
  }
  static void* grow(void* memory, size_t size) {
    void* larger = realloc(memory, size);
    STD_TORCH_CHECK(larger, "pack: out of memory: ", size, " bytes");
    return larger;
  }
  ~Collected() {
    free(values);
    free(columns);
  }
};

std::tuple<Tensor, Tensor, Tensor> pack(const Tensor& weight, const std::optional<Tensor>& threshold,
                                        const std::optional<Tensor>& attention, bool firm) {
  auto dense = torch::stable::contiguous(weight);
  int64_t rows = weight.size(0), n = rows ? weight.numel() / rows : 0;
  float t = threshold ? float(number(*threshold)) : 0, limit = firm ? t : 0;
  double a = attention ? number(*attention) : 1;
  bool wide = attention && attention->scalar_type() == ScalarType::Double;
  auto offsets = torch::stable::new_empty(weight, {rows + 1}, ScalarType::Long);
  auto offset = out<int64_t>(offsets);
  int64_t parts = std::min<int64_t>(torch::stable::get_num_threads(), rows);
  if (weight.numel() < 1 << 16) parts = std::min<int64_t>(parts, 1);
  Tensor values, columns;
  by_dtype(weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    std::vector<Collected<T>> collected(parts);
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; p++) {
        auto& mine = collected[p];
        for (int64_t r = rows * p / parts; r < rows * (p + 1) / parts; r++) {
          mine.reserve(n + 16);
          mine.size += offset[r + 1] = PICK(collect_row(in<T>(dense) + r * n, n, t, mine.values + mine.size,
                                                        mine.columns + mine.size));
        }
      }
    });
    offset[0] = 0;
    for (int64_t r = 0; r < rows; r++) offset[r + 1] += offset[r];
    values = torch::stable::new_empty(weight, {offset[rows]});
    columns = torch::stable::new_empty(weight, {offset[rows]}, ScalarType::Int);
    T* value = out<T>(values);
    int32_t* column = out<int32_t>(columns);
    parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; p++) {
        const auto& mine = collected[p];
        int64_t first = offset[rows * p / parts];
        if (mine.size == 0) continue;
        memcpy(column + first, mine.columns, mine.size * sizeof(int32_t));
        if (a == 1 && limit == 0) {
          memcpy(value + first, mine.values, mine.size * sizeof(T));
        } else if (wide || sizeof(T) == 8) {
          PICK(scale_values(mine.values, mine.size, a, limit, value + first));
        } else {
          PICK(scale_values(mine.values, mine.size, float(a), limit, value + first));
        }
      }
    });
  });
  return {values, columns, offsets};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("pack", TORCH_BOX(&pack)); }
#endif
