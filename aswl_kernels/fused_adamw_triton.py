"""AdamW's own part of the fused pass on a GPU."""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels._fused_triton import Rule, Variant, either, launch


class Numbers(NamedTuple):
    lerp: float  # 1 - beta1
    beta2: float
    fresh: float  # 1 - beta2
    log_beta1: float
    log_beta2: float
    eps: float
    decay: float
    pruned_decay: float  # the weight decay of pruned weights


@triton.jit
def prepare(lr, step, numbers):
    """The step's size and the root's factor, which correct the averages' biases; what weight decay leaves, and the
    fraction of that which is left in pruned weights.
    """
    size = lr / _one_less_power(numbers.log_beta1, step)
    factor = 1 / tl.sqrt_rn(_one_less_power(numbers.log_beta2, step))
    left = 1 - lr * numbers.decay
    return (size, factor, left, (1 - lr * numbers.pruned_decay) / left, numbers)


@triton.jit
def _one_less_power(log_beta, step):
    """1 - beta ** step in fp32, by a series where the difference would lose its digits."""
    x = -step * log_beta
    series = 1 - x / 7 * (1 - x / 8)
    series = 1 - x / 5 * (1 - x / 6 * series)
    series = 1 - x / 3 * (1 - x / 4 * series)
    return tl.where(x < 0.5, x * (1 - x / 2 * series), 1 - tl.exp(-x))


# The roundings are those of PyTorch's loop over single tensors but for the correction of the root, which is a product.
@triton.jit
def update(w, g, m, v, pruned, constants, VARIANT: tl.constexpr):
    size, factor, left, pruned_left, numbers = constants
    if VARIANT.decays:
        w = tl.where(pruned, w * pruned_left, w) * left  # one factor or the other instead would take more registers
    near = numbers.lerp < 0.5  # as torch.lerp, which starts at the nearer end
    m = tl.fma(tl.where(near, numbers.lerp, numbers.lerp - 1), g - m, tl.where(near, m, g))
    v = tl.fma(numbers.fresh * g, g, v * numbers.beta2)
    return w - tl.div_rn(size * m, tl.sqrt_rn(v) * factor + numbers.eps), m, v


def fused_adamw_(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[float],
    step_tensors: list[Tensor],
    thresholds: list[Tensor],
    copies: list[Tensor],
    grad_scale: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    pruned_decay: float,
    pruned_gradient: float,
    band: float,
    lr_tensor: Tensor | None = None,
    pruned_gradient_tensor: Tensor | None = None,
) -> Tensor:
    """See :func:`aswl_kernels.fused_adamw_`."""
    logs = [math.log(max(beta, 1e-30)) for beta in (beta1, beta2)]
    numbers = Numbers(1 - beta1, beta2, 1 - beta2, *logs, eps, weight_decay, weight_decay * pruned_decay)
    variant = Variant(2, bool(copies), grad_scale is not None, maximize, weight_decay != 0)
    if step_tensors:
        steps = [either(0.0, step, weights) for step in step_tensors]
    return launch(
        Rule(prepare, update, numbers, variant),
        weights,
        grads,
        [exp_avgs, exp_avg_sqs],
        thresholds,
        copies,
        steps,
        grad_scale,
        either(lr, lr_tensor, weights),
        either(pruned_gradient, pruned_gradient_tensor, weights),
        band,
    )
