"""The gate on a GPU: one read of the weight, one write; the attention's gradient in one read of weight and gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels._triton import on, ordered

BLOCK = 4096  # elements of a program: 16 bytes for each of 128 threads, four times in fp32
WARPS = 4
CHUNK = 16  # blocks of one partial sum: 1e8 weights make 1,526 of them


@triton.jit
def gate_kernel(w_ptr, a_ptr, t_ptr, y_ptr, n, SCALED: tl.constexpr, FIRM: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK
    t = tl.load(t_ptr).to(tl.float32)
    a = tl.load(a_ptr).to(tl.float32) if SCALED else 1.0
    offsets = tl.max_contiguous(tl.multiple_of(tl.arange(0, BLOCK), 16), 16)
    if i + BLOCK <= n:  # without a mask, the accesses are 16 bytes wide
        w = tl.load(w_ptr + i + offsets)
        tl.store(y_ptr + i + offsets, gated(w, a, t, SCALED, FIRM).to(y_ptr.dtype.element_ty))
    else:
        w = tl.load(w_ptr + i + offsets, mask=i + offsets < n, other=0.0)
        y = gated(w, a, t, SCALED, FIRM).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + i + offsets, y, mask=i + offsets < n)


@triton.jit
def gated(w, a, t, SCALED: tl.constexpr, FIRM: tl.constexpr):
    """a w where abs(w) >= t or w is NaN, shrunk before where FIRM, rounded to w's dtype."""
    value, magnitude = w.to(tl.float32), tl.abs(w.to(tl.float32))
    if FIRM:
        lost = tl.minimum(4 * (1.25 * t - magnitude), t - t / 64)
        value = tl.where(magnitude < 1.25 * t, tl.where(value < 0, value + lost, value - lost), value)
    kept = tl.where(magnitude < t, 0.0, value)
    return (a * kept).to(w.dtype) if SCALED else kept.to(w.dtype)


@triton.jit
def attention_gradient_kernel(g_ptr, w_ptr, t_ptr, sums_ptr, n, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    chunk = tl.program_id(0).to(tl.int64)
    t = tl.load(t_ptr).to(tl.float32)
    offsets = tl.max_contiguous(tl.multiple_of(tl.arange(0, BLOCK), 16), 16)
    total = tl.zeros([BLOCK], tl.float32)
    for block in range(CHUNK):
        i = (chunk * CHUNK + block) * BLOCK
        if i + BLOCK <= n:
            w, g = tl.load(w_ptr + i + offsets), tl.load(g_ptr + i + offsets)
        else:
            w = tl.load(w_ptr + i + offsets, mask=i + offsets < n, other=0.0)
            g = tl.load(g_ptr + i + offsets, mask=i + offsets < n, other=0.0)
        total += g.to(tl.float32) * tl.where(tl.abs(w.to(tl.float32)) < t, 0.0, w.to(tl.float32))
    tl.store(sums_ptr + chunk, tl.sum(total))


def gate(
    weight: Tensor, attention: Tensor | None, threshold: Tensor, dtype: torch.dtype | None = None, firm: bool = False
) -> Tensor:
    """See :func:`aswl_kernels.gate`; strides are the weight's where it has no gaps."""
    y = torch.empty_like(weight, dtype=dtype)
    weight, n = ordered(weight, y), weight.numel()
    if n:
        with on(weight):
            grid = (triton.cdiv(n, BLOCK),)
            args = weight, attention, threshold, y, n, attention is not None, firm, BLOCK
            gate_kernel[grid](*args, num_warps=WARPS)
    return y


def attention_gradient(grad: Tensor, weight: Tensor, attention: Tensor, threshold: Tensor) -> Tensor:
    """``sum(grad * sparse)`` in fp32, of fixed chunks one by one, as the attention."""
    n = weight.numel()
    layout = torch.empty_like(weight, device="meta")
    grad, weight = ordered(grad, layout), ordered(weight, layout)
    sums = torch.empty(triton.cdiv(n, CHUNK * BLOCK), dtype=torch.float32, device=weight.device)
    if n:
        with on(weight):
            args = grad, weight, threshold, sums, n, CHUNK, BLOCK
            attention_gradient_kernel[sums.shape](*args, num_warps=WARPS)
    return sums.sum().to(attention.dtype).reshape(attention.shape)
