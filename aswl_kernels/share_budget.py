"""How many weights each layer keeps, under a budget for all of them together."""

import torch
from torch import Tensor

from aswl_kernels import reference_sharing
from aswl_kernels._checks import FLOATING, want
from aswl_kernels._library import define
from aswl_kernels._triton import serve


def share_budget(
    attention: Tensor, sizes: Tensor, budget: int | Tensor, alpha: float = 1.0, min_keep: int = 1
) -> tuple[Tensor, Tensor]:
    """Scale all densities 1 - (1 - attention)^alpha by one factor so that ``budget`` weights are kept, each layer between
    ``min_keep`` and all.

    ``attention``: floating [L]; ``sizes``: int64 [L], weights per layer, none 0; ``budget``: a number, or int64 0-d on
    their device. Returns the attentions of the scaled densities (as they came) and the kept counts (int64 [L]), whose sum
    is ``budget`` exactly wherever the layers' limits allow it: every layer gets its share rounded down, and what is then
    left goes to the largest remainders, the first layers first. Solved in closed form, in fp64: the kept total is
    piecewise linear in the factor, with a kink where a layer meets a limit. Nothing is copied to the host.
    Not differentiable. Raises ``ValueError`` on another dtype, shape, device or number.
    """
    op = "share_budget"
    check_layers(op, attention, sizes)
    want(alpha > 0, op, "alpha > 0", alpha)
    want(isinstance(min_keep, int) and min_keep >= 0, op, "min_keep >= 0", min_keep)
    if isinstance(budget, Tensor):
        fits = budget.dtype == torch.int64 and budget.dim() == 0 and budget.device == sizes.device
        want(fits, op, f"budget a number, or int64 0-d on {sizes.device}", budget)
    else:
        budget = torch.full((), budget, dtype=torch.int64, device=sizes.device)
    with torch.no_grad():
        return _share_budget(attention, sizes, budget, alpha, min_keep)


def check_layers(op: str, attention: Tensor, sizes: Tensor) -> None:
    """``attention`` floating [L], ``sizes`` int64 [L] on its device."""
    want(attention.dim() == 1 and attention.dtype in FLOATING, op, "attention floating [L]", attention)
    fits = (sizes.dtype, sizes.shape, sizes.device) == (torch.int64, attention.shape, attention.device)
    want(fits, op, f"sizes int64{list(attention.shape)} on {attention.device}", sizes)


_share_budget = define(
    "share_budget(Tensor attention, Tensor sizes, Tensor budget, float alpha, int min_keep) -> (Tensor, Tensor)",
    reference_sharing.share_budget,
    lambda attention, sizes, budget, alpha, min_keep: (torch.empty_like(attention), torch.empty_like(sizes)),
)
serve("share_budget", "share_budget_triton", reference_sharing.share_budget, wide=True)
