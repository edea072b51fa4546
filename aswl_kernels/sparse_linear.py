"""Linear product with the nonzeros of a packed weight."""

import torch
from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._checks import check_operands, to_autocast, want
from aswl_kernels._library import define, vmap_by
from aswl_kernels._packed import check_indices
from aswl_kernels.adjoint import adjoint_op
from aswl_kernels.pack import PackedWeight, gather, scatter
from aswl_kernels.sampled_product import FEW, sampled_product_op


def sparse_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ unpack(packed).T + bias``.

    ``x``: [..., in]; ``packed``: of shape (out, in); ``bias``: [out]. Dtypes and autocast as in :func:`masked_linear`.
    Returns [..., out] in x's dtype. Differentiable in x, ``packed.values`` (at the nonzeros only) and bias.
    Raises ``ValueError`` on another dtype, shape or device.
    """
    op = "sparse_linear"
    x = to_autocast(x)
    want(len(packed.shape) == 2, op, "a weight packed from [out, in]", packed.shape)
    check_packed_operands(op, x, packed, bias)
    want(x.dim() >= 1 and x.shape[-1] == packed.shape[1], op, f"x [..., {packed.shape[1]}]", x)
    bias = bias if bias is None else bias.to(x.dtype)
    return _SparseLinear.apply(x, packed.values, packed.columns, packed.offsets, bias)


def check_packed_operands(op: str, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> None:
    """As :func:`check_operands`, for a packed weight, whose indices are checked, too."""
    check_indices(op, packed)
    stand_in = packed.values.new_empty(1).expand(packed.shape[0], 1)
    check_operands(op, x, stand_in, bias)


class _SparseLinear(torch.autograd.Function):
    vmap = vmap_by(reference.sparse_linear)

    @staticmethod
    def forward(x, values, columns, offsets, bias):
        return sparse_linear_op(x, values, columns, offsets, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4])

    @staticmethod
    def backward(ctx, grad):
        x, values, columns, offsets = ctx.saved_tensors
        rows, inputs = (torch.atleast_2d(t).flatten(0, -2) for t in (grad, x))
        x_grad = values_grad = None
        shape = (grad.shape[-1], x.shape[-1])
        if ctx.needs_input_grad[0] and torch.is_grad_enabled():  # for a second derivative
            x_grad = grad @ scatter(values, columns, offsets, shape).to(grad.dtype)
        elif ctx.needs_input_grad[0]:
            x_grad = sparse_linear_op(grad, *adjoint_op(values, columns, offsets, shape, 1), None)
        if ctx.needs_input_grad[1]:
            few = len(columns) < FEW * shape[0] * shape[1] and not torch.is_grad_enabled()
            weight_grad = sampled_product_op(rows, inputs, columns, offsets) if few else rows.mT @ inputs
            values_grad = gather(weight_grad, columns, offsets).to(values.dtype)
        return x_grad, values_grad, None, None, rows.sum(0) if ctx.needs_input_grad[4] else None


sparse_linear_op = define(
    "sparse_linear(Tensor x, Tensor values, Tensor columns, Tensor offsets, Tensor? bias) -> Tensor",
    reference.sparse_linear,
    lambda x, values, columns, offsets, bias: x.new_empty([*x.shape[:-1], offsets.shape[0] - 1]),
)
