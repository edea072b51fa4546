// What the operators share: PyTorch's stable interface, and the step from a tensor's dtype to a C++ type.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "vec.h"

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;

template <class T> const T* in(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }
template <class T> T* out(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

// f(T()) with the C++ type of a floating dtype
template <class F> void by_dtype(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double: return f(double());
    case ScalarType::Float: return f(float());
    case ScalarType::BFloat16: return f(bf16());
    case ScalarType::Half: return f(fp16());
    default: STD_TORCH_CHECK(false, "want a floating dtype");
  }
}

// the value of a tensor with one element
inline double number(const Tensor& t) {
  if (t.scalar_type() == ScalarType::Float) return *in<float>(t);
  if (t.scalar_type() == ScalarType::Double) return *in<double>(t);
  auto wide = torch::stable::to(t, ScalarType::Double);
  return *in<double>(wide);
}
inline double number(const std::optional<Tensor>& t, double otherwise) { return t ? number(*t) : otherwise; }

// every element once, whatever the strides; 0 and 1 are sizes without a stride
inline bool dense(const Tensor& t) {
  if (t.is_contiguous()) return true;
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

// dense in the same order; strides of sizes 0 and 1 do not count
inline bool same_order(const Tensor& a, const Tensor& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  for (int64_t d = 0; d < a.dim(); d++) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return dense(a);
}

// Room for ``count`` elements that the calling thread keeps for its next call, on huge pages where the system has them:
// with small ones, a product that jumps through a tile of 1 MB waits for the TLB.
template <class A> A* scratch(int64_t count) {
  struct Kept {
    void* memory = nullptr;
    size_t size = 0;
    ~Kept() { free(memory); }
  };
  static thread_local Kept kept;
  constexpr size_t PAGE = 1 << 21;
  size_t size = (count * sizeof(A) + PAGE - 1) / PAGE * PAGE;
  if (size > kept.size) {
    free(kept.memory);
    kept.memory = aligned_alloc(PAGE, size);
    kept.size = kept.memory ? size : 0;
    STD_TORCH_CHECK(kept.memory, "out of memory: ", size, " bytes");
#ifdef __linux__
    madvise(kept.memory, size, MADV_HUGEPAGE);
#endif
  }
  return static_cast<A*>(kept.memory);
}
