"""SGD's own part of the fused pass on a GPU."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels._fused_triton import Rule, Variant, either, launch


class Numbers(NamedTuple):
    momentum: float
    share: float
    decay: float
    pruned_decay: float  # the weight decay of pruned weights


@triton.jit
def prepare(lr, step, numbers):
    return (lr, numbers.momentum, numbers.share, numbers.decay, numbers.pruned_decay)


# The roundings are those of PyTorch's loop over single tensors, whose sums of two products are fused multiply-adds.
@triton.jit
def update(w, g, m, v, pruned, constants, VARIANT: tl.constexpr):
    lr, momentum, share, decay, pruned_decay = constants
    if VARIANT.decays:
        g = tl.fma(tl.where(pruned, pruned_decay, decay), w, g)
    if VARIANT.states > 0:
        m = g if VARIANT.first else tl.fma(share, g, m * momentum)
        g = tl.fma(momentum, m, g) if VARIANT.nesterov else m
    return tl.fma(-lr, g, w), m, v


def fused_sgd_(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    thresholds: list[Tensor],
    copies: list[Tensor],
    grad_scale: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    pruned_decay: float,
    pruned_gradient: float,
    band: float,
    lr_tensor: Tensor | None = None,
    pruned_gradient_tensor: Tensor | None = None,
) -> Tensor:
    """See :func:`aswl_kernels.fused_sgd_`."""
    numbers = Numbers(momentum, 1 - dampening, weight_decay, weight_decay * pruned_decay)
    states = [momenta] if momentum != 0 else []
    own = (maximize, weight_decay != 0, first, nesterov)
    rule = Rule(prepare, update, numbers, Variant(len(states), bool(copies), grad_scale is not None, *own))
    return launch(
        rule,
        weights,
        grads,
        states,
        thresholds,
        copies,
        [0.0] * len(weights),
        grad_scale,
        either(lr, lr_tensor, weights),
        either(pruned_gradient, pruned_gradient_tensor, weights),
        band,
    )
