// gate: attention * weight where abs(weight) >= threshold, else 0; one read, one write.
#include "vec.h"

KERNEL(template <class T, class A> void gate(const T* weight, T* y, int64_t n, A attention, float threshold))

#ifdef ISA
namespace ISA {

template <class T, class A> void gate(const T* weight, T* y, int64_t n, A attention, float threshold) {
  for (int64_t i = 0; i < n; i++) {
    A w = widen(weight[i]);
    A kept = __builtin_fabsf(float(w)) < threshold ? 0 : w;  // a NaN is not below: it is kept
    narrow(attention * kept, y + i);
  }
}

#define INSTANTIATE(T, A)                                              \
  template void gate(const T*, T*, int64_t, double, float); \
  template void gate(const T*, T*, int64_t, float, float);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#else
#include "op.h"

// every element once, whatever the strides; 0 and 1 are sizes without a stride
static bool dense(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t d = 0; d < t.dim(); d++) {
    if (t.size(d) != 1) dims.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (auto [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

static Tensor gate(const Tensor& weight, const Tensor& attention, const Tensor& threshold) {
  auto w = weight.numel() == 0 || dense(weight) ? weight : torch::stable::clone(weight);
  auto y = torch::stable::empty_like(w);
  double a = number(attention);
  float t = float(number(threshold));
  bool wide = attention.scalar_type() == ScalarType::Double || weight.scalar_type() == ScalarType::Double;
  by_dtype(weight.scalar_type(), [&](auto type) {
    auto from = in<decltype(type)>(w);
    auto to = out<decltype(type)>(y);
    parallel_for(0, w.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
      if (wide) {
        PICK(gate(from + begin, to + begin, end - begin, a, t));
      } else {
        PICK(gate(from + begin, to + begin, end - begin, float(a), t));
      }
    });
  });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("gate", TORCH_BOX(&gate)); }
#endif
