"""Depthwise masked convolutions on a GPU, where an input channel meets outputs of its own: no matrix, sums in fp32.

x and y pass through registers once per tap, of which all but the first come out of level 1; what bounds them is memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels._conv_triton import COUNT, Axis, destination, place, source

BLOCKS = {True: (32, 64), False: (512, 4)}  # pixels and channels of a program, by whether channels lie together
WARPS = 4


@triton.jit
def masked_conv2d_depthwise_kernel(
    x_ptr, w_ptr, y_ptr, t_ptr, a_ptr, b_ptr, n_pixels, x_size, y_size, x_strides, w_strides, y_strides,
    vertical, horizontal, n_channels, multiplier, TURNED: tl.constexpr, PHASED: tl.constexpr, LONG: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y [pixels, channels] = a (sum(sparse x) + b) over the taps and, TURNED, over the outputs of an input channel."""
    program, c_blocks, p_blocks = tl.program_id(0), tl.cdiv(n_channels, BLOCK_C), tl.cdiv(n_pixels, BLOCK_P)
    c = program % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    pixel = (program // c_blocks % p_blocks).to(tl.int64 if LONG else tl.int32) * BLOCK_P + tl.arange(0, BLOCK_P)
    phase = program // c_blocks // p_blocks
    v0, v_stride, v_tap, r0, r_step, n_r = source(vertical, phase // horizontal[0], PHASED)
    u0, u_stride, u_tap, s0, s_step, n_s = source(horizontal, phase % horizontal[0], PHASED)
    image, v, u = place(pixel, y_size, vertical, horizontal, PHASED)
    row = tl.where(pixel < n_pixels, v * v_stride + v0, -(1 << 30))
    column = u * u_stride + u0
    x_base = image.to(tl.int64) * x_strides[0] + row.to(tl.int64) * x_strides[2] + column.to(tl.int64) * x_strides[3]
    t = tl.load(t_ptr).to(tl.float32)
    acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for j in range(multiplier if TURNED else 1):
        meets = (c * multiplier + j if TURNED else c // multiplier).to(tl.int64)
        w_rows = w_ptr + (meets if TURNED else c.to(tl.int64)) * w_strides[0]
        for tap in range(n_r * n_s):
            r, s = tap // n_s, tap % n_s
            w_offset = (r0 + r * r_step).to(tl.int64) * w_strides[1] + (s0 + s * s_step).to(tl.int64) * w_strides[2]
            w = tl.load(w_rows + w_offset, mask=c < n_channels, other=0.0)
            kept = tl.where(tl.abs(w.to(tl.float32)) < t, 0.0, w.to(tl.float32))
            inside = ((row + r * v_tap).to(tl.uint32) < x_size[0]) & ((column + s * u_tap).to(tl.uint32) < x_size[1])
            x_offset = x_base + (r * v_tap).to(tl.int64) * x_strides[2] + (s * u_tap).to(tl.int64) * x_strides[3]
            x_offset = x_offset[:, None] + (meets * x_strides[1])[None, :]
            x = tl.load(x_ptr + x_offset, mask=inside[:, None] & (c < n_channels)[None, :], other=0.0)
            acc += x.to(tl.float32) * kept[None, :]
    if b_ptr is not None:
        acc += tl.load(b_ptr + c, mask=c < n_channels, other=0.0).to(tl.float32)[None, :]
    if a_ptr is not None:
        acc *= tl.load(a_ptr).to(tl.float32)
    offset, inside = destination(pixel, n_pixels, phase, y_size, y_strides, vertical, horizontal, PHASED)
    offset = offset[:, None] + (c.to(tl.int64) * y_strides[1])[None, :]
    tl.store(y_ptr + offset, acc.to(y_ptr.dtype.element_ty), mask=inside[:, None] & (c < n_channels)[None, :])


def launch(
    x: Tensor, weight: Tensor, y: Tensor, threshold: Tensor, attention: Tensor | None, bias: Tensor | None,
    n_pixels: int, both: tuple[Axis, Axis], turned: bool, phased: bool,
) -> None:  # fmt: skip
    """Fill ``y`` from ``x``, ``n_pixels`` of it in each phase; ``turned``: the gradient of x from that of y."""
    block_p, block_c = BLOCKS[x.stride(1) == 1]
    phases = both[0].stride * both[1].stride if phased else 1
    channels = y.shape[1]
    grid = (triton.cdiv(channels, block_c) * triton.cdiv(n_pixels, block_p) * phases,)
    multiplier = len(weight) // (channels if turned else x.shape[1])
    rows, _, *taps = weight.stride()
    masked_conv2d_depthwise_kernel[grid](
        x, weight, y, threshold, attention, bias, n_pixels, tuple(x.shape[2:]), tuple(y.shape[2:]), x.stride(),
        (rows, *taps), y.stride(), *map(tuple, both), channels, multiplier, turned, phased, n_pixels > COUNT,
        block_p, block_c, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def masked_conv2d_depthwise_weight_gradient_kernel(
    g_ptr, x_ptr, parts_ptr, n_pixels, per_slice, x_size, g_size, x_strides, g_strides, vertical, horizontal,
    n_channels, multiplier, w_strides, n_weights,
    LONG: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """parts [slices, ...] = sum(grad x) over the pixels of a slice, of one tap of some channels."""
    program, c_blocks, taps = tl.program_id(0), tl.cdiv(n_channels, BLOCK_C), vertical[3] * horizontal[3]
    tap, c = program % taps, program // taps % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    r, s, piece = tap // horizontal[3], tap % horizontal[3], (program // taps // c_blocks).to(tl.int64)
    v0, v_stride, v_tap, _, _, _ = source(vertical, 0, False)
    u0, u_stride, u_tap, _, _, _ = source(horizontal, 0, False)
    sums = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for i in range(0, per_slice, BLOCK_P):
        pixel = (piece * per_slice + i).to(tl.int64 if LONG else tl.int32) + tl.arange(0, BLOCK_P)
        image, v, u = place(pixel, g_size, vertical, horizontal, False)
        row, column = v * v_stride + v0 + r * v_tap, u * u_stride + u0 + s * u_tap
        inside = (pixel < n_pixels) & (row.to(tl.uint32) < x_size[0]) & (column.to(tl.uint32) < x_size[1])
        inside = inside[:, None] & (c < n_channels)[None, :]
        g_offset = image.to(tl.int64) * g_strides[0] + v.to(tl.int64) * g_strides[2] + u.to(tl.int64) * g_strides[3]
        x_offset = (
            image.to(tl.int64) * x_strides[0] + row.to(tl.int64) * x_strides[2] + column.to(tl.int64) * x_strides[3]
        )
        g_offset = g_offset[:, None] + (c.to(tl.int64) * g_strides[1])[None, :]
        x_offset = x_offset[:, None] + ((c // multiplier).to(tl.int64) * x_strides[1])[None, :]
        g = tl.load(g_ptr + g_offset, mask=inside, other=0.0)
        sums += g.to(tl.float32) * tl.load(x_ptr + x_offset, mask=inside, other=0.0).to(tl.float32)
    part = parts_ptr + piece * n_weights + r * w_strides[1] + s * w_strides[2] + c * w_strides[0]
    tl.store(part, tl.sum(sums, 0), mask=c < n_channels)


def blocks(x: Tensor, weight: Tensor) -> tuple[int, int]:
    """How many programs of the weight's gradient share a slice of the pixels, and how many pixels they take at once."""
    block_p, block_c = BLOCKS[x.stride(1) == 1]
    return triton.cdiv(len(weight), block_c) * weight[0].numel(), block_p


def launch_weight_gradient(
    grad: Tensor, x: Tensor, like: Tensor, parts: Tensor, n_pixels: int, per_slice: int, both: tuple[Axis, Axis]
) -> None:
    """Fill ``parts`` [slices, ...] with what slices of ``per_slice`` pixels give, each lying as ``like``."""
    block_p, block_c = BLOCKS[x.stride(1) == 1]
    grid = (triton.cdiv(len(like), block_c) * both[0].taps * both[1].taps * len(parts),)
    rows, _, *taps = like.stride()
    masked_conv2d_depthwise_weight_gradient_kernel[grid](
        grad, x, parts, n_pixels, per_slice, tuple(x.shape[2:]), tuple(grad.shape[2:]), x.stride(), grad.stride(),
        *map(tuple, both), len(like), len(like) // x.shape[1], (rows, *taps), like.numel(), n_pixels > COUNT,
        block_p, block_c, num_warps=WARPS,
    )  # fmt: skip
