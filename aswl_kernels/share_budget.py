"""How many weights each layer keeps, under a budget for all of them together."""

import torch
from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._checks import FLOATING, want
from aswl_kernels._library import define
from aswl_kernels._triton import serve


def share_budget(density: Tensor, sizes: Tensor, budget: int | Tensor, min_keep: int) -> tuple[Tensor, Tensor]:
    """Scale all densities by one factor so that ``budget`` weights are kept, each layer between ``min_keep`` and all.

    ``density``: floating [L], above 0; ``sizes``: int64 [L], weights per layer; ``budget``: a number, or int64 0-d on
    their device. Returns the scaled densities (fp64 [L]) and the kept counts (int64 [L]), whose sum is ``budget`` exactly
    wherever the layers' limits allow it: every layer gets its share rounded down, and what is then left goes to the
    largest remainders, the first layers first. Solved in closed form: the kept total is piecewise linear in the factor,
    with a kink where a layer meets a limit. Nothing is copied to the host. Not differentiable.
    Raises ``ValueError`` on another dtype, shape or device.
    """
    op = "share_budget"
    want(density.dim() == 1 and density.dtype in FLOATING, op, "density floating [L]", density)
    like = sizes.dtype == torch.int64 and sizes.shape == density.shape and sizes.device == density.device
    want(like, op, f"sizes int64{list(density.shape)} on {density.device}", sizes)
    want(isinstance(min_keep, int) and min_keep >= 0, op, "min_keep >= 0", min_keep)
    if isinstance(budget, Tensor):
        fits = budget.dtype == torch.int64 and budget.dim() == 0 and budget.device == density.device
        want(fits, op, f"budget a number, or int64 0-d on {density.device}", budget)
    else:
        budget = torch.full((), budget, dtype=torch.int64, device=density.device)
    with torch.no_grad():
        return _share_budget(density.double(), sizes, budget, min_keep)


_share_budget = define(
    "share_budget(Tensor density, Tensor sizes, Tensor budget, int min_keep) -> (Tensor, Tensor)",
    reference.share_budget,
    lambda density, sizes, budget, min_keep: (torch.empty_like(density), torch.empty_like(sizes)),
)
serve("share_budget", "share_budget_triton", reference.share_budget, wide=True)
