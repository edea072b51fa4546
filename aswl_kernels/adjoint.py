"""The packed weight of the product that gives the input gradient."""

import torch
from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._checks import want
from aswl_kernels._library import define
from aswl_kernels._packed import check_indices, trust
from aswl_kernels.pack import PackedWeight


def adjoint(packed: PackedWeight, groups: int = 1) -> PackedWeight:
    """Inputs and outputs exchanged, within each group, and the kernel turned around: from the nonzeros alone.

    For ``packed`` of shape (out, in) it is the packed transpose, (in, out), and ``sparse_linear(grad, adjoint(packed))``
    the input gradient of ``sparse_linear(x, packed)``. For (out, in / groups, height, width) it has the shape (in,
    out / groups, height, width), and with stride 1 the input gradient is ``sparse_conv2d(grad, adjoint(packed, groups),
    padding=dilation * (kernel - 1) - padding, dilation=dilation, groups=groups)``. Not differentiable. Raises
    ``ValueError`` for groups that do not divide out, and rows of the result that 32-bit columns cannot count.
    """
    check_indices("adjoint", packed)
    out, inputs, *kernel = packed.shape
    want(groups >= 1 and out % groups == 0, "adjoint", f"groups that divide the {out} rows", groups)
    shape = (inputs * groups, out // groups, *kernel)
    want(torch.Size(shape[1:]).numel() < 2**31, "adjoint", "rows of fewer than 2**31 elements", shape)
    pieces = (packed.values.detach(), packed.columns, packed.offsets)
    return trust(PackedWeight(*adjoint_op(*pieces, packed.shape, groups), shape))


def _fake(values: Tensor, columns: Tensor, offsets: Tensor, shape: list[int], groups: int) -> tuple[Tensor, ...]:
    new_offsets = offsets.new_empty(shape[1] * groups + 1)
    return torch.empty_like(values), torch.empty_like(columns), new_offsets


adjoint_op = define(
    "adjoint(Tensor values, Tensor columns, Tensor offsets, SymInt[] shape, SymInt groups) -> (Tensor, Tensor, Tensor)",
    reference.adjoint,
    _fake,
)
