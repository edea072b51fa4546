"""Histograms of magnitudes' digits for many layers in one launch, and what every selection of thresholds builds on.

A magnitude is known by its bits, in the upper half where they are those of a bf16 or fp16: 31 bits whose order as
integers is that of the numbers, with NaN on top.
"""

from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels._integers import integers
from aswl_kernels._programs import owner
from aswl_kernels._triton import aligned, on

CHUNK = 1 << 15  # weights that one program collects from; of a large tensor, whose last wave is then a small part
GROUP = 4  # chunks of one program that counts digits: few programs, since each ends with up to 256 atomics
BLOCK = 4096  # weights at a time: with 8 warps a thread reads four times 16 bytes (fp32)
WARPS = 8
# a histogram's keys may come in any order, which spares a trip through shared memory; Triton 3.9 wants to do without
REORDER = tl.constexpr(tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9))
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# rows of the table, one column per layer
ADDRESS, SIZE, KIND, FIRST_CHUNK, FIRST_GROUP = (tl.constexpr(row) for row in range(5))


class Layers(NamedTuple):
    """``weights`` without gaps, at multiples of 16 bytes; what kernels know of them; chunks and groups of all."""

    weights: list[Tensor]
    table: Tensor
    chunks: int
    groups: int


def layers(weights: list[Tensor], least: int) -> Layers:
    """Lays out the weights; layers of fewer than ``least`` have no chunks. A copy is made of one with gaps."""
    weights = [aligned(weight) for weight in weights]
    sizes = [weight.numel() for weight in weights]
    chunks = [triton.cdiv(n, CHUNK) if n >= least else 0 for n in sizes]
    groups = [triton.cdiv(n, GROUP) for n in chunks]
    rows = [weight.data_ptr() for weight in weights], sizes, [KINDS[weight.dtype] for weight in weights]
    firsts = [list(accumulate(counts, initial=0))[:-1] for counts in (chunks, groups)]
    values = [value for row in (*rows, *firsts) for value in row]
    return Layers(weights, integers(values, weights[0].device), sum(chunks), sum(groups))


@triton.jit
def column(table_ptr, layer, n_layers):
    """Address, size and kind of a layer, and its first chunk."""
    entry = table_ptr + layer
    address, n = tl.load(entry + ADDRESS * n_layers), tl.load(entry + SIZE * n_layers)
    return address, n, tl.load(entry + KIND * n_layers), tl.load(entry + FIRST_CHUNK * n_layers)


@triton.jit
def magnitudes_at(address, kind, i, inside):
    """Magnitudes of weights ``i``; -1 where not ``inside``."""
    if kind == 0:
        bits = tl.load(address.to(tl.pointer_type(tl.int32)) + i, mask=inside, other=0)
    else:
        bits = tl.load(address.to(tl.pointer_type(tl.int16)) + i, mask=inside, other=0).to(tl.int32) << 16
    return tl.where(inside, bits & 0x7FFFFFFF, -1)


