"""Convolution with a weight that is masked and scaled on the way."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aswl_kernels import native, reference
from aswl_kernels._checks import check_operands, to_autocast
from aswl_kernels._conv import Size, prepare
from aswl_kernels._library import LIBRARY, define, vmap_by
from aswl_kernels._triton import serve
from aswl_kernels.gate import Gate, gate_values
from aswl_kernels.masked_linear import check_scalars, kept, restrict, unfold, unfold_gradients, with_bias
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
    firm: bool = False,
) -> Tensor:
    """``attention * (conv2d(x, sparse) + bias)``, sparse being the weight where ``abs(weight) >= threshold``, else 0.

    ``x``: [N, C, H, W] or [C, H, W], contiguous or channels_last; ``weight``: [out, C / groups, height, width];
    ``bias``: [out]; the geometry as in ``torch.nn.functional.conv2d``. Scalars, dtypes, autocast, gradients, ``scaled``,
    ``products``, ``learnable`` and ``firm`` as in :func:`masked_linear`; but the gradient of the weight is always computed
    whole, and with "sparse" that of x densely where the stride is not 1 or the padding above ``dilation * (kernel - 1)``.
    Raises ``ValueError`` on another dtype, shape, device or geometry.
    """
    op = "masked_conv2d"
    x = to_autocast(x)
    check_operands(op, x, weight, bias)
    check_scalars(op, weight, threshold, attention, learnable, products, firm)
    batch, *geometry = prepare(op, x, weight.shape, stride, padding, dilation, groups)
    if threshold is None:
        y = F.conv2d(batch, weight, bias if bias is None else bias.to(x.dtype), *geometry, groups)
        return y.squeeze(0) if x.dim() == 3 else y
    packed = kept(op, weight, threshold, attention if scaled else None, products, firm)
    args = (batch, weight, threshold, attention, bias, *geometry, groups, scaled)
    if packed:
        y = _KeptConv2d.apply(*args, learnable, firm, *packed)
    elif products == "fused" and weight.numel() > 0:
        y = _FusedConv2d.apply(*args, learnable, firm)
    elif learnable is None:  # PyTorch's own product, which keeps the masked weight for the backward
        y = reference.masked_conv2d(*args, firm=firm, gate=Gate.apply)
    else:
        y = _MaskedConv2d.apply(*args, learnable, firm)
    return y.squeeze(0) if x.dim() == 3 else y


class _MaskedConv2d(torch.autograd.Function):
    """Dense products, whose backward makes the masked weight again."""

    vmap = vmap_by(reference.masked_conv2d)

    @staticmethod
    def forward(x, weight, threshold, attention, bias, stride, padding, dilation, groups, scaled, learnable, firm):
        attention = attention if scaled else None
        return _by_gate(x, weight, threshold, attention, bias, stride, padding, dilation, groups, firm=firm)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5], inputs[10], *inputs[12:])
        *ctx.geometry, ctx.scaled = inputs[5:10]
        ctx.firm = inputs[11]

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
        # where x wants no gradient, its values do not matter
        folded = unfold(ctx, saved, x.dtype) if dense_x else weight.to(x.dtype)
        x_grad, folded_grad, bias_grad = torch.ops.aten.convolution_backward.default(
            grad, x, folded, weight.shape[:1], stride, padding, dilation, False, [0, 0], groups, needs
        )
        if sparse_x:
            x_grad = input_gradient(grad, packed, weight.shape, turned, dilation, groups)
        if folded_grad is not None:
            folded_grad = restrict(folded_grad, weight, learnable)
        gradients = unfold_gradients(ctx, saved, folded_grad, bias_grad if needs[2] else None)
        return x_grad if needs_x else None, *gradients, *(None,) * 7, *(None for _ in packed)


class _FusedConv2d(_MaskedConv2d):
    """One operator per product, and so one kernel where there is one."""

    @staticmethod
    def forward(x, weight, threshold, attention, bias, stride, padding, dilation, groups, scaled, learnable, firm):
        attention = attention if scaled else None
        return _masked_conv2d(x, weight, threshold, attention, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # a second derivative goes through PyTorch's operators
            return _MaskedConv2d.backward(ctx, grad)
        *saved, learnable = ctx.saved_tensors
        x, weight, threshold, attention, bias = saved
        needs_x, needs_weight, _, needs_attention, needs_bias, *_ = ctx.needs_input_grad
        scale = attention if ctx.scaled else None
        x_grad = weight_grad = total = bias_grad = None
        if needs_x:
            x_grad = _input_gradient(grad, weight, threshold, scale, x.shape[2:], *ctx.geometry)
        if needs_weight or needs_attention:
            weight_grad, total = _weight_gradient(grad, x, weight, threshold, scale, learnable, *ctx.geometry)
        if bias is not None and (needs_bias or needs_attention):
            wide = torch.promote_types(grad.dtype, torch.float32)  # the attention's share is not rounded before
            bias_grad = grad.sum((0, 2, 3), dtype=wide)
        return x_grad, *with_bias(ctx, saved, weight_grad, total, bias_grad), *(None,) * 7


class _KeptConv2d(_MaskedConv2d):
    """From the pieces of the packed weight; not for transforms."""

    @staticmethod
    def forward(
        x, weight, threshold, attention, bias, stride, padding, dilation, groups, scaled, learnable, firm, *packed
    ):
        folded = reference.folded_bias(bias, attention if scaled else None, x.dtype)
        return sparse_conv2d_op(x, *packed, weight.shape, folded, stride, padding, dilation, groups)


def _by_gate(*args, firm: bool = False) -> Tensor:
    """PyTorch's product of the weight that the gate's operator masks."""
    return reference.masked_conv2d(*args, firm=firm, gate=gate_values)


_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
_masked_conv2d = define(
    f"masked_conv2d(Tensor x, Tensor weight, Tensor threshold, Tensor? attention, Tensor? bias, {_GEOMETRY}) -> Tensor",
    reference.masked_conv2d,
)
_input_gradient = define(
    "masked_conv2d_input_gradient(Tensor grad, Tensor weight, Tensor threshold, Tensor? attention, SymInt[2] size, "
    f"{_GEOMETRY}) -> Tensor",
    reference.masked_conv2d_input_gradient,
)
_weight_gradient = define(
    "masked_conv2d_weight_gradient(Tensor grad, Tensor x, Tensor weight, Tensor threshold, Tensor? attention, "
    f"Tensor? learnable, {_GEOMETRY}) -> (Tensor, Tensor)",
    reference.masked_conv2d_weight_gradient,
)
serve("masked_conv2d", "masked_conv2d_triton", reference.masked_conv2d)
serve("masked_conv2d_input_gradient", "masked_conv2d_triton", reference.masked_conv2d_input_gradient)
serve("masked_conv2d_weight_gradient", "masked_conv2d_weight_triton", reference.masked_conv2d_weight_gradient)
if native.AVAILABLE:  # the C++ gate in place of PyTorch's seven passes over the weight
    LIBRARY.impl("masked_conv2d", _by_gate, "CPU")
