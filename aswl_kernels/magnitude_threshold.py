"""Exact per-layer magnitude thresholds."""

import torch
from torch import Tensor

from aswl_kernels import native, reference
from aswl_kernels._checks import FLOATING, want
from aswl_kernels._library import LIBRARY, define
from aswl_kernels._triton import serve

_GUESSES: dict[torch.device, Tensor] = {}


def magnitude_threshold(weights: list[Tensor], keep: Tensor, guess: Tensor | None = None) -> Tensor:
    """Every layer's exact keep-th largest magnitude, in one call and without a copy to the host.

    ``weights``: L floating tensors of any shape on one device; ``keep``: int64 [L] on that device. Returns fp32 [L].
    Magnitudes are compared in fp32 (an fp64 weight is rounded first); a NaN counts as largest. ``keep`` above a
    layer's size means all of it; ``keep`` below 1, or an empty layer, gives +inf, which keeps nothing finite.
    ``guess``: floating [L], about what will come out, such as last step's thresholds; the result is the same with any
    and without, but a GPU finds it sooner with a good one (see :func:`threshold_guesses`). The CPU makes no use of it.
    Not differentiable. Raises ``ValueError`` on another dtype, shape or device.
    """
    weights = list(weights)
    want(
        keep.dtype == torch.int64 and keep.shape == (len(weights),),
        "magnitude_threshold",
        f"keep int64[{len(weights)}], one count per weight",
        keep,
    )
    strangers = [weight for weight in weights if weight.dtype not in FLOATING or weight.device != keep.device]
    wanted = f"floating weights on {keep.device}, keep's device"
    want(not strangers, "magnitude_threshold", wanted, *strangers[:1])
    if guess is not None:
        fits = guess.dtype in FLOATING and guess.shape == keep.shape and guess.device == keep.device
        want(fits, "magnitude_threshold", f"guess floating[{len(weights)}] on {keep.device}, like keep", guess)
    with torch.no_grad():
        if guess is None:
            return _magnitude_threshold(weights, keep)
        return _magnitude_threshold_near(weights, keep, guess)


def threshold_guesses(device: torch.device | str) -> Tensor:
    """How many thresholds of larger layers came out near their ``guess`` on this device, and how many did not: int64 [2]."""
    return guess_counter(torch.empty(0, device=device).device).clone()


def guess_counter(device: torch.device) -> Tensor:
    """What kernels count in. Its first use on a device must not be within the capture of a CUDA graph."""
    if device not in _GUESSES:
        _GUESSES[device] = torch.zeros(2, dtype=torch.int64, device=device)
    return _GUESSES[device]


def _cpu(weights: list[Tensor], keep: Tensor) -> Tensor:
    """Radix selection: a histogram of the upper 16 bits finds the bin, ``kthvalue`` the element within it."""
    return torch.stack([_select(w, k) for w, k in zip(weights, keep.tolist())]) if weights else torch.empty(0)


def _select(weight: Tensor, keep: int) -> Tensor:
    keep = min(keep, weight.numel())
    if keep < 1:
        return torch.tensor(float("inf"))
    bits = weight.abs().float().flatten().view(torch.int32)  # ordered like the magnitudes, NaN above inf
    upper = bits >> 16
    at_least = torch.bincount(upper, minlength=1 << 15).flip(0).cumsum(0)  # at_least[i]: weights in the top i + 1 bins
    top = int(torch.searchsorted(at_least, keep))
    above = int(at_least[top - 1]) if top > 0 else 0
    members = bits[upper == (1 << 15) - 1 - top]
    return members.kthvalue(len(members) - (keep - above) + 1).values.view(torch.float32)


def _fake(weights: list[Tensor], keep: Tensor) -> Tensor:
    return torch.empty_like(keep, dtype=torch.float32)


_magnitude_threshold = define(
    "magnitude_threshold(Tensor[] weights, Tensor keep) -> Tensor", reference.magnitude_threshold, _fake
)
serve("magnitude_threshold", "magnitude_threshold_triton", reference.magnitude_threshold)
_magnitude_threshold_near = define(
    "magnitude_threshold_near(Tensor[] weights, Tensor keep, Tensor guess) -> Tensor",
    lambda weights, keep, guess: _magnitude_threshold(weights, keep),
    lambda weights, keep, guess: _fake(weights, keep),
)
serve(
    "magnitude_threshold_near",
    "magnitude_threshold_triton",
    lambda weights, keep, guess: reference.magnitude_threshold(weights, keep),
)
if not native.AVAILABLE:
    LIBRARY.impl("magnitude_threshold", _cpu, "CPU")
