"""The specification: every operator in a few lines of differentiable PyTorch, on any device and floating dtype.

Thresholds are compared in fp32 whatever the weight's dtype, a NaN is never pruned, and gradients with respect to a
pruned weight are straight-through (arXiv 2111.02399, section 3): they are those of the weight as if it were kept.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def magnitude_threshold(weights: list[Tensor], keep: Tensor) -> Tensor:
    """Each layer's keep-th largest magnitude; NaN counts as largest; +inf where keep < 1 or the layer is empty."""
    thresholds = [torch.full((), float("inf"), device=keep.device)] * len(weights)
    for i, weight in enumerate(weights):
        if weight.numel() > 0:
            ranked = weight.detach().abs().float().flatten().sort(descending=True).values  # NaN sorts first
            kth = ranked.gather(0, (keep[i : i + 1] - 1).clamp(0, weight.numel() - 1))[0]
            thresholds[i] = kth.where(keep[i] >= 1, float("inf"))
    return torch.stack(thresholds) if thresholds else keep.new_empty(0, dtype=torch.float32)


def gate(weight: Tensor, attention: Tensor | None, threshold: Tensor) -> Tensor:
    """attention * weight where abs(weight) >= threshold, else 0; None means 1."""
    kept = ~(weight.abs().float() < threshold.float())  # so that a NaN is kept
    sparse = weight - weight.masked_fill(kept, 0).detach()
    if attention is None:
        return sparse
    folded = (attention.reshape(1) * sparse).to(weight.dtype)  # a fp32 [1] attention promotes: rounded once
    return folded.reshape(weight.shape)  # 0-d again where it was


def attention_gradient(grad: Tensor, weight: Tensor, attention: Tensor, threshold: Tensor) -> Tensor:
    """sum(grad * sparse) in fp32 or wider, as the attention is."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = (grad.to(wide) * gate(weight, None, threshold).to(wide)).sum()
    return total.to(attention.dtype).reshape(attention.shape)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    attention: Tensor | None = None,
    bias: Tensor | None = None,
    scaled: bool = True,
    learnable: Tensor | None = None,
    gate: Callable = gate,
) -> Tensor:
    """attention * (x @ sparse.T + bias), the product in x's dtype; the attention's value is 1 unless ``scaled``."""
    weight = _learning(weight, learnable)
    return F.linear(x, *_folded(x, weight, threshold, attention, bias, scaled, gate))


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
    gate: Callable = gate,
) -> Tensor:
    """attention * (conv2d(x, sparse) + bias), the product in x's dtype; the attention's value is 1 unless ``scaled``."""
    weight = _learning(weight, learnable)
    folded = _folded(x, weight, threshold, attention, bias, scaled, gate)
    return F.conv2d(x, *folded, stride, padding, dilation, groups)


def _learning(weight: Tensor, learnable: Tensor | None) -> Tensor:
    """The weight, constant where abs(weight) < learnable; None means 0."""
    if learnable is None:
        return weight
    return weight.detach().where(weight.abs().float() < learnable.float(), weight)


def _folded(x, weight, threshold, attention, bias, scaled, gate):
    """The sparse weight and the bias, both scaled by the attention, in x's dtype."""
    if attention is not None and not scaled:
        attention = attention - attention.detach() + 1
    return gate(weight, attention, threshold).to(x.dtype), folded_bias(bias, attention, x.dtype)


def folded_bias(bias: Tensor | None, attention: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """attention * bias in the product's dtype; None means 1, and no bias."""
    return bias if bias is None else (bias if attention is None else attention.reshape(1) * bias).to(dtype)


def pack(
    weight: Tensor, threshold: Tensor | None = None, attention: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed rows of weight [out, ...]: what is kept and not 0, scaled; int32 columns, int64 row offsets [out + 1]."""
    rows = weight.flatten(1)
    kept = rows != 0  # a NaN is nonzero
    if threshold is not None:
        kept = kept & ~(rows.abs().float() < threshold.float())
    row, column = kept.nonzero(as_tuple=True)
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64, device=weight.device)
    offsets[1:] = kept.sum(1).cumsum(0)
    values = rows[row, column]
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
