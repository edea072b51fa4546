"""From attentions to kept counts, and from gradients to what the attentions should follow.

Vectors are [L], one entry per pruned weight, on the model's device; nothing here copies to the host.
"""

import torch
from torch import Tensor

FLOOR = 0.01  # smallest attention, and smallest kept fraction, of the paper's mode


def pruning_ratio(attention: Tensor, alpha: float) -> Tensor:
    """p = clip((1 - a)^alpha, 0, 0.99) (arXiv 2111.02399), differentiable at a = 1, too, where training starts: linear in
    the last thousandth, or the slope there would be 0 or infinite.
    """
    gap = torch.where(attention > 1, 0, 1 - attention)  # at a bound clamp has no gradient in torch 2.15
    ratio = gap * gap.clamp(min=1e-3).pow(alpha - 1)
    return torch.where(ratio > 1 - FLOOR, 1 - FLOOR, ratio)


def keep_count(attention: Tensor, sizes: Tensor, alpha: float, min_keep: int) -> Tensor:
    """k = n - floor(p n), int64 [L], never below ``min_keep`` (or n, where a layer is smaller)."""
    pruned = (pruning_ratio(attention.double(), alpha) * sizes).floor().long()
    return torch.maximum(sizes - pruned, sizes.clamp(max=min_keep))


def soft_density(attention: Tensor, sizes: Tensor, alpha: float) -> Tensor:
    """S(a): the kept fraction of all weights without rounding, differentiable, 0-d."""
    return ((1 - pruning_ratio(attention, alpha)) * sizes).sum() / sizes.sum()


def marginal_value(weight: Tensor, grad: Tensor, threshold: Tensor, band: float) -> Tensor:
    """What one more kept weight is worth: -mean(grad * weight) over the magnitudes within ``band`` of the threshold.

    Keeping a further fraction dq of a layer of n weights adds the n dq weights just below the threshold, and so to first
    order lowers the loss by n dq times this. ``grad`` is that of the sparse weight, dense; an empty band gives 0.
    Returns fp32, 0-d.
    """
    magnitude = weight.abs().float()
    near = (magnitude >= (1 - band) * threshold) & (magnitude <= (1 + band) * threshold)
    product = (grad.float() * weight.float()).masked_fill(~near, 0)
    return -product.sum() / near.sum().clamp(min=1)
