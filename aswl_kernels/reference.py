"""The specification: every operator in a few lines of differentiable PyTorch, on any device and floating dtype.

Thresholds are compared in fp32 whatever the weight's dtype, a NaN is never pruned, and gradients with respect to a
pruned weight are straight-through (arXiv 2111.02399, section 3): they are those of the weight as if it were kept.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format


def magnitude_threshold(weights: list[Tensor], keep: Tensor) -> Tensor:
    """Each layer's keep-th largest magnitude; NaN counts as largest; +inf where keep < 1 or the layer is empty."""
    thresholds = [torch.full((), float("inf"), device=keep.device)] * len(weights)
    for i, weight in enumerate(weights):
        if weight.numel() > 0:
            ranked = weight.detach().abs().float().flatten().sort(descending=True).values  # NaN sorts first
            kth = ranked.gather(0, (keep[i : i + 1] - 1).clamp(0, weight.numel() - 1))[0]
            thresholds[i] = kth.where(keep[i] >= 1, float("inf"))
    return torch.stack(thresholds) if thresholds else keep.new_empty(0, dtype=torch.float32)


def magnitude_bits(weight: Tensor) -> Tensor:
    """int32, ordered like the magnitudes, NaN on top: fp32 bits (fp64 is rounded), or those of bf16 or fp16, then zeros."""
    if weight.dtype in (torch.bfloat16, torch.float16):
        return weight.abs().view(torch.int16).to(torch.int32) << 16
    return weight.abs().float().view(torch.int32)


def magnitude_histogram(weights: list[Tensor], prefix: Tensor, shift: int) -> Tensor:
    """int64 [L, 256]: the bytes at ``shift`` of those magnitudes whose bits have the prefix from there on."""
    histogram = torch.zeros(len(weights), 256, dtype=torch.int64, device=prefix.device)
    for i, weight in enumerate(weights):
        upper = magnitude_bits(weight.detach().flatten()) >> shift
        byte = (upper & 255).where(upper >> 8 == prefix[i], 256)
        histogram[i] = torch.bincount(byte, minlength=257)[:256]
    return histogram


def gate(
    weight: Tensor,
    attention: Tensor | None,
    threshold: Tensor,
    dtype: torch.dtype | None = None,
    firm: bool = False,
    scaled: bool = True,
) -> Tensor:
    """attention * weight where abs(weight) >= threshold, else 0; None means 1, and so does the value if not ``scaled``;
    as ``dtype``, None meaning the weight's. Where ``firm``, what is kept is shrunk first.
    """
    if attention is not None and not scaled:
        attention = attention - attention.detach() + 1
    kept = ~(weight.abs().float() < threshold.float())  # so that a NaN is kept
    lost = weight.masked_fill(kept, 0)
    if firm:
        lost = lost + shrinkage(weight, threshold).where(kept, 0)
    sparse = (weight - lost.detach()).to(weight.dtype)
    if attention is not None:
        sparse = (attention.reshape(1) * sparse).to(weight.dtype)  # a fp32 [1] attention promotes: rounded once
    return sparse.reshape(weight.shape).to(dtype or weight.dtype)  # 0-d again where it was


def shrinkage(weight: Tensor, threshold: Tensor) -> Tensor:
    """What a firm threshold t takes from a kept weight, in fp32 or wider: 5 t - 4 abs(w) below 1.25 t, with w's sign.

    So values grow from 0 at t to w at 1.25 t; but no more than 63/64 of t are taken, that what is kept is not 0.
    """
    w = weight.to(torch.promote_types(weight.dtype, torch.float32))
    t = threshold.float().to(w.dtype)
    return torch.minimum(4 * (1.25 * t - w.abs()), t - t / 64).copysign(w).where(w.abs() < 1.25 * t, 0)


