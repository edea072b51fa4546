"""Mask and scale a weight: the attention's and the threshold's one place in the graph."""

import torch
from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._checks import FLOATING, check_scalar, want
from aswl_kernels._library import LIBRARY, define, vmap_by
from aswl_kernels._triton import serve


def gate(
    weight: Tensor, attention: Tensor, threshold: Tensor, dtype: torch.dtype | None = None, firm: bool = False
) -> Tensor:
    """``attention * weight`` where ``abs(weight) >= threshold``, else 0 (arXiv 2111.02399; ties and NaN are kept).

    ``weight``: floating, any shape; ``attention``, ``threshold``: one element each (0-d or [1]), on its device; the
    comparison is in fp32. Returns the weight's shape as ``dtype``, floating, by default its own: bf16 or fp16 of an
    fp32 weight in the same pass. The gradient of the weight is straight-through
    (``attention * dy``, for kept and pruned weights), that of the attention ``sum(dy * sparse)``, summed in fp32 or
    wider; the threshold has none.

    ``firm``: a firm threshold (Gao and Bruce, "WaveShrink with firm shrinkage", 1997): what is kept has magnitude
    ``5 (abs(weight) - t)`` below ``1.25 t``, where no more than 63/64 of t are taken, that it is not 0: weights that come and
    go are small, while those of ``1.25 t`` and more are as they are.

    Raises ``ValueError`` on another dtype, shape or device.
    """
    want(weight.dtype in FLOATING, "gate", "a floating weight", weight)
    check_scalar("gate", "attention", attention, weight)
    check_scalar("gate", "threshold", threshold, weight)
    want(dtype is None or dtype in FLOATING, "gate", "a floating dtype", dtype)
    return Gate.apply(weight, attention, threshold, dtype, firm, True)


class Gate(torch.autograd.Function):
    """``gate`` without its checks; with ``scaled`` False, the attention counts as 1 and keeps its gradient."""

    vmap = vmap_by(reference.gate)

    @staticmethod
    def forward(weight, attention, threshold, dtype, firm, scaled):
        return gate_op(weight, attention if scaled else None, threshold, dtype, firm)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, _, ctx.firm, ctx.scaled = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        weight, attention, threshold = ctx.saved_tensors
        weight_grad = attention_grad = None
        if ctx.needs_input_grad[1]:
            attention_grad = attention_gradient(grad, weight, attention, threshold, ctx.firm)
        if ctx.needs_input_grad[0]:
            scaled = ctx.scaled and attention is not None
            weight_grad = (attention.reshape(1) * grad if scaled else grad).to(weight.dtype).reshape(weight.shape)
        return weight_grad, attention_grad, None, None, None, None


def attention_gradient(
    grad: Tensor, weight: Tensor, attention: Tensor, threshold: Tensor, firm: bool = False
) -> Tensor:
    """``sum(grad * sparse)`` in the attention's shape and dtype, summed in fp32 or wider; differentiable where a
    backward is recorded for a second derivative.
    """
    if firm or torch.is_grad_enabled():
        return reference.attention_gradient(grad, weight, attention, threshold, firm)
    return _attention_gradient(grad, weight, attention, threshold)


def gate_values(
    weight: Tensor, attention: Tensor | None, threshold: Tensor, dtype: torch.dtype, firm: bool, _: bool
) -> Tensor:
    """The operator in the place of the reference's gate, where gradients, and so ``scaled``, are no concern."""
    return gate_op(weight, attention, threshold, dtype, firm)


gate_op = define(
    "gate(Tensor weight, Tensor? attention, Tensor threshold, ScalarType? dtype=None, bool firm=False) -> Tensor",
    reference.gate,
)
serve("gate", "gate_triton", reference.gate)
_attention_gradient = define(
    "attention_gradient(Tensor grad, Tensor weight, Tensor attention, Tensor threshold) -> Tensor",
    reference.attention_gradient,
    lambda grad, weight, attention, threshold: torch.empty_like(attention),
)
serve("attention_gradient", "gate_triton", reference.attention_gradient)
torch.library.register_vmap("aswl::attention_gradient", vmap_by(reference.attention_gradient).__func__, lib=LIBRARY)
