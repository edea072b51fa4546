"""Linear product of few rows with a gap-coded weight."""

import torch
from torch import Tensor

from aswl_kernels import reference_gaps as reference
from aswl_kernels._checks import check_operands, to_autocast, want
from aswl_kernels._library import define, vmap_by
from aswl_kernels._triton import serve
from aswl_kernels.gaps import GapWeight, check_gaps, gather_gaps, scatter_gaps


def gap_linear(x: Tensor, packed: GapWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ unpack_gaps(packed).T + bias``; on a GPU bound by reading ``packed`` where x has few rows.

    ``x``: [..., in]; ``packed``: of shape (out, in); ``bias``: [out]. Dtypes and autocast as in :func:`masked_linear`.
    Returns [..., out] in x's dtype. Differentiable in x, ``packed.values`` (in slots that hold one) and bias. For more
    than 16 rows the weight is unpacked in each call, as it is for the gradient of x.
    Raises ``ValueError`` on another dtype, shape or device.
    """
    op = "gap_linear"
    x = to_autocast(x)
    check_gaps(op, packed)
    check_operands(op, x, packed.values.new_empty(1).expand(packed.shape[0], 1), bias)
    want(x.dim() >= 1 and x.shape[-1] == packed.shape[1], op, f"x [..., {packed.shape[1]}]", x)
    return _GapLinear.apply(x, packed.values, *packed.indices, bias if bias is None else bias.to(x.dtype))


class _GapLinear(torch.autograd.Function):
    vmap = vmap_by(reference.gap_linear)

    @staticmethod
    def forward(x, values, codes, offsets, lengths, bias):
        return gap_linear_op(x, values, codes, offsets, lengths, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5])

    @staticmethod
    def backward(ctx, grad):
        x, values, *indices = ctx.saved_tensors
        rows, inputs = (torch.atleast_2d(t).flatten(0, -2) for t in (grad, x))
        x_grad = values_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = grad @ scatter_gaps(values, *indices, (grad.shape[-1], x.shape[-1])).to(grad.dtype)
        if ctx.needs_input_grad[1]:
            values_grad = gather_gaps(rows.mT @ inputs, *indices).to(values.dtype)
        return x_grad, values_grad, None, None, None, rows.sum(0) if ctx.needs_input_grad[5] else None


gap_linear_op = define(
    "gap_linear(Tensor x, Tensor values, Tensor codes, Tensor offsets, Tensor lengths, Tensor? bias) -> Tensor",
    reference.gap_linear,
    lambda x, values, codes, offsets, lengths, bias: x.new_empty([*x.shape[:-1], lengths.shape[0]]),
)
serve("gap_linear", "gap_linear_triton", reference.gap_linear)
