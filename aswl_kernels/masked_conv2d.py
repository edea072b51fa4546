"""Convolution with a weight that is masked and scaled on the way."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aswl_kernels import native, reference
from aswl_kernels._checks import check_operands, to_autocast
from aswl_kernels._conv import Size, prepare
from aswl_kernels._library import LIBRARY, define, vmap_by
from aswl_kernels.gate import Gate, gate_values
from aswl_kernels.masked_linear import check_scalars, kept, restrict, unfold, unfold_gradients
from aswl_kernels.sparse_conv2d import input_gradient, sparse_conv2d_op, turned_padding


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor | None,
    attention: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    scaled: bool = True,
    products: str = "dense",
    learnable: Tensor | None = None,
) -> Tensor:
    """``attention * (conv2d(x, sparse) + bias)``, sparse being the weight where ``abs(weight) >= threshold``, else 0.

    ``x``: [N, C, H, W] or [C, H, W], contiguous or channels_last; ``weight``: [out, C / groups, height, width];
    ``bias``: [out]; the geometry as in ``torch.nn.functional.conv2d``. Scalars, dtypes, autocast, gradients, ``scaled``, ``products`` and ``learnable`` as in
    :func:`masked_linear`; but the gradient of the weight is always computed whole, and that of x densely where the
    stride is not 1 or the padding above ``dilation * (kernel - 1)``.
    Raises ``ValueError`` on another dtype, shape, device or geometry.
    """
    op = "masked_conv2d"
    x = to_autocast(x)
    check_operands(op, x, weight, bias)
    check_scalars(op, weight, threshold, attention, learnable, products)
    batch, *geometry = prepare(op, x, weight.shape, stride, padding, dilation, groups)
    if threshold is None:
        y = F.conv2d(batch, weight, bias if bias is None else bias.to(x.dtype), *geometry, groups)
        return y.squeeze(0) if x.dim() == 3 else y
    packed = kept(op, weight, threshold, attention if scaled else None, products)
    args = (batch, weight, threshold, attention, bias, *geometry, groups, scaled)
    if packed:
        y = _KeptConv2d.apply(*args, learnable, *packed)
    elif learnable is None:  # PyTorch's own product, which keeps the masked weight for the backward
        y = reference.masked_conv2d(*args, gate=Gate.apply)
    else:
        y = _MaskedConv2d.apply(*args, learnable)
    return y.squeeze(0) if x.dim() == 3 else y


class _MaskedConv2d(torch.autograd.Function):
    vmap = vmap_by(reference.masked_conv2d)

    @staticmethod
    def forward(x, weight, threshold, attention, bias, stride, padding, dilation, groups, scaled, learnable):
        attention = attention if scaled else None
        return _masked_conv2d(x, weight, threshold, attention, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5], *inputs[10:])
        *ctx.geometry, ctx.scaled = inputs[5:10]

    @staticmethod
    def backward(ctx, grad):
        tensors = ctx.saved_tensors  # asked for once: a checkpoint answers only once
        saved, learnable, packed = tensors[:5], tensors[5], tensors[6:]
        x, weight, _, _, bias = saved
        stride, padding, dilation, groups = ctx.geometry
        needs_x, needs_weight, _, needs_attention, needs_bias, *_ = ctx.needs_input_grad
        turned = turned_padding(weight.shape, stride, padding, dilation)
        sparse_x = needs_x and packed and turned is not None and not torch.is_grad_enabled()
        dense_x, needs_bias_sum = needs_x and not sparse_x, bias is not None and (needs_bias or needs_attention)
        needs = [dense_x, needs_weight or needs_attention, needs_bias_sum]
        folded = (
            unfold(saved, ctx.scaled, x.dtype) if dense_x else weight.to(x.dtype)
        )  # whose values then do not matter
        x_grad, folded_grad, bias_grad = torch.ops.aten.convolution_backward.default(
            grad, x, folded, weight.shape[:1], stride, padding, dilation, False, [0, 0], groups, needs
        )
        if sparse_x:
            x_grad = input_gradient(grad, packed, weight.shape, turned, dilation, groups)
        if folded_grad is not None:
            folded_grad = restrict(folded_grad, weight, learnable)
        gradients = unfold_gradients(ctx, saved, folded_grad, bias_grad if needs[2] else None)
        return x_grad if needs_x else None, *gradients, None, None, None, None, None, None, *(None for _ in packed)


class _KeptConv2d(_MaskedConv2d):
    """The same, from the pieces of the packed weight; not for transforms."""

    @staticmethod
    def forward(x, weight, threshold, attention, bias, stride, padding, dilation, groups, scaled, learnable, *packed):
        folded = reference.folded_bias(bias, attention if scaled else None, x.dtype)
        return sparse_conv2d_op(x, *packed, weight.shape, folded, stride, padding, dilation, groups)


_masked_conv2d = define(
    "masked_conv2d(Tensor x, Tensor weight, Tensor threshold, Tensor? attention, Tensor? bias, "
    "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups) -> Tensor",
    reference.masked_conv2d,
)


def _cpu(*args) -> Tensor:
    """The reference with the C++ gate in place of PyTorch's seven passes over the weight."""
    return reference.masked_conv2d(*args, gate=gate_values)


if native.AVAILABLE:
    LIBRARY.impl("masked_conv2d", _cpu, "CPU")
