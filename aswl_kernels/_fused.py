"""What the fused optimizers share: the checks of their lists, and the statistics' shape."""

import math

import torch
from torch import Tensor

from aswl_kernels._checks import FLOATING, check_scalar, want


def check_lists(
    op: str,
    weights: list[Tensor],
    thresholds: list[Tensor],
    copies: list[Tensor] | None,
    grad_scale: Tensor | None,
    lr: float | Tensor,
    pruned_gradient: float | Tensor,
    pruned_decay: float,
    band: float,
    **alike: list[Tensor],
) -> None:
    """``alike`` holds lists of tensors of their weight's shape, dtype and device; ``copies`` may have another dtype."""
    lists = {"thresholds": thresholds, **alike} | ({} if copies is None else {"copies": copies})
    for name, tensors in lists.items():
        want(len(tensors) == len(weights), op, f"{len(weights)} {name}, one per weight", len(tensors))
    for i, weight in enumerate(weights):
        own = (weight.dtype, weight.shape, weight.device)
        fits = weight.dtype == weights[0].dtype and weight.device == weights[0].device
        want(weight.dtype in FLOATING and fits, op, "floating weights of one dtype on one device", weights[0], weight)
        for name, tensors in alike.items():
            other = tensors[i]
            fits = (other.dtype, other.shape, other.device) == own and other.layout == torch.strided
            want(fits, op, f"dense {name} of the weights' shapes, dtype and device", weight, other)
        check_scalar(op, "threshold", thresholds[i], weight)
        if copies is not None:
            fits = copies[i].dtype in FLOATING and (copies[i].shape, copies[i].device) == own[1:]
            want(fits, op, "floating copies of the weights' shapes and device", weight, copies[i])
    if grad_scale is not None and weights:
        check_scalar(op, "grad_scale", grad_scale, weights[0])
    check_number(op, "lr", lr, weights)
    check_number(op, "pruned_gradient", pruned_gradient, weights)
    if not isinstance(pruned_gradient, Tensor):
        want(0 <= pruned_gradient <= 1, op, "pruned_gradient in [0, 1]", pruned_gradient)
    want(0 <= pruned_decay < math.inf, op, "pruned_decay a number >= 0", pruned_decay)
    want(0 < band < 1, op, "band in (0, 1)", band)


def check_number(op: str, name: str, value: float | Tensor, weights: list[Tensor]) -> None:
    """A tensor in the place of a number has one element, and is on the CPU or with the weights; its value is not read."""
    if isinstance(value, Tensor) and weights:
        check_scalar(op, name, value, value if value.is_cpu else weights[0])


def parted(value: float | Tensor) -> tuple[float, Tensor | None]:
    """An operator's two arguments for a number or the tensor that holds it."""
    return (0.0, value) if isinstance(value, Tensor) else (value, None)


def fake(weights: list[Tensor], *args: object) -> Tensor:
    """The statistics, without values."""
    return torch.empty(len(weights), 3, dtype=torch.float64, device=weights[0].device if weights else None)