def attention_gradient(
    grad: Tensor, weight: Tensor, attention: Tensor, threshold: Tensor, firm: bool = False
) -> Tensor:
    """sum(grad * sparse) in fp32 or wider, as the attention is."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = (grad.to(wide) * gate(weight, None, threshold, firm=firm).to(wide)).sum()
    return total.to(attention.dtype).reshape(attention.shape)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    attention: Tensor | None = None,
    bias: Tensor | None = None,
    scaled: bool = True,
    learnable: Tensor | None = None,
    firm: bool = False,
    gate: Callable = gate,
) -> Tensor:
    """attention * (x @ sparse.T + bias), the product in x's dtype; the attention's value is 1 unless ``scaled``."""
    weight = _learning(weight, learnable)
    return F.linear(x, *_folded(x, weight, threshold, attention, bias, scaled, firm, gate))


def masked_linear_input_gradient(grad: Tensor, weight: Tensor, threshold: Tensor, attention: Tensor | None) -> Tensor:
    """The gradient of x [..., in] from that of y [..., out]: grad @ (attention * sparse), in grad's dtype."""
    return grad @ gate(weight, attention, threshold, grad.dtype)


def masked_linear_weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, threshold: Tensor, attention: Tensor | None, learnable: Tensor | None
) -> tuple[Tensor, Tensor]:
    """With G = grad.T @ x [out, in]: attention * G in the weight's dtype, 0 where abs(weight) < learnable; and
    sum(G * sparse), 0-d in fp32 or wider.
    """
    rows, inputs = (torch.atleast_2d(t).flatten(0, -2) for t in (grad, x))
    return _from_folded(rows.mT @ inputs, weight, threshold, attention, learnable)


def _from_folded(folded_grad, weight, threshold, attention, learnable):
    """attention * folded_grad in the weight's dtype, 0 where not learnable; and sum(folded_grad * sparse)."""
    wide = threshold.new_empty((), dtype=torch.promote_types(weight.dtype, torch.float32))
    total = attention_gradient(folded_grad, weight, wide, threshold)
    if learnable is not None:
        folded_grad = folded_grad.masked_fill(weight.abs().float() < learnable.float(), 0)
    scaled = folded_grad if attention is None else attention.reshape(1) * folded_grad
    return scaled.to(weight.dtype), total


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    attention: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    scaled: bool = True,
    learnable: Tensor | None = None,
    firm: bool = False,
    gate: Callable = gate,
) -> Tensor:
    """attention * (conv2d(x, sparse) + bias), the product in x's dtype; the attention's value is 1 unless ``scaled``."""
    weight = _learning(weight, learnable)
    folded = _folded(x, weight, threshold, attention, bias, scaled, firm, gate)
    return F.conv2d(x, *folded, stride, padding, dilation, groups)


