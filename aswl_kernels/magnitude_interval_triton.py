"""Intervals of magnitudes that almost surely hold a layer's threshold, and what lies in them: for kernels to inline."""

import triton
import triton.language as tl

from aswl_kernels.magnitude_histogram_triton import magnitudes_at, magnitudes_of_block

BAND = tl.constexpr(1 / 64)  # to either side of a guess: a step moves a threshold by thousandths, and ROOM is ample
LARGEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def search(keys, rank, upper, bits):
    """The rank-th largest of keys, which is ``upper`` but for its lowest ``bits``."""
    found = tl.full([], 0, tl.int32)
    for i in range(1, bits + 1):
        candidate = found | (1 << (bits - i))
        reaching = tl.sum((keys >= (upper | candidate)).to(tl.int32))
        found = tl.where(reaching >= rank, candidate, found)
    return upper | found


@triton.jit
def search_weights(address, kind, n, rank, BLOCK: tl.constexpr):
    """The rank-th largest of a whole layer, one bit per read of it."""
    found = tl.full([], 0, tl.int32)
    for bit in range(1, 32):
        candidate = found | (1 << (31 - bit))
        reaching = tl.zeros([BLOCK], tl.int32)
        for start in range(0, n, BLOCK):
            i = start + tl.arange(0, BLOCK)
            reaching += (magnitudes_at(address, kind, i, i < n) >= candidate).to(tl.int32)
        found = tl.where(tl.sum(reaching) >= rank, candidate, found)
    return found


@triton.jit
def sampled(address, kind, n, SAMPLE: tl.constexpr, RUN: tl.constexpr):
    """All magnitudes of a layer that has no more than ``SAMPLE``, then -1; else short runs, one at random in each part."""
    i = tl.arange(0, SAMPLE)
    run = (i // RUN).to(tl.int64)
    jitter = run * 0x9E3779B1 >> 12 & 1023
    spread = (run * 1024 + jitter) * (n - RUN) // (SAMPLE // RUN * 1024) + i % RUN
    return magnitudes_at(address, kind, tl.where(n > SAMPLE, spread, i), i < tl.minimum(n, SAMPLE).to(tl.int32))


@triton.jit
def interval_of_sample(keys, keep, n, SAMPLE: tl.constexpr):
    """[low, high], five standard deviations of the rank to either side: neighbours in a run are not quite independent."""
    share = keep.to(tl.float32) / n.to(tl.float32)
    rank = share * SAMPLE
    margin = 5 * tl.sqrt(rank * (1 - share)) + 2
    upper, lower = (rank - margin).to(tl.int32), (rank + margin).to(tl.int32) + 1
    top, bottom = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for bit in range(1, 20):  # both ranks' magnitudes but for the last 12 bits; two counts in one sum
        higher, lesser = top | (1 << (31 - bit)), bottom | (1 << (31 - bit))
        reaching = tl.sum((keys >= higher).to(tl.int32) + ((keys >= lesser).to(tl.int32) << 16))
        top = tl.where((reaching & 0xFFFF) >= upper, higher, top)
        bottom = tl.where((reaching >> 16) >= lower, lesser, bottom)
    high = tl.max(tl.where(keys <= (top | 0xFFF), keys, 0))  # ties are one magnitude
    low = tl.min(tl.where(keys >= bottom, keys, LARGEST))
    return tl.where(lower <= SAMPLE, low, 0), tl.where(upper >= 1, high, LARGEST)


@triton.jit
def number(bits, kind):
    """The magnitude of these bits in fp32."""
    if kind == 2:  # fp16: the exponent's 5 bits where fp32 has 8; inf and NaN have all of them set
        small = (bits >> 3).to(tl.float32, bitcast=True) * 2.0**112
        bits = tl.where(bits >= 0x7C000000, bits >> 3 | 0x7F800000, small.to(tl.int32, bitcast=True))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def bits_of(magnitude, kind):
    """Those of a number, or for fp16 of the next one towards 0."""
    bits = magnitude.to(tl.int32, bitcast=True) & LARGEST
    if kind == 2:
        small = (magnitude * 2.0**-112).to(tl.int32, bitcast=True) & LARGEST
        bits = tl.minimum(small, 0x0F800000) << 3
    return bits


@triton.jit
def interval_of_guess(guess, kind):
    return bits_of(tl.abs(guess) * (1 - BAND), kind), bits_of(tl.abs(guess) * (1 + BAND), kind)


@triton.jit
def collect_block(keys, low, high, below, filled, room_ptr, ROOM: tl.constexpr):
    """Appends the keys in [low, high] to what each warp has collected; returns how many are below, by row, and collected.

    A warp has a room of its own and 32 rows: so that threads count by themselves, and warps without waiting for others.
    Where low is high, or the room is full, keys are only counted.
    """
    WARPS: tl.constexpr = keys.shape[0] // 32
    offset = keys - low
    inside = offset.to(tl.uint32) <= (high - low).to(tl.uint32)
    found = tl.reshape(tl.sum(inside.to(tl.int32), 1), [WARPS, 32])
    slot = tl.reshape(filled[:, None] + tl.cumsum(found, 1) - found, [WARPS * 32])
    own_room = room_ptr + tl.arange(0, WARPS * 32) // 32 * ROOM
    room = tl.where(low < high, ROOM, 0)
    columns = (keys,)
    for level in tl.static_range(4):  # apart, or the compiler would exchange keys among threads before they are stored
        halves = ()
        for i in tl.static_range(len(columns)):
            halves += tl.split(tl.reshape(columns[i], [WARPS * 32, 8 >> level, 2]))
        columns = halves
    for i in tl.static_range(16):
        key = tl.reshape(columns[i], [WARPS * 32])
        chosen = (key - low).to(tl.uint32) <= (high - low).to(tl.uint32)
        tl.store(own_room + slot, key, mask=chosen & (slot < room))
        slot += chosen.to(tl.int32)
    return below - tl.sum(offset >> 31, 1), filled + tl.sum(found, 1)


@triton.jit
def collect(address, kind, start, end, low, high, filled_ptr, room_ptr, ROOM: tl.constexpr, BLOCK: tl.constexpr):
    """Counts the weights [start, end) above ``high`` and those in [low, high], and collects the latter, if they fit."""
    WARPS: tl.constexpr = BLOCK // 512
    below, filled = tl.zeros([BLOCK // 16], tl.int32), tl.zeros([WARPS], tl.int32)
    tail = end - (end - start) % BLOCK
    for i in range(start, tail, BLOCK):
        keys = magnitudes_of_block(address, kind, i, end, True, BLOCK)
        below, filled = collect_block(keys, low, high, below, filled, room_ptr, ROOM)
    if tail < end:
        keys = magnitudes_of_block(address, kind, tail, end, False, BLOCK)
        below, filled = collect_block(keys, low, high, below, filled, room_ptr, ROOM)
    tl.store(filled_ptr + tl.arange(0, WARPS), filled)
    inside = tl.sum(filled)
    above = tl.cdiv(end - start, BLOCK) * BLOCK - tl.sum(below) - inside  # what the last block lacks counts as below
    return above, inside, (low == high) | (tl.max(filled) <= ROOM)
