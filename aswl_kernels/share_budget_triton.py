"""Sharing a budget in one launch: the layers are few, and thirty launches for them would cost more than their masks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels import reference_sharing
from aswl_kernels._triton import on

TILE = 2048  # kinks times layers in flight
WARPS = 8  # with 4, Triton 3.6 spills around divisions of fp64


@triton.jit
def share_budget_kernel(
    attention_ptr,
    sizes_ptr,
    budget_ptr,
    scaled_ptr,
    keep_ptr,
    n_layers,
    min_keep,
    ROWS: tl.constexpr,
    LAYERS: tl.constexpr,
):
    layer, rows = tl.arange(0, LAYERS), tl.arange(0, ROWS)
    here = layer < n_layers
    budget = tl.load(budget_ptr).to(tl.float64)
    wanted, least, most = _limits(attention_ptr, sizes_ptr, layer, here, min_keep)

    # the last kink whose total is below the budget, and the first that is not: totals grow from kink to kink
    infinite = float("inf")
    low = tl.full([], -infinite, tl.float64)
    high = tl.full([], infinite, tl.float64)
    for first in range(0, 2 * n_layers, ROWS):
        i = first + rows
        given = i < 2 * n_layers
        wanted_i, least_i, most_i = _limits(attention_ptr, sizes_ptr, i % n_layers, given, min_keep)
        given = given & (wanted_i > 0)  # an empty layer has no kink
        kink = tl.where(i < n_layers, least_i, most_i) / tl.where(given, wanted_i, 1.0)
        total = tl.sum(_kept(kink[:, None], wanted[None, :], least[None, :], most[None, :]), 1)
        low = tl.maximum(low, tl.max(tl.where(given & (total < budget), kink, -infinite)))
        high = tl.minimum(high, tl.min(tl.where(given & (total >= budget), kink, infinite)))
    low = tl.where(low == -infinite, high, low)  # the limits leave no choice
    high = tl.where(high == infinite, low, high)
    below, above = tl.sum(_kept(low, wanted, least, most)), tl.sum(_kept(high, wanted, least, most))
    part = tl.minimum(tl.maximum((budget - below) / tl.maximum(above - below, 1e-30), 0.0), 1.0)
    exact = _kept(low + part * (high - low), wanted, least, most)

    keep = tl.minimum(tl.floor(exact + 1e-9 * most), most)  # 2.9999999996 is 3
    spare = budget - tl.sum(keep)
    remainder = tl.where(here, tl.where(keep >= most, -1.0, exact - keep), -2.0)
    for first in range(0, n_layers, ROWS):
        i = first + rows
        own = tl.sum(tl.where(i[:, None] == layer[None, :], remainder[None, :], 0.0), 1)[:, None]
        ahead = (remainder[None, :] > own) | ((remainder[None, :] == own) & (layer[None, :] < i[:, None]))
        rank = tl.sum(ahead.to(tl.int32), 1)
        own_keep = tl.sum(tl.where(i[:, None] == layer[None, :], keep[None, :], 0.0), 1)
        own_most = tl.load(sizes_ptr + i, mask=i < n_layers, other=0).to(tl.float64)
        kept = tl.minimum(own_keep + (rank < spare).to(tl.float64), own_most)
        tl.store(keep_ptr + i, kept.to(tl.int64), mask=i < n_layers)
    density = exact / tl.where(here, most, 1.0)
    tl.store(scaled_ptr + layer, (1 - (1 - density)).to(scaled_ptr.dtype.element_ty), mask=here)


@triton.jit
def _limits(attention_ptr, sizes_ptr, layer, here, min_keep):
    """What each layer asks for, must keep, and has; fp64. With alpha 1, the attention is the density."""
    most = tl.load(sizes_ptr + layer, mask=here, other=0).to(tl.float64)
    attention = tl.load(attention_ptr + layer, mask=here, other=1.0).to(tl.float64)
    density = 1 - (1 - tl.minimum(tl.maximum(attention, 0.0), 1.0))
    return tl.maximum(density, 1e-9) * most, tl.minimum(most, min_keep), most


@triton.jit
def _kept(factor, wanted, least, most):
    return tl.minimum(tl.maximum(factor * wanted, least), most)


def share_budget(
    attention: Tensor, sizes: Tensor, budget: Tensor, alpha: float, min_keep: int
) -> tuple[Tensor, Tensor]:
    """See :func:`aswl_kernels.share_budget`; another ``alpha`` than 1 goes to the reference."""
    if alpha != 1:
        return reference_sharing.share_budget(attention, sizes, budget, alpha, min_keep)
    scaled, keep, n = torch.empty_like(attention), torch.empty_like(sizes), len(sizes)
    if n:
        layers = triton.next_power_of_2(n)
        args = attention.contiguous(), sizes.contiguous(), budget, scaled, keep, n, min_keep
        with on(attention):
            rows = min(max(TILE // layers, 1), layers)
            share_budget_kernel[(1,)](*args, ROWS=rows, LAYERS=layers, num_warps=WARPS)
    return scaled, keep
