"""Weights as gaps between nonzeros: the format for products with few rows, which are bound by reading the weight."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from aswl_kernels import reference_gaps as reference
from aswl_kernels._checks import FLOATING, want
from aswl_kernels._library import define, vmap_by
from aswl_kernels._packed import trust, unchecked
from aswl_kernels._triton import serve
from aswl_kernels.pack import pack

NIBBLES_FROM = 0.12  # density from which codes of 4 bits, for all their escapes, take fewer bytes than codes of 8


@dataclass(frozen=True, eq=False)
class GapWeight:
    """The nonzeros of a weight [out, in], each with the gap before it, laid out for 32 lanes that take a row each.

    Rows make strips of 32, columns segments (``reference_gaps.segment_width``), and both together blocks. In a block each
    row has a list of slots, filled up to a multiple of 8 that is the same for its 32 rows; 8 slots of the first row come
    first, then 8 of the second, and so on. A slot is a value and a code: how many columns it lies to the right of the
    slot before, or of where the segment begins. The largest code moves on as far, without a value.

    ``values``: floating [slots], 0 where a slot holds none; ``codes``: [slots / 8], int32 of 8 codes of 4 bits or int64
    of 8 codes of 8 bits, the first slot's lowest; ``offsets``: int64 [blocks + 1], the first 32 x 8 slots of each block,
    counted in such steps; ``lengths``: int32 [out, segments], the slots of each row that count; ``shape``: the weight's.
    Raises ``ValueError`` where these do not belong together; what they hold is checked by what uses them.

    For a bf16 weight of density d this takes about 20 d bits per element, 24 d where it is sparse, and for rows filled up
    5 to 15% more in segments of 2048 columns, 10 to 35% in the narrowest.
    """

    values: Tensor
    codes: Tensor
    offsets: Tensor
    lengths: Tensor
    shape: tuple[int, int]
    checked: tuple | None = field(default=None, init=False, repr=False)  # see _packed.py

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
        values, codes, offsets, lengths = pieces = self.values, *self.indices
        sized = len(self.shape) == 2 and min(self.shape) >= 0 and self.shape[1] < 2**31
        strips, segments = reference.gap_blocks(*self.shape) if sized else (0, 0)
        together = (
            sized
            and values.dtype in FLOATING
            and values.shape == (codes.numel() * reference.STEP,)
            and codes.dtype in (torch.int32, torch.int64)
            and codes.dim() == 1
            and len(codes) % reference.STRIP == 0
            and (offsets.dtype, offsets.shape) == (torch.int64, (strips * segments + 1,))
            and (lengths.dtype, lengths.shape) == (torch.int32, (self.shape[0], segments))
            and len({t.device for t in pieces}) == 1
        )
        wanted = (
            "floating values [slots], int32 or int64 codes [slots / 8], int64 offsets [blocks + 1] and int32 lengths"
        )
        want(together, "GapWeight", f"{wanted} [out, segments] on one device for shape {self.shape}", *pieces)

    @property
    def indices(self) -> tuple[Tensor, Tensor, Tensor]:
        """All but the values."""
        return self.codes, self.offsets, self.lengths

    def to(self, device: torch.device | str) -> "GapWeight":
        """The same weight on another device."""
        return GapWeight(self.values.to(device), *(t.to(device) for t in self.indices), self.shape)


def pack_gaps(weight: Tensor, threshold: Tensor | None = None, attention: Tensor | None = None) -> GapWeight:
    """The nonzeros of ``gate(weight, attention, threshold)`` with the gaps between them.

    ``weight``: floating [out, in]; what is kept, scaled and differentiable, and what is raised, are those of :func:`pack`.
    Reads sizes on the host, and takes some 100 bytes per nonzero while it lasts: it is no part of a step.
    """
    want(weight.dtype in FLOATING and weight.dim() == 2, "pack_gaps", "a floating weight [out, in]", weight)
    packed = pack(weight, threshold, attention)
    bits = 4 if len(packed.values) >= NIBBLES_FROM * weight.numel() else 8
    slots, *indices = _layout(packed.columns, packed.offsets, weight.shape[1], bits)
    values = packed.values.new_zeros(len(indices[0]) * reference.STEP).index_copy(0, slots, packed.values)
    return trust(GapWeight(values, *indices, weight.shape))


def unpack_gaps(packed: GapWeight) -> Tensor:
    """The dense weight of ``packed.shape``, differentiable with respect to ``packed.values``.

    Raises ``ValueError`` where the packed indices lead outside of it.
    """
    check_gaps("unpack_gaps", packed)
    return scatter_gaps(packed.values, *packed.indices, packed.shape)


def check_gaps(op: str, packed: GapWeight) -> None:
    """Raise ``ValueError`` unless all slots of the ``GapWeight`` lie in their segments; looks when ``unchecked`` says so."""
    if not unchecked(packed):
        return
    packed.__post_init__()  # lengths can change in place, too
    codes, offsets, lengths = packed.indices
    steps, inputs = len(codes) // reference.STRIP, packed.shape[1]
    ascend = offsets[0] == 0 and offsets[-1] == steps and bool((offsets.diff() >= 0).all())
    want(ascend, op, f"packed offsets that ascend from 0 to the {steps} steps", offsets.tolist()[:10])
    if steps:
        _, column, _ = reference.gap_positions(*packed.indices, inputs)
        width = reference.segment_width(*packed.shape)
        block = torch.repeat_interleave(offsets.diff(), output_size=steps)
        last = ((block % lengths.shape[1] + 1) * width).clamp(max=inputs)[:, None, None] - 1
        want(bool((column <= last).all()), op, f"packed codes within segments of {width} columns", codes[:10].tolist())
    trust(packed)


def scatter_gaps(values: Tensor, codes: Tensor, offsets: Tensor, lengths: Tensor, shape: tuple[int, int]) -> Tensor:
    """A dense tensor of ``shape`` with ``values`` at the packed positions and zeros elsewhere."""
    return _UnpackGaps.apply(values, codes, offsets, lengths, shape)


def gather_gaps(dense: Tensor, codes: Tensor, offsets: Tensor, lengths: Tensor) -> Tensor:
    """The elements of ``dense`` [out, in] at the packed positions; 0 in slots that hold none."""
    row, column, holds = reference.gap_positions(codes, offsets, lengths, dense.shape[-1])
    picked = dense[row.clamp(max=max(len(dense) - 1, 0)), column.where(holds, 0)]
    return picked.where(holds, 0).flatten()


class _UnpackGaps(torch.autograd.Function):
    vmap = vmap_by(reference.unpack_gaps)

    @staticmethod
    def forward(values, codes, offsets, lengths, shape):
        return unpack_gaps_op(values, codes, offsets, lengths, shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:4])

    @staticmethod
    def backward(ctx, grad):
        return gather_gaps(grad, *ctx.saved_tensors), None, None, None, None


def _fake_layout(columns: Tensor, offsets: Tensor, inputs: int, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = offsets.shape[0] - 1
    strips, segments = reference.gap_blocks(outputs, inputs)
    steps = torch.library.get_ctx().new_dynamic_size()
    return (
        columns.new_empty(columns.shape, dtype=torch.int64),
        columns.new_empty(steps * reference.STRIP, dtype=torch.int32 if bits == 4 else torch.int64),
        offsets.new_empty(strips * segments + 1),
        columns.new_empty(outputs, segments),
    )


def _fake_unpack(values: Tensor, codes: Tensor, offsets: Tensor, lengths: Tensor, shape: list[int]) -> Tensor:
    return values.new_empty(shape)


_layout = define(
    "gap_layout(Tensor columns, Tensor offsets, int inputs, int bits) -> (Tensor, Tensor, Tensor, Tensor)",
    reference.gap_layout,
    _fake_layout,
)
unpack_gaps_op = define(
    "unpack_gaps(Tensor values, Tensor codes, Tensor offsets, Tensor lengths, SymInt[] shape) -> Tensor",
    reference.unpack_gaps,
    _fake_unpack,
)
serve("unpack_gaps", "gap_linear_triton", reference.unpack_gaps)
