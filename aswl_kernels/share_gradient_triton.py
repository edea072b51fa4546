"""The attentions' gradient in one launch: the layers are few, and twenty launches for them would cost more than their
weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels import reference_sharing
from aswl_kernels._triton import on


@triton.jit
def share_gradient_kernel(
    signal_ptr,
    observed_ptr,
    worth_ptr,
    counts_ptr,
    attention_ptr,
    sizes_ptr,
    grad_ptr,
    n_layers,
    stride_worth,
    stride_counts,
    least_weight,
    LAYERS: tl.constexpr,
):
    layer = tl.arange(0, LAYERS)
    here = layer < n_layers
    seen = tl.load(observed_ptr) + 1
    weight = tl.maximum(1 / seen, least_weight)
    signal = tl.load(signal_ptr + layer, mask=here, other=0.0)
    worth = tl.load(worth_ptr + layer * stride_worth, mask=here, other=0.0)
    if counts_ptr is not None:
        worth = -worth / tl.maximum(tl.load(counts_ptr + layer * stride_counts, mask=here, other=1.0), 1.0)
    signal = signal + weight * (worth.to(tl.float32) - signal)
    tl.store(signal_ptr + layer, signal, mask=here)
    tl.debug_barrier()  # every thread has read the count
    tl.store(observed_ptr, seen)

    density = tl.load(attention_ptr + layer, mask=here, other=1.0).to(tl.float32)  # alpha is 1
    density = 1 - (1 - tl.clamp(density, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL))
    kept = tl.where(density >= 1, 0.0, density * tl.load(sizes_ptr + layer, mask=here, other=0).to(tl.float32))
    mean, typical = tl.sum(kept * signal), tl.sum(kept * tl.abs(signal))
    advantage = (signal * tl.sum(kept) - mean) / tl.maximum(typical, 1e-30)
    held = tl.clamp(advantage, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(grad_ptr + layer, -density * held, mask=here)


def share_gradient_(
    signal: Tensor,
    observed: Tensor,
    worth: Tensor,
    attention: Tensor,
    sizes: Tensor,
    alpha: float,
    smoothing: float,
    counts: Tensor | None = None,
) -> Tensor:
    """See :func:`aswl_kernels.share_gradient_`; another ``alpha`` than 1 goes to the reference."""
    if alpha != 1 or attention.dtype == torch.float64 or not signal.is_contiguous():
        return reference_sharing.share_gradient_(signal, observed, worth, attention, sizes, alpha, smoothing, counts)
    grad, n = torch.empty_like(attention), len(attention)
    layers = triton.next_power_of_2(max(n, 1))
    args = signal, observed, worth, counts, attention.contiguous(), sizes.contiguous(), grad, n
    strides = worth.stride(0), 0 if counts is None else counts.stride(0)
    with on(attention):
        share_gradient_kernel[(1,)](*args, *strides, 1 - smoothing, LAYERS=layers)
    return grad
