"""Convolution with the nonzeros of a packed weight."""

import torch
from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._checks import to_autocast
from aswl_kernels._conv import Size, prepare
from aswl_kernels._library import define, vmap_by
from aswl_kernels.adjoint import adjoint_op
from aswl_kernels.pack import PackedWeight, gather, scatter
from aswl_kernels.sparse_linear import check_packed_operands


def sparse_conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """``conv2d(x, unpack(packed)) + bias``.

    ``x``: [N, C, H, W] or [C, H, W]; ``packed``: of shape (out, C / groups, height, width); ``bias``: [out]; the geometry
    as in ``torch.nn.functional.conv2d``. Dtypes and autocast as in :func:`masked_linear`. Differentiable in x,
    ``packed.values`` (at the nonzeros only) and bias. Raises ``ValueError`` on another dtype, shape, device or geometry.
    """
    op = "sparse_conv2d"
    x = to_autocast(x)
    check_packed_operands(op, x, packed, bias)
    batch, *geometry = prepare(op, x, packed.shape, stride, padding, dilation, groups)
    bias = bias if bias is None else bias.to(x.dtype)
    pieces = (packed.values, packed.columns, packed.offsets, packed.shape)
    y = _SparseConv2d.apply(batch, *pieces, bias, *geometry, groups)
    return y.squeeze(0) if x.dim() == 3 else y


class _SparseConv2d(torch.autograd.Function):
    vmap = vmap_by(reference.sparse_conv2d)

    @staticmethod
    def forward(x, values, columns, offsets, shape, bias, stride, padding, dilation, groups):
        return sparse_conv2d_op(x, values, columns, offsets, shape, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4])
        ctx.shape, ctx.geometry = inputs[4], inputs[6:]

    @staticmethod
    def backward(ctx, grad):
        x, values, columns, offsets = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        turned = None if torch.is_grad_enabled() else turned_padding(ctx.shape, stride, padding, dilation)
        needs_x, needs_values, *_ = ctx.needs_input_grad
        needs = [needs_x and turned is None, needs_values, ctx.needs_input_grad[5]]
        dense = scatter(values, columns, offsets, ctx.shape) if needs[0] else values.new_empty(ctx.shape)
        x_grad, dense_grad, bias_grad = torch.ops.aten.convolution_backward(
            grad, x, dense.to(x.dtype), ctx.shape[:1], stride, padding, dilation, False, [0, 0], groups, needs
        )
        if needs_x and turned is not None:
            x_grad = input_gradient(grad, (values, columns, offsets), ctx.shape, turned, dilation, groups)
        values_grad = gather(dense_grad, columns, offsets).to(values.dtype) if needs[1] else None
        bias_grad = bias_grad if needs[2] else None
        return x_grad if needs_x else None, values_grad, None, None, None, bias_grad, None, None, None, None


def turned_padding(shape: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> list[int] | None:
    """The padding of the convolution that gives the input gradient, or None where none does: strides, wide padding."""
    turned = [d * (k - 1) - p for d, k, p in zip(dilation, shape[2:], padding)]
    return turned if list(stride) == [1, 1] and min(turned) >= 0 else None


def input_gradient(
    grad: Tensor, packed: tuple[Tensor, ...], shape: list[int], turned: list[int], dilation: list[int], groups: int
) -> Tensor:
    """The gradient of x from that of y by the nonzeros (values, columns, offsets) of a weight of ``shape``."""
    adjoint = adjoint_op(*packed, shape, groups)
    new_shape = [shape[1] * groups, shape[0] // groups, *shape[2:]]
    return sparse_conv2d_op(grad, *adjoint, new_shape, None, [1, 1], turned, dilation, groups)


sparse_conv2d_op = define(
    "sparse_conv2d(Tensor x, Tensor values, Tensor columns, Tensor offsets, SymInt[] shape, Tensor? bias, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups) -> Tensor",
    reference.sparse_conv2d,
    lambda x, values, columns, offsets, shape, bias, stride, padding, dilation, groups: torch.nn.functional.conv2d(
        x, x.new_empty(shape), bias, stride, padding, dilation, groups
    ),
)
