// fused_sgd_: one pass of SGD over pruned weights, with the sums that the method wants of it.
#include "fused.h"

struct Sgd {
  double lr, momentum, dampening, weight_decay;
  bool nesterov, first;
};

KERNEL(template <class T> void fused_sgd(Part<T>& part, const Mask& mask, const Sgd& sgd))

#ifdef ISA
namespace ISA {

// The roundings are those of PyTorch's loop over single tensors, where the processor has fused multiply-adds.
template <class T> void fused_sgd(Part<T>& part, const Mask& mask, const Sgd& sgd) {
  using A = Wide<T>;
  const A lr = sgd.lr, momentum = sgd.momentum, share = 1 - sgd.dampening, decay = sgd.weight_decay;
  const A pruned_decay = sgd.weight_decay * mask.pruned_decay;
  const bool nesterov = sgd.nesterov, first = sgd.first, alike = mask.pruned_decay == 1;
  auto decayed = [=](auto w, auto g, auto pruned) {
    auto kept = fma(decay, w, g);
    return alike ? kept : pruned ? fma(pruned_decay, w, g) : kept;
  };
  auto plain = [=](auto w, auto g, auto*, auto pruned) {
    return fma(-lr, decay == 0 ? g : decayed(w, g, pruned), w);
  };
  auto with_momentum = [=](auto w, auto g, auto* states, auto pruned) {
    if (decay != 0) g = decayed(w, g, pruned);
    states[0] = first ? g : fma(share, g, states[0] * momentum);
    return fma(-lr, nesterov ? fma(momentum, states[0], g) : states[0], w);
  };
  if (sgd.momentum == 0) {
    pass<0>(part, mask, plain);
  } else {
    pass<1>(part, mask, with_momentum);
  }
}

#define INSTANTIATE(T, A) template void fused_sgd(Part<T>&, const Mask&, const Sgd&);
EACH_DTYPE(INSTANTIATE)

}  // namespace ISA
#else

static Tensor fused_sgd(std::vector<Tensor> weights, std::vector<Tensor> grads, std::vector<Tensor> momenta,
                        std::vector<Tensor> thresholds, std::vector<Tensor> copies, std::optional<Tensor> grad_scale,
                        double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
                        bool first, double pruned_decay, double pruned_gradient, double band,
                        std::optional<Tensor> lr_tensor, std::optional<Tensor> pruned_gradient_tensor) {
  Sgd sgd = {number(lr_tensor, lr), momentum, dampening, weight_decay, nesterov, first};
  std::vector<std::vector<Tensor>> states(weights.size());
  for (size_t l = 0; l < weights.size() && momentum != 0; l++) states[l] = {momenta[l]};
  return each_part(weights, grads, states, thresholds, copies, grad_scale,
                   {number(pruned_gradient_tensor, pruned_gradient), band, pruned_decay, maximize},
                   [&](auto& part, const Mask& mask, int64_t) { PICK(fused_sgd(part, mask, sgd)); });
}

STABLE_TORCH_LIBRARY_IMPL(aswl, CPU, m) { m.impl("fused_sgd_", TORCH_BOX(&fused_sgd)); }
#endif
