// gate: attention * weight where abs(weight) >= threshold, else 0, shrunk before where firm; one read, one write.
// attention_gradient: sum(grad * sparse), the same for any number of threads.
#include "vec.h"

KERNEL(template <class T, class A> void gate(const T* weight, T* y, int64_t n, A attention, float threshold, float firm))
KERNEL(template <class G, class T> double kept_product(const G* grad, const T* weight, int64_t n, float threshold))

#ifdef ISA
namespace ISA {

// ``firm``: the threshold again where it is firm, or 0.
template <class T, class A>
void gate(const T* weight, T* y, int64_t n, A attention, float threshold, float firm) {
  for (int64_t i = 0; i < n; i++) {
    A w = widen(weight[i]);
    A kept = __builtin_fabsf(float(w)) < threshold ? 0 : shrunk(w, firm);  // a NaN is not below: it is kept
    narrow(attention * kept, y + i);
  }
}

// Blocks are summed in lanes of the wider type, their sums in fp64.
template <class G, class T> double kept_product(const G* grad, const T* weight, int64_t n, float threshold) {
  using A = decltype(widen(*grad) * widen(*weight));
  constexpr int LANES = 32, BLOCK = 512;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += BLOCK) {
    int64_t size = n - begin < BLOCK ? n - begin : BLOCK;
    A sums[LANES] = {};
    auto add = [&](int64_t i, int lane) {
      auto w = widen(weight[begin + i]);
      sums[lane] += A(widen(grad[begin + i])) * A(__builtin_fabsf(float(w)) < threshold ? 0 : w);
    };
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
      for (int lane = 0; lane < LANES; lane++) add(i + lane, lane);
    }
    for (; i < size; i++) add(i, i % LANES);
    for (A sum : sums) total += sum;
  }
  return total;
}

#define INSTANTIATE(T, A)                                                     \
  template void gate(const T*, T*, int64_t, double, float, float);            \
  template void gate(const T*, T*, int64_t, float, float, float);             \
  template double kept_product(const double*, const T*, int64_t, float);      \
  template double kept_product(const float*, const T*, int64_t, float);       \
  template double kept_product(const bf16*, const T*, int64_t, float);        \
  template double kept_product(const fp16*, const T*, int64_t, float);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#else
#include "op.h"

static constexpr int64_t CHUNK = 1 << 15;  // of one sum: fixed, so that the threads do not enter the result

static Tensor gate(const Tensor& weight, std::optional<Tensor> attention, const Tensor& threshold,
                   std::optional<ScalarType> dtype, bool firm) {
  auto w = weight.numel() == 0 || dense(weight) ? weight : torch::stable::clone(weight);
  auto y = torch::stable::empty_like(w);
  double a = attention ? number(*attention) : 1;
  float t = float(number(threshold)), limit = firm ? t : 0;
  bool wide = attention && attention->scalar_type() == ScalarType::Double;
  by_dtype(weight.scalar_type(), [&](auto type) {
    auto from = in<decltype(type)>(w);
    auto to = out<decltype(type)>(y);
    parallel_for(0, w.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
      if (wide || sizeof(type) == 8) {
        PICK(gate(from + begin, to + begin, end - begin, a, t, limit));
      } else {
        PICK(gate(from + begin, to + begin, end - begin, float(a), t, limit));
      }
    });
  });
  return dtype && *dtype != y.scalar_type() ? torch::stable::to(y, *dtype) : y;
}

static Tensor attention_gradient(const Tensor& grad, const Tensor& weight, const Tensor& attention,
                                 const Tensor& threshold) {
  bool aligned = same_order(grad, weight);
  auto g = aligned ? grad : torch::stable::contiguous(grad), w = aligned ? weight : torch::stable::contiguous(weight);
  float t = float(number(threshold));
  int64_t n = w.numel();
  std::vector<double> sums((n + CHUNK - 1) / CHUNK);
  by_dtype(w.scalar_type(), [&](auto weight_type) {
    by_dtype(g.scalar_type(), [&](auto grad_type) {
      auto from = in<decltype(weight_type)>(w);
      auto along = in<decltype(grad_type)>(g);
      parallel_for(0, sums.size(), 2, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; c++) {
          int64_t first = c * CHUNK, size = std::min(CHUNK, n - first);
          sums[c] = PICK(kept_product(along + first, from + first, size, t));
        }
      });
    });
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return torch::stable::fill_(torch::stable::empty_like(attention), total);
}

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) {
  m.impl("gate", TORCH_BOX(&gate));
  m.impl("attention_gradient", TORCH_BOX(&attention_gradient));
}
#endif
