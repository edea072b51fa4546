"""Linear product with a weight that is masked and scaled on the way."""

import torch
from torch import Tensor

from aswl_kernels import native, reference
from aswl_kernels._checks import check_operands, check_scalar, to_autocast, want
from aswl_kernels._library import LIBRARY, define, vmap_by
from aswl_kernels.gate import attention_gradient, gate, gate_op


def masked_linear(
    x: Tensor, weight: Tensor, threshold: Tensor, attention: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """``attention * (x @ sparse.T + bias)``, sparse being the weight where ``abs(weight) >= threshold``, else 0.

    ``x``: [..., in]; ``weight``: [out, in]; ``threshold``, ``attention``: one element (0-d or [1]), None meaning 1;
    ``bias``: [out]. Returns [..., out] in x's dtype, which is the weight's, or bf16/fp16 over an fp32 weight (the mask
    is decided in fp32 all the same); under autocast x takes autocast's dtype. Weight gradients are straight-through,
    see :func:`gate`; the attention's is ``sum(dL/d(a sparse) * sparse) + sum(dL/d(a bias) * bias)``.
    Raises ``ValueError`` on another dtype, shape or device.
    """
    op = "masked_linear"
    x = to_autocast(x)
    check_operands(op, x, weight, bias)
    want(weight.dim() == 2, op, "weight [out, in]", weight)
    want(x.dim() >= 1 and x.shape[-1] == weight.shape[1], op, f"x [..., {weight.shape[1]}]", x, weight)
    check_scalar(op, "threshold", threshold, weight)
    if attention is not None:
        check_scalar(op, "attention", attention, weight)
    return _MaskedLinear.apply(x, weight, threshold, attention, bias)


class _MaskedLinear(torch.autograd.Function):
    vmap = vmap_by(reference.masked_linear)

    @staticmethod
    def forward(x, weight, threshold, attention, bias):
        return _masked_linear(x, weight, threshold, attention, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, weight, threshold, attention, bias = ctx.saved_tensors
        rows, inputs = (torch.atleast_2d(t).flatten(0, -2) for t in (grad, x))
        scale, sparse = unfold(weight, threshold, attention)
        x_grad = folded_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = grad @ (scale.reshape(1) * sparse).to(grad.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            folded_grad = rows.mT @ inputs
        if bias is not None and (ctx.needs_input_grad[4] or ctx.needs_input_grad[3]):
            bias_grad = rows.sum(0)
        return x_grad, *unfold_gradients(ctx, folded_grad, bias_grad, scale, sparse, bias)


def unfold(weight: Tensor, threshold: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
    """The two factors of the folded weight: the scale, 1 where there is no attention, and the sparse weight."""
    scale = torch.ones(1, device=weight.device) if attention is None else attention
    return scale, gate(weight, torch.ones_like(scale), threshold)


def unfold_gradients(
    ctx, folded_grad: Tensor | None, bias_grad: Tensor | None, scale: Tensor, sparse: Tensor, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of (weight, threshold, attention, bias) from those of the folded weight and the folded bias.

    ``ctx.needs_input_grad`` is that of a function of (x, weight, threshold, attention, bias, ...).
    """
    weight_grad = attention_grad = None
    if ctx.needs_input_grad[1]:
        weight_grad = (scale.reshape(1) * folded_grad).to(sparse.dtype)
    if ctx.needs_input_grad[3]:
        attention_grad = attention_gradient(folded_grad, sparse, scale)
        if bias is not None:
            wide = torch.promote_types(bias.dtype, torch.float32)
            attention_grad = attention_grad + (bias_grad.to(wide) * bias.to(wide)).sum().to(scale.dtype)
    if bias_grad is not None:
        bias_grad = (scale.reshape(1) * bias_grad).to(bias.dtype) if ctx.needs_input_grad[4] else None
    return weight_grad, None, attention_grad, bias_grad


_masked_linear = define(
    "masked_linear(Tensor x, Tensor weight, Tensor threshold, Tensor? attention, Tensor? bias) -> Tensor",
    reference.masked_linear,
)


def _cpu(*args) -> Tensor:
    """The reference with the C++ gate in place of PyTorch's seven passes over the weight."""
    return reference.masked_linear(*args, gate=gate_op)


if native.AVAILABLE:
    LIBRARY.impl("masked_linear", _cpu, "CPU")