@triton.jit
def magnitudes_of_block(address, kind, start, end, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """Magnitudes of weights [start, start + BLOCK) in some order, [BLOCK // 16, 16], of which a thread has whole rows.

    ``WHOLE`` blocks are read 16 bytes at a time in any dtype; in others, -1 stands from ``end`` on.
    """
    QUARTER: tl.constexpr = BLOCK // 4
    i = tl.max_contiguous(tl.multiple_of(tl.arange(0, QUARTER), 16), 16)
    words, left = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 16), (end - start).to(tl.int32)
    if kind == 0:
        here = words + start + i
        one = tl.load(here, mask=None if WHOLE else i < left)
        two = tl.load(here + QUARTER, mask=None if WHOLE else i + QUARTER < left)
        three = tl.load(here + 2 * QUARTER, mask=None if WHOLE else i + 2 * QUARTER < left)
        four = tl.load(here + 3 * QUARTER, mask=None if WHOLE else i + 3 * QUARTER < left)
    else:
        here = words + start // 2 + i
        pair = tl.load(here, mask=None if WHOLE else 2 * i < left)
        other = tl.load(here + QUARTER, mask=None if WHOLE else 2 * (i + QUARTER) < left)
        one, two, three, four = pair << 16, pair & -0x10000, other << 16, other & -0x10000
    keys = tl.join(tl.join(one, three), tl.join(two, four)) & 0x7FFFFFFF
    if not WHOLE:
        at = tl.join(tl.join(i, i + 2 * QUARTER), tl.join(i + QUARTER, i + 3 * QUARTER))
        if kind != 0:
            at = tl.join(tl.join(2 * i, 2 * (i + QUARTER)), tl.join(2 * i + 1, 2 * (i + QUARTER) + 1))
        keys = tl.where(at < left, keys, -1)
    return tl.reshape(keys, [BLOCK // 16, 16])


@triton.jit
def count_digits(keys, prefix, shift, few, counts, histogram_ptr):
    """Counts the digits at ``shift`` of the keys behind ``prefix``, of which negative ones are none.

    In ``counts``, which is returned, at 58 instructions a key; or, as ``few`` tells that there are not many, at a tenth of
    them in the histogram itself, where many would wait for each other.
    """
    upper = tl.ravel(keys, can_reorder=REORDER) >> shift
    wanted = (upper >> 8) == prefix
    if few:
        tl.atomic_add(histogram_ptr + (upper & 255), tl.full(upper.shape, 1, tl.int64), mask=wanted, sem="relaxed")
    else:
        counts += tl.histogram(upper & 255, 256, mask=wanted)
    return counts


@triton.jit
def count_digits_of_weights(address, kind, start, end, prefix, shift, few, counts, histogram_ptr, BLOCK: tl.constexpr):
    """The same for the weights [start, end) of a layer."""
    tail = end - (end - start) % BLOCK
    for i in range(start, tail, BLOCK):
        keys = magnitudes_of_block(address, kind, i, end, True, BLOCK)
        counts = count_digits(keys, prefix, shift, few, counts, histogram_ptr)
    if tail < end:
        keys = magnitudes_of_block(address, kind, tail, end, False, BLOCK)
        counts = count_digits(keys, prefix, shift, few, counts, histogram_ptr)
    return counts


@triton.jit
def add_counts(histogram_ptr, counts):
    tl.atomic_add(histogram_ptr + tl.arange(0, 256), counts.to(tl.int64), mask=counts > 0, sem="relaxed")


@triton.jit(do_not_specialize=["shift"])
def magnitude_histogram_kernel(
    table_ptr,
    prefix_ptr,
    histogram_ptr,
    shift,
    n_layers,
    LAYERS: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    layer, group = owner(table_ptr + FIRST_GROUP * n_layers, tl.program_id(0).to(tl.int64), n_layers, LAYERS)
    address, n, kind, _ = column(table_ptr, layer, n_layers)
    end = tl.minimum(n, (group + 1) * SPAN)
    histogram, prefix = histogram_ptr + layer.to(tl.int64) * 256, tl.load(prefix_ptr + layer)
    counts = tl.zeros([256], tl.int32)
    counts = count_digits_of_weights(address, kind, group * SPAN, end, prefix, shift, False, counts, histogram, BLOCK)
    add_counts(histogram, counts)


def magnitude_histogram(weights: list[Tensor], prefix: Tensor, shift: int) -> Tensor:
    """See :func:`aswl_kernels.reference.magnitude_histogram`."""
    histogram = torch.zeros(len(weights), 256, dtype=torch.int64, device=prefix.device)
    if any(weight.numel() for weight in weights):
        with on(prefix):
            work = layers(weights, least=1)
            magnitude_histogram_kernel[(work.groups,)](
                work.table,
                prefix.contiguous(),
                histogram,
                shift,
                len(weights),
                triton.next_power_of_2(len(weights)),
                GROUP * CHUNK,
                BLOCK,
                num_warps=WARPS,
            )
    return histogram
