"""Compressed rows of a sparse weight."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aswl_kernels import reference
from aswl_kernels._checks import FLOATING, check_scalar, want
from aswl_kernels._library import define, vmap_by
from aswl_kernels._packed import check_indices, trust


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """The nonzeros of a weight [out, ...], row by row.

    ``values``: floating [nonzeros]; ``columns``: int32 [nonzeros], positions in the flattened row, ascending;
    ``offsets``: int64 [out + 1], where each row begins; ``shape``: the weight's. Raises ``ValueError`` where these
    do not belong together; what the indices hold is checked by what uses them.
    """

    values: Tensor
    columns: Tensor
    offsets: Tensor
    shape: tuple[int, ...]
    checked: tuple | None = field(default=None, init=False, repr=False)  # see _packed.py

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        values, columns, offsets = self.values, self.columns, self.offsets
        together = (
            len(self.shape) >= 2
            and min(self.shape) >= 0
            and math.prod(self.shape[1:]) < 2**31
            and values.dim() == 1
            and values.dtype in FLOATING
            and columns.shape == values.shape
            and columns.dtype == torch.int32
            and offsets.shape == (self.shape[0] + 1,)
            and offsets.dtype == torch.int64
            and values.device == columns.device == offsets.device
        )
        wanted = "floating values [nonzeros], int32 columns [nonzeros] and int64 offsets [rows + 1] on one device"
        want(together, "PackedWeight", f"{wanted} for a weight of shape {self.shape}", values, columns, offsets)

    @property
    def indices(self) -> tuple[Tensor, Tensor]:
        """All but the values."""
        return self.columns, self.offsets

    def to(self, device: torch.device | str) -> "PackedWeight":
        """The same weight on another device."""
        return PackedWeight(self.values.to(device), self.columns.to(device), self.offsets.to(device), self.shape)


def pack(
    weight: Tensor, threshold: Tensor | None = None, attention: Tensor | None = None, firm: bool = False
) -> PackedWeight:
    """The nonzeros of ``gate(weight, attention, threshold, firm=firm)`` as compressed rows, without that tensor being made.

    ``weight``: floating [out, ...], two or more dimensions; ``threshold``, ``attention``: one element each (0-d or [1]),
    None meaning 0 and 1. Kept is what is not 0 and not below the threshold, compared in fp32; a NaN is, -0.0 is not.
    What is kept stays, even where the attention makes it 0. The values are differentiable with respect to the weight,
    straight-through, at the kept positions, and not to the attention. Raises ``ValueError`` on another dtype, shape or
    device.
    """
    want(weight.dtype in FLOATING and weight.dim() >= 2, "pack", "a floating weight [out, ...]", weight)
    want(weight[0].numel() < 2**31 if len(weight) else True, "pack", "rows of fewer than 2**31 elements", weight)
    for name, scalar in (("threshold", threshold), ("attention", attention)):
        if scalar is not None:
            check_scalar("pack", name, scalar, weight)
    return trust(PackedWeight(*_Pack.apply(weight, threshold, attention, firm), weight.shape))


def unpack(packed: PackedWeight) -> Tensor:
    """The dense weight of ``packed.shape``, differentiable with respect to ``packed.values``.

    Raises ``ValueError`` where the packed indices lead outside of it.
    """
    check_indices("unpack", packed)
    return scatter(packed.values, packed.columns, packed.offsets, packed.shape)


def scatter(values: Tensor, columns: Tensor, offsets: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A dense tensor of ``shape`` [out, ...] with ``values`` at the packed positions and zeros elsewhere."""
    return _Unpack.apply(values, columns, offsets, shape)


def gather(dense: Tensor, columns: Tensor, offsets: Tensor) -> Tensor:
    """The elements of ``dense`` [out, ...] at the packed positions."""
    return dense.flatten(1)[reference.packed_rows(offsets, len(columns)), columns.long()]


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(weight, threshold, attention, firm):
        return pack_op(weight, threshold, attention, firm)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, columns, offsets = output
        ctx.mark_non_differentiable(columns, offsets)
        ctx.save_for_backward(columns, offsets, inputs[2])
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx, grad, *_):
        columns, offsets, attention = ctx.saved_tensors
        if attention is not None:
            grad = (attention.detach().reshape(1) * grad).to(grad.dtype)
        return scatter(grad, columns, offsets, ctx.shape), None, None, None


class _Unpack(torch.autograd.Function):
    vmap = vmap_by(reference.unpack)

    @staticmethod
    def forward(values, columns, offsets, shape):
        return _unpack(values, columns, offsets, shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:3])

    @staticmethod
    def backward(ctx, grad):
        return gather(grad, *ctx.saved_tensors), None, None, None


def _fake_pack(
    weight: Tensor, threshold: Tensor | None = None, attention: Tensor | None = None, firm: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    nonzeros = torch.library.get_ctx().new_dynamic_size()
    columns = weight.new_empty(nonzeros, dtype=torch.int32)
    return weight.new_empty(nonzeros), columns, weight.new_empty(weight.shape[0] + 1, dtype=torch.int64)


def _fake_unpack(values: Tensor, columns: Tensor, offsets: Tensor, shape: list[int]) -> Tensor:
    return values.new_empty(shape)


pack_op = define(
    "pack(Tensor weight, Tensor? threshold=None, Tensor? attention=None, bool firm=False) -> (Tensor, Tensor, Tensor)",
    reference.pack,
    _fake_pack,
)
_unpack = define(
    "unpack(Tensor values, Tensor columns, Tensor offsets, SymInt[] shape) -> Tensor", reference.unpack, _fake_unpack
)
