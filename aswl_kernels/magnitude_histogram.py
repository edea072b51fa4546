"""Histograms of magnitudes, byte by byte: what a selection over many devices adds up."""

import torch
from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._checks import FLOATING, want
from aswl_kernels._library import define
from aswl_kernels._triton import serve


def magnitude_histogram(weights: list[Tensor], prefix: Tensor, shift: int) -> Tensor:
    """How many of each layer's magnitudes have each byte at ``shift`` of their bits behind ``prefix``: int64 [L, 256].

    ``weights``: L floating tensors of any shape on one device; ``prefix``: int32 [L] on that device; ``shift``: 24, 16,
    8 or 0. A magnitude counts if its bits from ``shift + 8`` on are its layer's ``prefix``. They are those of fp32, or
    of bf16 or fp16 and then 16 zeros (fp64 is rounded to fp32): ordered like the numbers, NaN above inf. Raises
    ``ValueError`` on another dtype, shape, device or shift.
    """
    weights = list(weights)
    wanted = f"prefix int32[{len(weights)}], one per weight"
    want(prefix.dtype == torch.int32 and prefix.shape == (len(weights),), "magnitude_histogram", wanted, prefix)
    strangers = [weight for weight in weights if weight.dtype not in FLOATING or weight.device != prefix.device]
    wanted = f"floating weights on {prefix.device}, prefix's device"
    want(not strangers, "magnitude_histogram", wanted, *strangers[:1])
    want(shift in (24, 16, 8, 0), "magnitude_histogram", "shift 24, 16, 8 or 0", shift)
    with torch.no_grad():
        return _magnitude_histogram(weights, prefix, shift)


_magnitude_histogram = define(
    "magnitude_histogram(Tensor[] weights, Tensor prefix, int shift) -> Tensor",
    reference.magnitude_histogram,
    lambda weights, prefix, shift: prefix.new_empty(len(weights), 256, dtype=torch.int64),
)
serve("magnitude_histogram", "magnitude_histogram_triton", reference.magnitude_histogram)
