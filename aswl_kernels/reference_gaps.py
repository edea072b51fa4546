"""The specification of gap-coded weights; :class:`aswl_kernels.GapWeight` says what they are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aswl_kernels.reference import packed_rows

STRIP = 32  # rows whose slots lie side by side: one for each lane of a warp
STEP = 8  # slots of a row that lie together: 16 bytes of bf16 values
BLOCKS = 4096  # of strip and segment that a weight is to have: 31 for each multiprocessor of an H200, which holds 32
NARROWEST = (
    512  # columns of a segment; narrower ones differ too much in their nonzeros, and the shorter rows are filled up
)


def segment_width(outputs: int, inputs: int) -> int:
    """Columns of a segment: a power of two, as large as BLOCKS allows."""
    width, segments = NARROWEST, max(1, BLOCKS // max(1, -(-outputs // STRIP)))
    while 2 * width * segments <= inputs:
        width *= 2
    return width


def gap_blocks(outputs: int, inputs: int) -> tuple[int, int]:
    """How many strips and segments a weight [out, in] has."""
    return -(-outputs // STRIP), -(-inputs // segment_width(outputs, inputs))


def code_bits(codes: Tensor) -> int:
    """Bits of a code: eight make one element of ``codes``."""
    return codes.element_size()


def gap_layout(columns: Tensor, offsets: Tensor, inputs: int, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From a packed weight's columns and row offsets: the slot of each nonzero; codes, offsets of blocks, lengths."""
    outputs, escape = len(offsets) - 1, 2**bits - 1
    width, (strips, segments) = segment_width(outputs, inputs), gap_blocks(outputs, inputs)
    row, column = packed_rows(offsets, len(columns)), columns.long()
    part = column // width
    run = row * segments + part  # a row's share of a segment
    first = run.diff(prepend=run.new_full((1,), -1)) != 0
    gap = column - torch.where(first, part * width, column.roll(1))
    escapes = gap // escape
    lengths = run.new_zeros(outputs * segments).index_add(0, run, escapes + 1)
    slot = (escapes + 1).cumsum(0) - 1 - (lengths.cumsum(0) - lengths)[run]
    lengths = lengths.view(outputs, segments)
    longest = F.pad(lengths, (0, 0, 0, strips * STRIP - outputs)).view(strips, STRIP, segments).amax(1)
    steps = (-(-longest // STEP)).flatten()
    blocks = F.pad(steps.cumsum(0), (1, 0))
    begin = (blocks[row // STRIP * segments + part] * STRIP + row % STRIP) * STEP

    def place(begin: Tensor, slot: Tensor) -> Tensor:
        return begin + slot // STEP * (STRIP * STEP) + slot % STEP

    slots = place(begin, slot)
    codes = torch.zeros(int(blocks[-1]) * STRIP * STEP, dtype=torch.uint8, device=columns.device)
    codes[slots] = (gap % escape).to(torch.uint8)
    several = torch.repeat_interleave(escapes)  # for each escape the nonzero that follows
    back = several.new_ones(len(several)).cumsum(0) - (escapes.cumsum(0) - escapes)[several]
    codes[place(begin[several], slot[several] - back)] = escape
    if bits == 4:
        codes = codes[::2] | codes[1::2] << 4
    return slots, codes.view(torch.int32 if bits == 4 else torch.int64), blocks, lengths.to(torch.int32)


def gap_positions(codes: Tensor, offsets: Tensor, lengths: Tensor, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row [steps, 32, 1], column and whether it holds a value [steps, 32, 8], of each slot."""
    (outputs, segments), bits, device = lengths.shape, code_bits(codes), codes.device
    width, strips = segment_width(outputs, inputs), gap_blocks(outputs, inputs)[0]
    steps = len(codes) // STRIP
    block = packed_rows(offsets, steps)
    begin = offsets[block]  # the step at which it begins
    nth = torch.arange(STEP, device=device)
    code = ((codes.view(steps, STRIP, 1) >> nth * bits) & (2**bits - 1)).long()
    upto = code.transpose(0, 1).reshape(STRIP, steps * STEP).cumsum(1).view(STRIP, steps, STEP).transpose(0, 1)
    column = upto - (upto - code)[begin, :, :1] + (block % max(segments, 1) * width)[:, None, None]
    row = (block // max(segments, 1) * STRIP)[:, None] + torch.arange(STRIP, device=device)
    length = F.pad(lengths, (0, 0, 0, strips * STRIP - outputs))[row, (block % max(segments, 1))[:, None]]
    slot = (torch.arange(steps, device=device) - begin)[:, None, None] * STEP + nth
    return row[:, :, None], column, (slot < length[:, :, None]) & (code != 2**bits - 1)


def unpack_gaps(values: Tensor, codes: Tensor, offsets: Tensor, lengths: Tensor, shape: list[int]) -> Tensor:
    """The dense weight [out, in]."""
    outputs, inputs = shape
    row, column, holds = gap_positions(codes, offsets, lengths, inputs)
    dense = values.new_zeros(
        gap_blocks(outputs, inputs)[0] * STRIP, inputs + 1
    )  # the last column takes what holds nothing
    at = row.expand_as(column), column.where(holds, inputs)
    return dense.index_put(at, values.view(column.shape))[:outputs, :inputs].contiguous()


def gap_linear(
    x: Tensor, values: Tensor, codes: Tensor, offsets: Tensor, lengths: Tensor, bias: Tensor | None
) -> Tensor:
    """x @ dense.T + bias."""
    dense = unpack_gaps(values, codes, offsets, lengths, [lengths.shape[0], x.shape[-1]])
    return F.linear(x, dense.to(x.dtype), bias)
