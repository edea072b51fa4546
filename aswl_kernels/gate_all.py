"""The masks of many weights at once."""

from itertools import accumulate

import torch
from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._checks import FLOATING, check_scalar, want
from aswl_kernels._library import define
from aswl_kernels._triton import serve

ALIGNED = 16  # elements between the beginnings of two masked weights divide by it: 32 bytes or more


def gate_all(
    weights: list[Tensor], thresholds: list[Tensor], dtype: torch.dtype | None = None, firm: bool = False
) -> list[Tensor]:
    """Each weight where ``abs(weight) >= threshold``, else 0, as :func:`gate` with attention 1, in one launch on a GPU.

    ``weights``: L floating tensors of one dtype on one device; ``thresholds``: one element each, there; ``dtype``: of the
    results, floating, None meaning the weights'; ``firm``: as in :func:`gate`. The results are parts of one piece of
    memory, with the weights' shapes, and their strides where those leave no gaps. Not differentiable. Raises
    ``ValueError`` on another dtype, shape or device.
    """
    op = "gate_all"
    want(len(weights) == len(thresholds), op, f"{len(weights)} thresholds, one per weight", len(thresholds))
    want(dtype is None or dtype in FLOATING, op, "a floating dtype", dtype)
    for weight, threshold in zip(weights, thresholds):
        fits = weight.dtype in FLOATING and (weight.dtype, weight.device) == (weights[0].dtype, weights[0].device)
        want(fits, op, "floating weights of one dtype on one device", weights[0], weight)
        check_scalar(op, "threshold", threshold, weight)
    if not weights:
        return []
    with torch.no_grad():
        memory = _gate_all(weights, thresholds, dtype, firm)
    layouts = [torch.empty_like(weight, device="meta") for weight in weights]
    return [memory.as_strided(t.shape, t.stride(), begin) for t, begin in zip(layouts, begins(weights))]


def begins(weights: list[Tensor]) -> list[int]:
    """Where each masked weight begins in the memory of all, in elements; and where the last one ends."""
    return [0, *accumulate(-(-weight.numel() // ALIGNED) * ALIGNED for weight in weights)]


def _reference(
    weights: list[Tensor], thresholds: list[Tensor], dtype: torch.dtype | None = None, firm: bool = False
) -> Tensor:
    memory, begin = _fake(weights, thresholds, dtype), begins(weights)
    for i, (weight, threshold) in enumerate(zip(weights, thresholds)):
        layout = torch.empty_like(weight, device="meta")
        values = reference.gate(weight, None, threshold, firm=firm)
        memory.as_strided(layout.shape, layout.stride(), begin[i]).copy_(values)
    return memory


def _fake(
    weights: list[Tensor], thresholds: list[Tensor], dtype: torch.dtype | None = None, firm: bool = False
) -> Tensor:
    return weights[0].new_empty(begins(weights)[-1], dtype=dtype or weights[0].dtype)


_gate_all = define(
    "gate_all(Tensor[] weights, Tensor[] thresholds, ScalarType? dtype=None, bool firm=False) -> Tensor",
    _reference,
    _fake,
)
serve("gate_all", "gate_all_triton", _reference)
