"""Exact thresholds of all layers on a GPU, in about one read of the weights.

Launch by launch, each over all layers: (1) a sample of a layer tells an interval of magnitudes that almost surely holds the
answer, or last step's threshold does; (2) one read counts what lies above and collects what lies inside; (3-6) byte by byte
the answer is found among the collected, or, where the interval misled, among all weights of the layer; (7) the answers are
written. The launches depend on shapes only; what a layer does not need ends at once. Where all layers are small, the
first launch does it all.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels._programs import owner
from aswl_kernels._triton import on
from aswl_kernels.magnitude_histogram_triton import (
    BLOCK,
    CHUNK,
    FIRST_CHUNK,
    FIRST_GROUP,
    GROUP,
    KIND,
    WARPS,
    add_counts,
    column,
    count_digits,
    count_digits_of_weights,
    layers,
)
from aswl_kernels.magnitude_interval_triton import (
    LARGEST,
    collect,
    interval_of_guess,
    interval_of_sample,
    number,
    sampled,
    search,
    search_weights,
)
from aswl_kernels.magnitude_threshold import guess_counter

SAMPLE = 1 << 13  # weights in registers: a sample, or the whole of a layer that has no more
RUN = 4  # neighbours in a sample, as each costs 32 bytes of reading anyway
ALONE_WARPS = 16  # of a program that does all for a layer
ALONE = 1 << 16  # where no layer is larger, one program per layer is as fast as all launches together
ROOM = (
    512  # for what a warp collects of 4,096 weights: a sample's interval holds 5.5% of a layer, a guess's 1.5%, at most
)
FEW = 1 << 18  # equal keys: as many as may wait for one address, for a fraction of a millisecond

# rows of the state, one column per layer; keep is 0 where there is nothing left to do
KEEP, LOW, HIGH, ABOVE, INSIDE, LOST = (tl.constexpr(row) for row in range(6))
STATE_ROWS = 6


@triton.jit
def magnitude_threshold_sample_kernel(
    table_ptr,
    keep_ptr,
    guess_ptr,
    guess_counter_ptr,
    state_ptr,
    histogram_ptr,
    filled_ptr,
    room_ptr,
    y_ptr,
    n_layers,
    ALONE: tl.constexpr,
    SAMPLE: tl.constexpr,
    RUN: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Small layers: the answer. Others: their interval, and zeros where the following launches count."""
    layer = tl.program_id(0).to(tl.int64)
    address, n, kind, _ = column(table_ptr, layer, n_layers)
    keep = tl.minimum(tl.load(keep_ptr + layer), n)
    answer = tl.full([], 0, tl.int32)
    left = (keep > 0) & (n > SAMPLE)
    if (keep > 0) & (n <= SAMPLE):
        answer = search(sampled(address, kind, n, SAMPLE, RUN), keep, 0, 31)
    if left:
        if guess_ptr is None:
            low, high = interval_of_sample(sampled(address, kind, n, SAMPLE, RUN), keep, n, SAMPLE)
        else:
            low, high = interval_of_guess(tl.load(guess_ptr + layer), kind)
        if ALONE:
            ROOMS: tl.constexpr = BLOCK // 512
            filled, room = filled_ptr + layer * ROOMS, room_ptr + layer * (ROOMS * ROOM)
            above, inside, fits = collect(address, kind, 0, n, low, high, filled, room, ROOM, BLOCK)
            tl.debug_barrier()  # each thread sees what the others have collected
            hit = (above < keep) & (keep <= above + inside) & fits
            if hit:
                i = tl.arange(0, ROOMS * ROOM)
                present = (i % ROOM < tl.load(filled + i // ROOM)) & (low < high)
                keys = tl.load(room + i, mask=present, other=-1)
                bits = tl.sum((((low ^ high) >> tl.arange(0, 32)) > 0).to(tl.int32))
                answer = search(keys, keep - above, low >> bits << bits, bits)
            else:
                answer = search_weights(address, kind, n, keep, BLOCK)
            if guess_ptr is not None:
                tl.atomic_add(guess_counter_ptr + tl.where(hit, 0, 1), 1, sem="relaxed")
        else:
            entry = state_ptr + layer
            tl.store(entry + LOW * n_layers, low)
            tl.store(entry + HIGH * n_layers, high)
            tl.store(entry + ABOVE * n_layers, 0)
            tl.store(entry + INSIDE * n_layers, 0)
            tl.store(entry + LOST * n_layers, 0)
            i = tl.arange(0, 1024)
            tl.store(histogram_ptr + layer * 1024 + i, tl.zeros([1024], tl.int64))
    if not ALONE:
        tl.store(state_ptr + layer + KEEP * n_layers, tl.where(left, keep, 0))
    tl.store(y_ptr + layer, tl.where(keep > 0, number(answer, kind), float("inf")))


@triton.jit
def magnitude_threshold_collect_kernel(
    table_ptr,
    state_ptr,
    filled_ptr,
    room_ptr,
    n_layers,
    LAYERS: tl.constexpr,
    CHUNK: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    layer, chunk = owner(table_ptr + FIRST_CHUNK * n_layers, i, n_layers, LAYERS)
    entry = state_ptr + layer
    if tl.load(entry + KEEP * n_layers) > 0:
        address, n, kind, _ = column(table_ptr, layer, n_layers)
        low = tl.load(entry + LOW * n_layers).to(tl.int32)
        high = tl.load(entry + HIGH * n_layers).to(tl.int32)
        start, end = chunk * CHUNK, tl.minimum(n, (chunk + 1) * CHUNK)
        ROOMS: tl.constexpr = BLOCK // 512
        filled, room = filled_ptr + i * ROOMS, room_ptr + i * (ROOMS * ROOM)
        above, inside, fits = collect(address, kind, start, end, low, high, filled, room, ROOM, BLOCK)
        tl.atomic_add(entry + ABOVE * n_layers, above, sem="relaxed")
        tl.atomic_add(entry + INSIDE * n_layers, inside, sem="relaxed")
        if not fits:
            tl.atomic_add(entry + LOST * n_layers, 1, sem="relaxed")


@triton.jit
def verified(state_ptr, layer, n_layers):
    """Whether the interval of a layer holds its answer, the interval, and the answer's rank in it; else of all weights."""
    entry = state_ptr + layer
    keep, above = tl.load(entry + KEEP * n_layers), tl.load(entry + ABOVE * n_layers)
    inside = tl.load(entry + INSIDE * n_layers)
    hit = (above < keep) & (keep <= above + inside) & (tl.load(entry + LOST * n_layers) == 0)
    low = tl.where(hit, tl.load(entry + LOW * n_layers), 0).to(tl.int32)
    high = tl.where(hit, tl.load(entry + HIGH * n_layers), LARGEST).to(tl.int32)
    return hit, low, high, tl.where(hit, keep - above, keep)


@triton.jit
def settled(histogram_ptr, low, high, rank, steps):
    """The first bytes of the rank-th largest, by so many steps' histograms, and how many begin so, if that is known."""
    prefix, left = tl.full([], 0, tl.int32), tl.full([], 0x7FFFFFFFFFFFFFFF, tl.int64)
    digit = tl.arange(0, 256)
    for step in range(steps):
        shift = 24 - 8 * step
        chosen = (low >> shift) & 255  # where low and high agree, nothing was counted
        if ((low ^ high) >> shift) > 0:
            counts = tl.load(histogram_ptr + step * 256 + digit)  # all 0 for the lower bytes of a bf16
            chosen = tl.maximum(tl.sum((tl.cumsum(counts, reverse=True) >= rank).to(tl.int32)) - 1, 0)
            rank -= tl.sum(tl.where(digit > chosen, counts, 0))
            left = tl.sum(tl.where(digit == chosen, counts, 0))
        prefix = prefix * 256 + chosen
    return prefix, left


@triton.jit
def count_digits_of_collected(
    filled_ptr,
    room_ptr,
    rooms,
    prefix,
    shift,
    few,
    counts,
    histogram_ptr,
    ROOMS: tl.constexpr,
    ROOM: tl.constexpr,
):
    """:func:`count_digits` of what lies in the first ``rooms`` of ``ROOMS`` rooms."""
    WIDTH: tl.constexpr = 2048 // ROOMS
    room, slot = tl.arange(0, ROOMS), tl.arange(0, WIDTH)
    filled = tl.load(filled_ptr + room, mask=room < rooms, other=0)
    for start in range(0, tl.max(filled), WIDTH):
        present = (start + slot)[None, :] < filled[:, None]
        keys = tl.load(room_ptr + room[:, None] * ROOM + (start + slot)[None, :], mask=present, other=-1)
        counts = count_digits(keys, prefix, shift, few, counts, histogram_ptr)
    return counts


@triton.jit(do_not_specialize=["step"])
def magnitude_threshold_digit_kernel(
    table_ptr,
    state_ptr,
    histogram_ptr,
    filled_ptr,
    room_ptr,
    step,
    n_layers,
    LAYERS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    ROOM: tl.constexpr,
    FEW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    layer, group = owner(table_ptr + FIRST_GROUP * n_layers, tl.program_id(0).to(tl.int64), n_layers, LAYERS)
    address, n, kind, first_chunk = column(table_ptr, layer, n_layers)
    hit, low, high, rank = verified(state_ptr, layer, n_layers)
    shift = 24 - 8 * step
    if (rank > 0) & (((low ^ high) >> shift) > 0) & ((kind == 0) | (shift >= 16)):
        histogram_ptr += layer.to(tl.int64) * 1024
        prefix, left = settled(histogram_ptr, low, high, rank, step)
        start, end = group * GROUP * CHUNK, tl.minimum(n, (group + 1) * GROUP * CHUNK)
        own, few, counts = histogram_ptr + step * 256, left <= FEW, tl.zeros([256], tl.int32)
        if hit:
            ROOMS: tl.constexpr = BLOCK // 512
            first = (first_chunk + group * GROUP) * ROOMS
            rooms = tl.cdiv(end - start, CHUNK) * ROOMS
            counts = count_digits_of_collected(
                filled_ptr + first,
                room_ptr + first * ROOM,
                rooms,
                prefix,
                shift,
                few,
                counts,
                own,
                GROUP * ROOMS,
                ROOM,
            )
        else:
            counts = count_digits_of_weights(address, kind, start, end, prefix, shift, few, counts, own, BLOCK)
        add_counts(own, counts)


@triton.jit
def magnitude_threshold_finish_kernel(table_ptr, state_ptr, histogram_ptr, guess_counter_ptr, y_ptr, n_layers):
    layer = tl.program_id(0)
    hit, low, high, rank = verified(state_ptr, layer, n_layers)
    if rank > 0:
        answer, _ = settled(histogram_ptr + layer.to(tl.int64) * 1024, low, high, rank, 4)
        tl.store(y_ptr + layer, number(answer, tl.load(table_ptr + KIND * n_layers + layer)))
        if guess_counter_ptr is not None:
            tl.atomic_add(guess_counter_ptr + tl.where(hit, 0, 1), 1, sem="relaxed")


def magnitude_threshold(weights: list[Tensor], keep: Tensor) -> Tensor:
    """See :func:`aswl_kernels.magnitude_threshold`: one launch if no layer is larger than ``ALONE``, else seven."""
    return magnitude_threshold_near(weights, keep, None)


def magnitude_threshold_near(weights: list[Tensor], keep: Tensor, guess: Tensor | None) -> Tensor:
    """The same, begun at ``guess``."""
    y = torch.empty_like(keep, dtype=torch.float32, memory_format=torch.contiguous_format)
    if not weights:
        return y
    with on(keep):
        _launch(weights, keep.contiguous(), guess if guess is None else guess.float().contiguous(), y)
    return y


def _launch(weights: list[Tensor], keep: Tensor, guess: Tensor | None, y: Tensor) -> None:
    alone = max(weight.numel() for weight in weights) <= ALONE
    work = layers(weights, least=SAMPLE + 1)
    count, device = len(weights), keep.device
    columns, warps = triton.next_power_of_2(count), ALONE_WARPS if alone else WARPS
    rooms = warps * (count if alone else work.chunks)
    state = torch.empty(STATE_ROWS, count, dtype=torch.int64, device=device)
    histogram = torch.empty(count, 4, 256, dtype=torch.int64, device=device)
    filled = torch.empty(rooms, dtype=torch.int32, device=device)
    room = torch.empty(rooms, ROOM, dtype=torch.int32, device=device)
    counter = None if guess is None else guess_counter(device)
    sample = magnitude_threshold_sample_kernel[(count,)]
    buffers, sizes = (state, histogram, filled, room, y), (alone, SAMPLE, RUN, ROOM, 512 * warps)
    sample(work.table, keep, guess, counter, *buffers, count, *sizes, num_warps=warps)
    if alone:
        return
    collect = magnitude_threshold_collect_kernel[(work.chunks,)]
    collect(work.table, state, filled, room, count, columns, CHUNK, ROOM, BLOCK, num_warps=WARPS)
    digit = magnitude_threshold_digit_kernel[(work.groups,)]
    buffers, sizes = (state, histogram, filled, room), (columns, CHUNK, GROUP, ROOM, FEW, BLOCK)
    for step in range(4):
        digit(work.table, *buffers, step, count, *sizes, num_warps=WARPS)
    magnitude_threshold_finish_kernel[(count,)](work.table, state, histogram, counter, y, count, num_warps=WARPS)
