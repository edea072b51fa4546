"""Linear product with a weight that is masked and scaled on the way."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aswl_kernels import native, reference
from aswl_kernels._checks import check_operands, check_scalar, to_autocast, want
from aswl_kernels._library import LIBRARY, define, vmap_by
from aswl_kernels._triton import serve
from aswl_kernels.adjoint import adjoint_op
from aswl_kernels.gate import Gate, attention_gradient, gate_op, gate_values
from aswl_kernels.pack import pack_op
from aswl_kernels.sampled_product import FEW, sampled_product_op
from aswl_kernels.sparse_linear import sparse_linear_op


def masked_linear(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor | None,
    attention: Tensor | None = None,
    bias: Tensor | None = None,
    scaled: bool = True,
    products: str = "dense",
    learnable: Tensor | None = None,
    firm: bool = False,
) -> Tensor:
    """``attention * (x @ sparse.T + bias)``, sparse being the weight where ``abs(weight) >= threshold``, else 0.

    ``x``: [..., in], nested tensors included (products dense); ``weight``: [out, in]; ``threshold``, ``attention``: one element (0-d or [1]), no attention
    meaning 1, and no threshold that the weight is masked already, by :func:`gate_all`; ``bias``: [out].
    Returns [..., out] in x's dtype, which is the weight's, or bf16/fp16 over an fp32 weight (the mask is decided in fp32 all the
    same); under autocast x takes autocast's dtype. Weight gradients are straight-through, see :func:`gate`; the
    attention's is ``sum(dL/d(a sparse) * sparse) + sum(dL/d(a bias) * bias)``. With ``scaled=False`` the attention
    counts as 1 and keeps this gradient.

    ``products``: "dense": PyTorch's, of a masked copy of the weight. "fused": each product in one kernel with its mask,
    the attention, the bias and the attention's sum (on GPUs, with Triton, but for fp64; elsewhere as dense).
    "sparse": y and the gradient of x by the kept weights alone, which are packed on each call (the gradient of the
    weight is dense all the same); dense too under a compiler or a transform. A second derivative is PyTorch's.
    ``learnable``: one element, not above the threshold, None meaning 0: the gradient of the weight is 0 where
    ``abs(weight) < learnable``, and where few weights are left only theirs is computed (not fused, eagerly, on a CPU).
    ``firm``: what is kept is shrunk near the threshold, see :func:`gate` (not with "fused").
    Raises ``ValueError`` on another dtype, shape or device.
    """
    op = "masked_linear"
    x = to_autocast(x)
    nested = x.is_nested  # then torch's product checks its shapes
    if not nested:
        check_operands(op, x, weight, bias)
    want(weight.dim() == 2, op, "weight [out, in]", weight)
    fits = nested or (x.dim() >= 1 and x.shape[-1] == weight.shape[1])
    want(fits, op, f"x [..., {weight.shape[1]}]", x, weight)
    check_scalars(op, weight, threshold, attention, learnable, products, firm)
    if threshold is None:
        return F.linear(x, weight, bias if bias is None else bias.to(x.dtype))
    if nested:
        return reference.masked_linear(x, weight, threshold, attention, bias, scaled, learnable, firm, Gate.apply)
    packed = kept(op, weight, threshold, attention if scaled else None, products, firm)
    args = (x, weight, threshold, attention, bias, scaled)
    if packed:
        return _KeptLinear.apply(*args, learnable, firm, *packed)
    if products == "fused":
        return _FusedLinear.apply(*args, learnable, firm)
    if learnable is None:  # PyTorch's own product, which keeps the masked weight for the backward
        return reference.masked_linear(*args, firm=firm, gate=Gate.apply)
    return _MaskedLinear.apply(*args, learnable, firm)


PRODUCTS = ("dense", "fused", "sparse")


def check_scalars(
    op: str,
    weight: Tensor,
    threshold: Tensor | None,
    attention: Tensor | None,
    learnable: Tensor | None,
    products: str,
    firm: bool,
) -> None:
    """Each, where given, has one element; a weight without threshold is only multiplied; fused thresholds are hard."""
    for name, scalar in (("threshold", threshold), ("attention", attention), ("learnable", learnable)):
        if scalar is not None:
            check_scalar(op, name, scalar, weight)
    want(not (firm and products == "fused"), op, "firm=False with products 'fused'", firm)
    alone = attention is None and learnable is None and products == "dense"
    wanted = "a threshold, or neither attention nor learnable, and products 'dense'"
    want(threshold is not None or alone, op, wanted, threshold, attention, learnable, products)


def kept(
    op: str, weight: Tensor, threshold: Tensor, attention: Tensor | None, products: str, firm: bool
) -> tuple[Tensor, ...]:
    """The pieces of the packed weight where the products are to be sparse; otherwise none."""
    want(products in PRODUCTS, op, f"products one of {PRODUCTS}", products)
    if products != "sparse" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return ()
    return pack_op(*(t if t is None else t.detach() for t in (weight, threshold, attention)), firm)


class _MaskedLinear(torch.autograd.Function):
    """Dense products, whose backward makes the masked weight again."""

    vmap = vmap_by(reference.masked_linear)

    @staticmethod
    def forward(x, weight, threshold, attention, bias, scaled, learnable, firm):
        return _by_gate(x, weight, threshold, attention if scaled else None, bias, firm=firm)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:5], inputs[6], *inputs[8:])  # packed, where the products are sparse
        ctx.scaled, ctx.firm = inputs[5], inputs[7]

    @staticmethod
    def backward(ctx, grad):
        tensors = ctx.saved_tensors  # asked for once: a checkpoint answers only once
        saved, learnable, packed = tensors[:5], tensors[5], tensors[6:]
        x, weight, bias = saved[0], saved[1], saved[4]
        rows, inputs = (torch.atleast_2d(t).flatten(0, -2) for t in (grad, x))
        x_grad = folded_grad = bias_grad = None
        if ctx.needs_input_grad[0] and packed and not torch.is_grad_enabled():
            x_grad = sparse_linear_op(grad, *adjoint_op(*packed, weight.shape, 1), None)
        elif ctx.needs_input_grad[0]:
            x_grad = grad @ unfold(ctx, saved, grad.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            folded_grad = _learnable_gradient(rows, inputs, weight, learnable)
        if bias is not None and (ctx.needs_input_grad[4] or ctx.needs_input_grad[3]):
            bias_grad = rows.sum(0)
        return x_grad, *unfold_gradients(ctx, saved, folded_grad, bias_grad), None, None, None, *(None for _ in packed)


class _FusedLinear(_MaskedLinear):
    """One operator per product, and so one kernel where there is one."""

    @staticmethod
    def forward(x, weight, threshold, attention, bias, scaled, learnable, firm):
        return _masked_linear(x, weight, threshold, attention if scaled else None, bias)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # a second derivative goes through PyTorch's operators
            return _MaskedLinear.backward(ctx, grad)
        *saved, learnable = ctx.saved_tensors
        x, weight, threshold, attention, bias = saved
        needs_x, needs_weight, _, needs_attention, needs_bias, *_ = ctx.needs_input_grad
        scale = attention if ctx.scaled else None
        x_grad = weight_grad = total = bias_grad = None
        if needs_x:
            x_grad = _input_gradient(grad, weight, threshold, scale)
        if needs_weight or needs_attention:
            weight_grad, total = _weight_gradient(grad, x, weight, threshold, scale, learnable)
        if bias is not None and (needs_bias or needs_attention):
            wide = torch.promote_types(grad.dtype, torch.float32)  # the attention's share is not rounded before
            bias_grad = torch.atleast_2d(grad).flatten(0, -2).sum(0, dtype=wide)
        return x_grad, *with_bias(ctx, saved, weight_grad, total, bias_grad), None, None, None


class _KeptLinear(_MaskedLinear):
    """From the pieces of the packed weight; not for transforms."""

    @staticmethod
    def forward(x, weight, threshold, attention, bias, scaled, learnable, firm, *packed):
        return sparse_linear_op(x, *packed, reference.folded_bias(bias, attention if scaled else None, x.dtype))


def _learnable_gradient(rows: Tensor, inputs: Tensor, weight: Tensor, learnable: Tensor | None) -> Tensor:
    """``rows.T @ inputs`` where the weight is learnable: all of it, or a few elements one by one."""
    if learnable is None:
        return rows.mT @ inputs
    eager = native.AVAILABLE and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    if eager and weight.device.type == "cpu" and learnable.item() > 0:  # pack leaves zeros out, and so does the limit
        _, columns, offsets = pack_op(weight, learnable)
        if len(columns) < FEW * weight.numel():
            return sampled_product_op(rows, inputs, columns, offsets)
    return restrict(rows.mT @ inputs, weight, learnable)


def restrict(grad: Tensor, weight: Tensor, learnable: Tensor | None) -> Tensor:
    """The gradient, 0 where the weight is not learnable."""
    return grad if learnable is None else grad.masked_fill(weight.abs().float() < learnable.float(), 0)


def unfold(ctx, saved: tuple[Tensor | None, ...], dtype: torch.dtype) -> Tensor:
    """The folded weight as ``dtype``, made again for a backward from its (x, weight, threshold, attention, bias)."""
    _, weight, threshold, attention, _ = saved
    op = reference.gate if torch.is_grad_enabled() else gate_op  # a second derivative goes through PyTorch's operators
    return op(weight, attention if ctx.scaled else None, threshold, dtype, firm=ctx.firm)


def unfold_gradients(
    ctx, saved: tuple[Tensor | None, ...], folded_grad: Tensor | None, bias_grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of (weight, threshold, attention, bias) from those of the folded weight and the folded bias.

    ``saved`` and ``ctx.needs_input_grad`` are those of a function of (x, weight, threshold, attention, bias, ...);
    ``ctx.scaled`` tells whether the attention's value enters, ``ctx.firm`` which threshold it is.
    """
    _, weight, threshold, attention, _ = saved
    weight_grad = total = None
    if ctx.needs_input_grad[3]:
        total = attention_gradient(folded_grad, weight, attention, threshold, ctx.firm)
    if ctx.needs_input_grad[1]:
        scaled = attention is not None and ctx.scaled
        weight_grad = (attention.reshape(1) * folded_grad if scaled else folded_grad).to(weight.dtype)
    return with_bias(ctx, saved, weight_grad, total, bias_grad)


