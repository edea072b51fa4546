"""SGD and what the method wants of the same weights and gradients, in one pass."""

from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._fused import check_lists, fake, parted
from aswl_kernels._library import define
from aswl_kernels._triton import serve


def fused_sgd_(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    thresholds: list[Tensor],
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
    pruned_decay: float = 1.0,
    pruned_gradient: float | Tensor = 1.0,
    band: float = 0.15,
    grad_scale: Tensor | None = None,
    copies: list[Tensor] | None = None,
) -> Tensor:
    """One step of ``torch.optim.SGD`` on L weights in place, by masked gradients, and the sums that steer the method.

    ``weights``, ``grads``, ``momenta`` (empty where ``momentum`` is 0): L floating tensors each, alike in shape, dtype
    and device; ``thresholds``: L tensors of one element. A weight is pruned where its magnitude, in fp32, was below the
    threshold before the step; its gradient is multiplied by ``pruned_gradient``, and its weight decay by
    ``pruned_decay``. ``first``: the momenta hold nothing yet. Gradients are divided by ``grad_scale`` (one element)
    first and stay as they are. ``copies``: L floating tensors of the weights' shapes that take the new weights masked
    by the same thresholds. ``lr`` and ``pruned_gradient`` may be tensors of one element, on the weights' device (so
    that a CUDA graph finds new values in them) or on the CPU; their values are not checked. Inside, narrow dtypes are
    computed in fp32. Returns the sums of the step, fp64 [L, 3], taken before the update: ``sum(grad * sparse)``, the
    sum of ``grad * weight`` over the magnitudes within ``band`` of the threshold, and how many those are. Not
    differentiable. Raises ``ValueError`` on another dtype, shape, device or number.
    """
    alike = {"grads": grads} | ({"momenta": momenta} if momentum != 0 else {})
    check_lists("fused_sgd_", weights, thresholds, copies, grad_scale, lr, pruned_gradient, pruned_decay, band, **alike)
    (lr, lr_tensor), (pruned_gradient, pruned_gradient_tensor) = parted(lr), parted(pruned_gradient)
    return _fused_sgd(
        weights,
        grads,
        momenta,
        thresholds,
        copies or [],
        grad_scale,
        lr,
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        first,
        pruned_decay,
        pruned_gradient,
        band,
        lr_tensor,
        pruned_gradient_tensor,
    )


_fused_sgd = define(
    "fused_sgd_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] momenta, Tensor[] thresholds, Tensor(c!)[] copies, "
    "Tensor? grad_scale, float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, "
    "bool first, float pruned_decay, float pruned_gradient, float band, Tensor? lr_tensor=None, Tensor? "
    "pruned_gradient_tensor=None) -> Tensor",
    reference.fused_sgd_,
    fake,
)
serve("fused_sgd_", "fused_sgd_triton", reference.fused_sgd_)