def masked_conv2d_input_gradient(
    grad: Tensor,
    weight: Tensor,
    threshold: Tensor,
    attention: Tensor | None,
    size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The gradient of x [N, C, *size] from that of y: the transposed convolution with attention * sparse, in grad's dtype;
    in channels_last where grad or the weight is.
    """
    shape = len(grad), weight.shape[1] * groups, *size
    x = grad.new_empty(shape).to(memory_format=suggest_memory_format(grad))  # whose values do not matter
    folded = gate(weight, attention, threshold, grad.dtype)
    return _conv2d_backward(grad, x, folded, stride, padding, dilation, groups, [True, False, False])[0]


def masked_conv2d_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    attention: Tensor | None,
    learnable: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """With G, the gradient of a dense convolution's weight: what ``masked_linear_weight_gradient`` makes of it, in
    channels_last where the weight is.
    """
    like = weight.to(x.dtype)  # whose values do not matter
    folded_grad = _conv2d_backward(grad, x, like, stride, padding, dilation, groups, [False, True, False])[1]
    gradient, total = _from_folded(folded_grad, weight, threshold, attention, learnable)
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return gradient.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format), total


def _conv2d_backward(grad, x, weight, stride, padding, dilation, groups, needs):
    return torch.ops.aten.convolution_backward.default(
        grad, x, weight, weight.shape[:1], stride, padding, dilation, False, [0, 0], groups, needs
    )


def _learning(weight: Tensor, learnable: Tensor | None) -> Tensor:
    """The weight, constant where abs(weight) < learnable; None means 0."""
    if learnable is None:
        return weight
    return weight.detach().where(weight.abs().float() < learnable.float(), weight)


def _folded(x, weight, threshold, attention, bias, scaled, firm, gate):
    """The sparse weight and the bias, both scaled by the attention, in x's dtype."""
    if bias is not None and attention is not None:  # nothing of it is pruned
        bias = gate(bias, attention, torch.zeros_like(threshold), x.dtype, False, scaled)
    elif bias is not None:
        bias = bias.to(x.dtype)
    return gate(weight, attention, threshold, x.dtype, firm, scaled), bias


def folded_bias(bias: Tensor | None, attention: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """attention * bias in the product's dtype; None means 1, and no bias."""
    return bias if bias is None else (bias if attention is None else attention.reshape(1) * bias).to(dtype)


def fused_sgd_(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    thresholds: list[Tensor],
    copies: list[Tensor],
    grad_scale: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    pruned_decay: float,
    pruned_gradient: float,
    band: float,
    lr_tensor: Tensor | None = None,
    pruned_gradient_tensor: Tensor | None = None,
) -> Tensor:
    """One step of torch.optim.SGD on every weight; ``first``: the momenta are still to be filled.

    A tensor, where there is one, stands in the place of its number; nothing reads it on the host.
    """
    lr, pruned_gradient = _either(lr, lr_tensor), _either(pruned_gradient, pruned_gradient_tensor)
    statistics = []
    for i, (weight, threshold) in enumerate(zip(weights, thresholds)):
        grad, decayed, sums = _observe(
            weight, grads[i], threshold, grad_scale, maximize, pruned_gradient, pruned_decay, band
        )
        statistics.append(sums)
        if weight_decay != 0:
            grad = grad.add(weight * decayed, alpha=weight_decay)
        if momentum != 0:
            momenta[i].copy_(grad if first else momenta[i].mul(momentum).add(grad, alpha=1 - dampening))
            grad = grad.add(momenta[i], alpha=momentum) if nesterov else momenta[i]
        weight.sub_(lr * _wide(grad))
    return _finish(weights, thresholds, copies, statistics)


def fused_adamw_(
    weights: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[float],
    step_tensors: list[Tensor],
    thresholds: list[Tensor],
    copies: list[Tensor],
    grad_scale: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    pruned_decay: float,
    pruned_gradient: float,
    band: float,
    lr_tensor: Tensor | None = None,
    pruned_gradient_tensor: Tensor | None = None,
) -> Tensor:
    """Step number ``steps[i]`` (1 is the first) of torch.optim.AdamW on every weight; tensors as in ``fused_sgd_``."""
    lr, pruned_gradient = _either(lr, lr_tensor), _either(pruned_gradient, pruned_gradient_tensor)
    steps = [step.double() for step in step_tensors] or steps  # 1 - beta2 ** step takes fp64
    statistics = []
    for i, (weight, threshold) in enumerate(zip(weights, thresholds)):
        grad, decayed, sums = _observe(
            weight, grads[i], threshold, grad_scale, maximize, pruned_gradient, pruned_decay, band
        )
        statistics.append(sums)
        if weight_decay != 0:
            weight.sub_(lr * weight_decay * _wide(weight * decayed))
        exp_avgs[i].lerp_(grad, 1 - beta1)
        exp_avg_sqs[i].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = _wide(exp_avg_sqs[i]).sqrt() / (1 - beta2 ** steps[i]) ** 0.5 + eps
        weight.sub_(lr / (1 - beta1 ** steps[i]) * _wide(exp_avgs[i]) / root)
    return _finish(weights, thresholds, copies, statistics)


def _either(number: float, tensor: Tensor | None) -> float | Tensor:
    return number if tensor is None else tensor.reshape(())


def _wide(tensor: Tensor) -> Tensor:
    """In fp32 or wider: a 0-d factor is rounded to the dtype of what it multiplies, a Python number is not."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _observe(weight, grad, threshold, grad_scale, maximize, pruned_gradient, pruned_decay, band):
    """The gradient that the optimizer sees, what multiplies each weight's decay, and the three sums, fp64."""
    grad = grad if grad_scale is None else grad / grad_scale.to(grad.dtype)
    magnitude, threshold = weight.abs().float(), threshold.float()
    pruned = magnitude < threshold
    near = (magnitude >= (1 - band) * threshold) & (magnitude <= (1 + band) * threshold)
    product = grad.double() * weight.double()
    kept_sum = (grad.double() * weight.double().masked_fill(pruned, 0)).sum()
    sums = torch.stack([kept_sum, product.masked_fill(~near, 0).sum(), near.sum().double()])
    grad = grad * torch.where(pruned, pruned_gradient, 1.0).to(grad.dtype)
    return -grad if maximize else grad, torch.where(pruned, pruned_decay, 1.0).to(weight.dtype), sums


def _finish(weights, thresholds, copies, statistics):
    """Fill the copies with the sparse weights, if wanted; the sums as one tensor [L, 3]."""
    for copy, weight, threshold in zip(copies, weights, thresholds):
        copy.copy_(gate(weight, None, threshold))
    if not statistics:
        return torch.zeros(0, 3, dtype=torch.float64)
    return torch.stack(statistics)


def pack(
    weight: Tensor, threshold: Tensor | None = None, attention: Tensor | None = None, firm: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed rows of weight [out, ...]: what is kept and not 0, shrunk where ``firm``, scaled; int32 columns, int64 row
    offsets [out + 1].
    """
    rows = weight.flatten(1)
    kept = rows != 0  # a NaN is nonzero
    if threshold is not None:
        kept = kept & ~(rows.abs().float() < threshold.float())
    row, column = kept.nonzero(as_tuple=True)
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64, device=weight.device)
    offsets[1:] = kept.sum(1).cumsum(0)
    values = rows[row, column]
    if firm and threshold is not None:
        values = (values - shrinkage(values, threshold)).to(weight.dtype)
    if attention is not None:
        values = (attention.reshape(1) * values).to(weight.dtype)
    return values, column.to(torch.int32), offsets


def adjoint(
    values: Tensor, columns: Tensor, offsets: Tensor, shape: list[int], groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The packed weight with inputs and outputs exchanged in each group, and the kernel turned around."""
    outputs, inputs, taps = shape[0] // groups, shape[1], torch.Size(shape[2:]).numel()
    row, column = packed_rows(offsets, len(values)), columns.long()
    new_row = row // outputs * inputs + column // max(taps, 1)
    new_column = row % max(outputs, 1) * taps + (taps - 1 - column % max(taps, 1))
    order = (new_row * (outputs * taps) + new_column).argsort()
    new_offsets = torch.zeros(inputs * groups + 1, dtype=torch.int64, device=values.device)
    new_offsets[1:] = torch.bincount(new_row, minlength=inputs * groups).cumsum(0)
    return values[order], new_column[order].to(torch.int32), new_offsets


def packed_rows(offsets: Tensor, nonzeros: int) -> Tensor:
    """The row of each of the packed nonzeros."""
    return torch.repeat_interleave(offsets.diff(), output_size=nonzeros)


def unpack(values: Tensor, columns: Tensor, offsets: Tensor, shape: list[int]) -> Tensor:
    """The dense weight of the given shape."""
    dense = values.new_zeros(shape[0], torch.Size(shape[1:]).numel())
    return dense.index_put((packed_rows(offsets, len(values)), columns.long()), values).view(shape)


def sampled_product(left: Tensor, right: Tensor, columns: Tensor, offsets: Tensor) -> Tensor:
    """left.T @ right [out, in] at the packed positions, zeros elsewhere."""
    product = left.mT @ right
    row, column = packed_rows(offsets, len(columns)), columns.long()
    return torch.zeros_like(product).index_put((row, column), product[row, column])


def sparse_linear(x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
    """x @ dense.T + bias."""
    return F.linear(x, unpack(values, columns, offsets, [len(offsets) - 1, x.shape[-1]]).to(x.dtype), bias)


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    offsets: Tensor,
    shape: list[int],
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """conv2d(x, dense) + bias."""
    return F.conv2d(x, unpack(values, columns, offsets, shape).to(x.dtype), bias, stride, padding, dilation, groups)
