"""Gap-coded weights on a GPU: a warp walks a block, a lane a row of it, and gathers its columns of x from the cache."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels._triton import on
from aswl_kernels.reference_gaps import STEP, STRIP, code_bits, gap_blocks, segment_width

# rows of x up to which the walk is taken: 13 instructions a slot (sm_90) for the first, 2.8 for each that follows; by that
# count, unpacking and cuBLAS win from about twice as many rows on
SKINNY = 16
SUM_BLOCK = 256  # outputs of a program that adds up segments: 112 programs for 28,672 outputs


@triton.jit
def _columns(code, column, BITS: tl.constexpr):
    """Columns [rows, 8] of a step's slots, their codes, and the column of the last."""
    shift = tl.arange(0, 8) * BITS
    gap = ((code[:, None] >> shift[None, :]) & (2**BITS - 1)).to(tl.int32)
    return column[:, None] + tl.cumsum(gap, 1), gap, column + tl.sum(gap, 1)


@triton.jit
def _element(word, j: tl.constexpr, dtype: tl.constexpr):
    """The j-th element of a word, in fp32."""
    if dtype == tl.bfloat16:  # one instruction, not two
        x = ((word >> (16 * j)).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif dtype == tl.float16:
        x = (word >> (16 * j)).to(tl.uint16).to(dtype, bitcast=True).to(tl.float32)
    else:
        x = (word >> (32 * j)).to(tl.uint32).to(dtype, bitcast=True)
    return x


@triton.jit
def gap_linear_kernel(
    x_ptr,
    v_ptr,
    c_ptr,
    offsets_ptr,
    sums_ptr,
    n_out,
    n_in,
    n_segments,
    width,
    n_x,
    PLANES: tl.constexpr,  # x is [PLANES, in, EACH]
    EACH: tl.constexpr,
    WORD: tl.constexpr,  # unsigned integer of EACH elements: what one load takes of a column
    BITS: tl.constexpr,
    STRIP: tl.constexpr,
    STEP: tl.constexpr,
):
    strip, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)  # neighbours share a segment, and so its part of x
    block = strip * n_segments + segment
    lane = tl.arange(0, STRIP)
    begin = tl.load(offsets_ptr + block)
    steps = (tl.load(offsets_ptr + block + 1) - begin).to(tl.int32)
    c_ptr += begin * STRIP + lane
    v_ptr += begin * (STRIP * STEP) + lane[:, None] * STEP + tl.arange(0, STEP)[None, :]
    # two steps ahead, which keeps some 30 KiB of each multiprocessor's reads under way
    code, v = tl.load(c_ptr, mask=steps > 0, other=0), tl.load(v_ptr, mask=steps > 0, other=0)
    code_1 = tl.load(c_ptr + STRIP, mask=steps > 1, other=0)
    v_1 = tl.load(v_ptr + STRIP * STEP, mask=steps > 1, other=0)
    column = tl.zeros((STRIP,), tl.int32) + segment * width
    sums = (tl.zeros((STRIP,), tl.float32),) * (PLANES * EACH)
    for step in range(steps):
        c_ptr += STRIP
        v_ptr += STRIP * STEP
        code_2 = tl.load(c_ptr + STRIP, mask=step + 2 < steps, other=0)
        v_2 = tl.load(v_ptr + STRIP * STEP, mask=step + 2 < steps, other=0)
        columns, _, column = _columns(code, column, BITS)
        factor = v.to(x_ptr.dtype.element_ty).to(tl.float32)
        longer = ()
        plane_ptr = x_ptr.to(tl.pointer_type(WORD))
        for i in tl.static_range(PLANES):
            word = tl.load(plane_ptr + columns)
            plane_ptr += n_in
            for j in tl.static_range(EACH):
                x = _element(word, j, x_ptr.dtype.element_ty)
                longer = longer + (sums[i * EACH + j] + tl.sum(x * factor, 1),)
        sums = longer
        code, code_1, v, v_1 = code_1, code_2, v_1, v_2
    sums_ptr += segment.to(tl.int64) * n_x * n_out + strip * STRIP + lane
    for i in tl.static_range(PLANES * EACH):
        tl.store(sums_ptr + i * n_out, sums[i], mask=(strip * STRIP + lane < n_out) & (lane * 0 + i < n_x))


