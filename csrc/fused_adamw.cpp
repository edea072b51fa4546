// fused_adamw_: one pass of AdamW over pruned weights, with the sums that the method wants of it.
#include "fused.h"

// The numbers of one layer's step; the first two are what decay leaves of kept and of pruned weights, ``step_size`` and
// ``root`` hold the corrections of the two averages' bias.
struct AdamW {
  double decay, pruned_decay, lerp, beta2, step_size, root, eps;
};

KERNEL(template <class T> void fused_adamw(Part<T>& part, const Mask& mask, const AdamW& adamw))

#ifdef ISA
#if defined(__SSE2__) && !defined(__AVX2__)
#include <emmintrin.h>
#endif

namespace ISA {

static inline float root_of(float v) { return __builtin_sqrtf(v); }
static inline double root_of(double v) { return __builtin_sqrt(v); }
// maskz: GCC takes the undefined source operand of the plain intrinsic for a mistake of ours
#ifdef __AVX512F__
static inline Vec<float> root_of(Vec<float> v) { return _mm512_maskz_sqrt_ps(0xffff, v); }
static inline Vec<double> root_of(Vec<double> v) { return _mm512_maskz_sqrt_pd(0xff, v); }
#elif defined(__AVX2__)
static inline Vec<float> root_of(Vec<float> v) { return _mm256_sqrt_ps(v); }
static inline Vec<double> root_of(Vec<double> v) { return _mm256_sqrt_pd(v); }
#elif defined(__SSE2__)
static inline Vec<float> root_of(Vec<float> v) { return _mm_sqrt_ps(v); }
static inline Vec<double> root_of(Vec<double> v) { return _mm_sqrt_pd(v); }
#else
template <class V> static inline V root_of(V v) {
  for (size_t i = 0; i < sizeof(V) / sizeof(v[0]); i++) v[i] = root_of(v[i]);
  return v;
}
#endif

// The roundings are those of PyTorch's loop over single tensors, where the processor has fused multiply-adds, but for
// the root: PyTorch's is not always the nearest number.
template <class T> void fused_adamw(Part<T>& part, const Mask& mask, const AdamW& adamw) {
  using A = Wide<T>;
  const A decay = adamw.decay, pruned_decay = adamw.pruned_decay;
  const A lerp = adamw.lerp, beta2 = adamw.beta2, fresh = 1 - adamw.beta2;
  const A step = -adamw.step_size, root = adamw.root, eps = adamw.eps;
  const bool alike = mask.pruned_decay == 1;
  auto update = [=](auto w, auto g, auto* states, auto pruned) {
    auto kept = w * decay;
    w = alike ? kept : pruned ? w * pruned_decay : kept;
    auto m = states[0];
    states[0] = lerp < A(0.5) ? fma(lerp, g - m, m) : fma(lerp - 1, g - m, g);
    states[1] = fma(fresh * g, g, states[1] * beta2);
    return w + step * states[0] / (root_of(states[1]) / root + eps);
  };
  pass<2>(part, mask, update);
}

#define INSTANTIATE(T, A) template void fused_adamw(Part<T>&, const Mask&, const AdamW&);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#else
#include <cmath>

static Tensor fused_adamw(std::vector<Tensor> weights, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs,
                          std::vector<Tensor> exp_avg_sqs, std::vector<double> steps, std::vector<Tensor> step_tensors,
                          std::vector<Tensor> thresholds, std::vector<Tensor> copies, std::optional<Tensor> grad_scale,
                          double lr, double beta1, double beta2, double eps, double weight_decay, bool maximize,
                          double pruned_decay, double pruned_gradient, double band, std::optional<Tensor> lr_tensor,
                          std::optional<Tensor> pruned_gradient_tensor) {
  lr = number(lr_tensor, lr);
  std::vector<std::vector<Tensor>> states(weights.size());
  std::vector<AdamW> adamw;
  for (size_t l = 0; l < weights.size(); l++) {
    states[l] = {exp_avgs[l], exp_avg_sqs[l]};
    double step = step_tensors.empty() ? steps[l] : number(step_tensors[l]);
    adamw.push_back({1 - lr * weight_decay, 1 - lr * weight_decay * pruned_decay, 1 - beta1, beta2,
                     lr / (1 - std::pow(beta1, step)), std::sqrt(1 - std::pow(beta2, step)), eps});
  }
  return each_part(weights, grads, states, thresholds, copies, grad_scale,
                   {number(pruned_gradient_tensor, pruned_gradient), band, pruned_decay, maximize},
                   [&](auto& part, const Mask& mask, int64_t layer) { PICK(fused_adamw(part, mask, adamw[layer])); });
}

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("fused_adamw_", TORCH_BOX(&fused_adamw)); }
#endif