def with_bias(
    ctx, saved: tuple[Tensor | None, ...], weight_grad: Tensor | None, total: Tensor | None, bias_grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The same gradients from the weight's, from ``total``, the weight's share of the attention's, and from that of the
    folded bias.
    """
    *_, attention, bias = saved
    _, needs_weight, _, needs_attention, needs_bias, *_ = ctx.needs_input_grad
    attention_grad = None
    if needs_attention:
        attention_grad = total.to(attention.dtype).reshape(attention.shape)
        if bias is not None:
            wide = torch.promote_types(bias.dtype, torch.float32)
            attention_grad = attention_grad + (bias_grad.to(wide) * bias.to(wide)).sum().to(attention.dtype)
    if needs_bias:
        scaled = attention is not None and ctx.scaled
        bias_grad = (attention.reshape(1) * bias_grad if scaled else bias_grad).to(bias.dtype)
    return weight_grad if needs_weight else None, None, attention_grad, bias_grad if needs_bias else None


def _by_gate(*args, firm: bool = False) -> Tensor:
    """PyTorch's product of the weight that the gate's operator masks; (x, weight, threshold, attention, bias)."""
    return reference.masked_linear(*args, firm=firm, gate=gate_values)


_masked_linear = define(
    "masked_linear(Tensor x, Tensor weight, Tensor threshold, Tensor? attention, Tensor? bias) -> Tensor",
    reference.masked_linear,
)
_input_gradient = define(
    "masked_linear_input_gradient(Tensor grad, Tensor weight, Tensor threshold, Tensor? attention) -> Tensor",
    reference.masked_linear_input_gradient,
)
_weight_gradient = define(
    "masked_linear_weight_gradient(Tensor grad, Tensor x, Tensor weight, Tensor threshold, Tensor? attention, "
    "Tensor? learnable) -> (Tensor, Tensor)",
    reference.masked_linear_weight_gradient,
)
serve("masked_linear", "masked_linear_triton", reference.masked_linear)
serve("masked_linear_input_gradient", "masked_linear_triton", reference.masked_linear_input_gradient)
serve("masked_linear_weight_gradient", "masked_linear_triton", reference.masked_linear_weight_gradient)
if native.AVAILABLE:  # the C++ gate in place of PyTorch's seven passes over the weight
    LIBRARY.impl("masked_linear", _by_gate, "CPU")