@triton.jit
def gap_linear_sum_kernel(sums_ptr, bias_ptr, y_ptr, n_out, n_segments, n_x, BIASED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for segment in range(n_segments):
        total += tl.load(sums_ptr + (segment * n_x + i) * n_out + n, mask=n < n_out, other=0.0)
    if BIASED:
        total += tl.load(bias_ptr + n, mask=n < n_out, other=0.0).to(tl.float32)
    tl.store(y_ptr + i * n_out + n, total.to(y_ptr.dtype.element_ty), mask=n < n_out)


@triton.jit
def unpack_gaps_kernel(
    v_ptr,
    c_ptr,
    offsets_ptr,
    lengths_ptr,
    w_ptr,
    n_out,
    n_in,
    n_segments,
    width,
    BITS: tl.constexpr,
    STRIP: tl.constexpr,
    STEP: tl.constexpr,
):
    strip, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block = strip * n_segments + segment
    lane, slot = tl.arange(0, STRIP), tl.arange(0, STEP)
    n = strip * STRIP + lane
    begin = tl.load(offsets_ptr + block)
    steps = (tl.load(offsets_ptr + block + 1) - begin).to(tl.int32)
    length = tl.load(lengths_ptr + n * n_segments + segment, mask=n < n_out, other=0)
    column = tl.zeros((STRIP,), tl.int32) + segment * width
    for step in range(steps):
        code = tl.load(c_ptr + (begin + step) * STRIP + lane)
        v = tl.load(v_ptr + ((begin + step) * STRIP + lane[:, None]) * STEP + slot[None, :])
        columns, gap, column = _columns(code, column, BITS)
        holds = (step * STEP + slot[None, :] < length[:, None]) & (gap != 2**BITS - 1)
        tl.store(w_ptr + n[:, None] * n_in + columns, v, mask=holds)


def gap_linear(
    x: Tensor, values: Tensor, codes: Tensor, offsets: Tensor, lengths: Tensor, bias: Tensor | None
) -> Tensor:
    """See :func:`aswl_kernels.gap_linear`; x is copied, see :func:`_planes`, unless it is one contiguous row."""
    (outputs, segments), inputs = lengths.shape, x.shape[-1]
    rows = x.numel() // max(inputs, 1)
    y = x.new_empty(*x.shape[:-1], outputs)
    if not y.numel() or rows > SKINNY or not inputs:
        return F.linear(x, unpack_gaps(values, codes, offsets, lengths, [outputs, inputs]).to(x.dtype), bias)
    planes = _planes(x.reshape(rows, inputs))
    each = planes.shape[2]
    word = {2: tl.uint16, 4: tl.uint32, 8: tl.uint64}[each * x.element_size()]
    sums = torch.empty(segments, rows, outputs, dtype=torch.float32, device=x.device)
    with on(x):
        sizes = outputs, inputs, segments, segment_width(outputs, inputs), rows
        pieces = values.contiguous(), codes.contiguous(), offsets.contiguous()
        layout = {"BITS": code_bits(codes), "STRIP": STRIP, "STEP": STEP}
        gap_linear_kernel[gap_blocks(outputs, inputs)](
            planes, *pieces, sums, *sizes, len(planes), each, word, **layout, num_warps=1
        )
        grid = triton.cdiv(outputs, SUM_BLOCK), rows
        bias = bias if bias is None else bias.contiguous()
        gap_linear_sum_kernel[grid](sums, bias, y, outputs, segments, rows, bias is not None, SUM_BLOCK, num_warps=4)
    return y


def _planes(x: Tensor) -> Tensor:
    """x as [planes, in, each], rows side by side in words of up to 8 bytes, the last filled up with zeros.

    Neighbouring columns are so close that 32 lanes, whose columns are some hundred apart, meet in few lines of the cache.
    """
    each = min(triton.next_power_of_2(len(x)), 8 // x.element_size())
    missing = -len(x) % each
    planes = (F.pad(x, (0, 0, 0, missing)) if missing else x).unflatten(0, (-1, each)).mT
    # a copy is aligned to words; a single row need not be
    return planes.contiguous() if each == 1 else planes.clone(memory_format=torch.contiguous_format)


def unpack_gaps(values: Tensor, codes: Tensor, offsets: Tensor, lengths: Tensor, shape: list[int]) -> Tensor:
    """See :func:`aswl_kernels.unpack_gaps`."""
    dense = values.new_zeros(shape)
    if values.numel():
        with on(values):
            pieces = values.contiguous(), codes.contiguous(), offsets.contiguous(), lengths.contiguous()
            sizes = *shape, gap_blocks(*shape)[1], segment_width(*shape)
            layout = {"BITS": code_bits(codes), "STRIP": STRIP, "STEP": STEP}
            unpack_gaps_kernel[gap_blocks(*shape)](*pieces, dense, *sizes, **layout, num_warps=1)
    return dense
