"""The gradient of the attentions that share a budget."""

import torch
from torch import Tensor

from aswl_kernels import reference_sharing
from aswl_kernels._checks import FLOATING, want
from aswl_kernels._library import define
from aswl_kernels._triton import serve
from aswl_kernels.share_budget import check_layers


def share_gradient_(
    signal: Tensor,
    observed: Tensor,
    worth: Tensor,
    attention: Tensor,
    sizes: Tensor,
    alpha: float = 1.0,
    smoothing: float = 0.99,
    counts: Tensor | None = None,
) -> Tensor:
    """The attentions' gradient that lets a plain optimizer step d(log density) = lr (v - mean v) / mean(abs(v)), v being
    the smoothed ``worth`` of one more kept weight in each layer.

    ``signal``: fp32 [L], v, takes ``worth`` (floating [L]) in by an exponential average with ``smoothing``, in place, a
    plain mean while few were seen; ``observed``: fp32 0-d, how many, counted in place; ``attention``: floating [L];
    ``sizes``: int64 [L]; ``counts``: as ``worth``, or None; where given, ``worth`` holds sums of gradient times weight
    over so many weights, and the worth is their negated mean, 0 over none. Means are over the kept weights of layers
    that still have pruned ones (a full layer takes no part in the sharing), and the quotient is held within [-1, 1]
    lest a small layer's noise throw its share about. Together with :func:`share_budget`, which scales all densities by
    one factor, this comes to rest exactly where a further weight is worth the same in every layer, the optimum under a
    budget; a step along the plain gradient, n v d(density)/da, would not. Returns the gradient, [L] as the attentions.
    Not differentiable. Raises ``ValueError`` on another dtype, shape, device or number.
    """
    op = "share_gradient_"
    check_layers(op, attention, sizes)
    own = (attention.shape, attention.device)
    fits = signal.dtype == torch.float32 and (signal.shape, signal.device) == own
    want(fits, op, f"signal float32{list(attention.shape)} on {attention.device}", signal)
    for name, values in (("worth", worth), ("counts", counts)):
        fits = values is None or (values.dtype in FLOATING and (values.shape, values.device) == own)
        want(fits, op, f"{name} floating {list(attention.shape)} on {attention.device}", values)
    fits = observed.dtype == torch.float32 and observed.dim() == 0 and observed.device == attention.device
    want(fits, op, f"observed float32 0-d on {attention.device}", observed)
    want(alpha > 0 and 0 <= smoothing < 1, op, "alpha > 0 and smoothing in [0, 1)", alpha, smoothing)
    with torch.no_grad():
        return _share_gradient(signal, observed, worth, attention, sizes, alpha, smoothing, counts)


_share_gradient = define(
    "share_gradient_(Tensor(a!) signal, Tensor(b!) observed, Tensor worth, Tensor attention, Tensor sizes, float alpha, "
    "float smoothing, Tensor? counts=None) -> Tensor",
    reference_sharing.share_gradient_,
    lambda signal, observed, worth, attention, *options: torch.empty_like(attention),
)
serve("share_gradient_", "share_gradient_triton", reference_sharing.share_gradient_, wide=True)
