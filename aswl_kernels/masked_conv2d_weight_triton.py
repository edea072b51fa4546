"""The gradient of a masked convolution's weight on a GPU, with the attention's sum: fixed slices of the pixels, one by one.

G [out, in x taps] = grad [out, pixels] @ x [pixels, in x taps] for each group; as many slices of the pixels as fill a GPU
give a part each, in fp32, and a second kernel adds the parts up in their order, scales, and sums G * sparse.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels import masked_conv2d_depthwise_triton as depthwise
from aswl_kernels._conv_triton import (
    COUNT,
    axes,
    has_wgmma,
    in_one_row,
    integer,
    is_single,
    place,
    precision,
    source,
    span,
)
from aswl_kernels._triton import interpreting, on, ordered
from aswl_kernels.masked_conv2d_triton import FULL_TILE, GATHERS, OTHER_TILES
from aswl_kernels.masked_linear_triton import FULL, PROCESSORS, Tile, _wide

TILES = {  # by bytes per element, then whether there are more than 64 outputs in a group; none spills on sm_90
    (2, False): (Tile(64, 256, 32, 4, 4), Tile(64, 128, 64, 4, 3), Tile(64, 64, 64, 4, 3)),
    (2, True): (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 4, 3)),
    (4, False): (Tile(64, 128, 32, 8, 3),),
    (4, True): (Tile(128, 128, 32, 8, 3),),
}
LEAST = 16  # steps of a slice
PART = 0.1  # steps that writing and reading a tile of a part takes: 256 KB of memory to 4 MFLOP of wgmma
FINISH = (16, 128)  # parts and weights that a program of the second kernel holds


@triton.jit
def masked_conv2d_weight_gradient_kernel(
    g_ptr, x_ptr, parts_ptr, n_pixels, per_slice, x_size, g_size, x_strides, g_strides, vertical, horizontal,
    n_inner, n_outer, groups, n_columns,
    CHANNELS: tl.constexpr, PADDED: tl.constexpr, EVEN_M: tl.constexpr, LONG: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """parts [slices, groups, n_outer, n_columns] = grad x over the pixels of a slice; a column is a tap of a channel,
    CHANNELS innermost or taps.
    """
    program, n_blocks, m_blocks = tl.program_id(0), tl.cdiv(n_columns, BLOCK_N), tl.cdiv(n_outer, BLOCK_M)
    j = program % n_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    m = program // n_blocks % m_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    program = program // n_blocks // m_blocks
    group, piece = (program % groups).to(tl.int64), (program // groups).to(tl.int64)
    v0, v_stride, v_tap, _, _, _ = source(vertical, 0, False)
    u0, u_stride, u_tap, _, _, _ = source(horizontal, 0, False)
    if CHANNELS:
        c, tap = j % n_inner, j // n_inner
    else:
        taps = vertical[3] * horizontal[3]
        c, tap = j // taps, j % taps
    below, right = tap // horizontal[3] * v_tap + v0, tap % horizontal[3] * u_tap + u0
    index: tl.constexpr = tl.int64 if LONG else tl.int32
    xn, xc, xv, xu = integer(x_strides[0], index), x_strides[1], x_strides[2], x_strides[3]
    gn, gc, gv, gu = integer(g_strides[0], index), g_strides[1], g_strides[2], g_strides[3]
    x_columns = (group * n_inner + c).to(index) * xc + below.to(index) * xv + right.to(index) * xu
    g_columns = (group * n_outer + m).to(index) * gc
    xv, xu = integer(v_stride, index) * xv, integer(u_stride, index) * xu
    # from one step to the next, each pixel moves by as many images, rows and columns, and once more over an edge
    height, width = g_size
    u_step, v_step, image_step = BLOCK_K % width, BLOCK_K // width % height, BLOCK_K // width // height
    first = (piece * per_slice).to(index)
    image, v, u = place(first + tl.arange(0, BLOCK_K), g_size, vertical, horizontal, False)
    g_offset = image.to(index) * gn + v.to(index) * gv + u.to(index) * gu
    g_step = image_step * gn + integer(v_step, index) * gv + integer(u_step, index) * gu
    g_over_u, g_over_v = gv - integer(width, index) * gu, gn - integer(height, index) * gv
    x_offset = image.to(index) * xn + v.to(index) * xv + u.to(index) * xu
    x_step = image_step * xn + v_step * xv + u_step * xu
    x_over_u, x_over_v = xv - width * xu, xn - height * xv
    n_here = tl.minimum(n_pixels - first, per_slice).to(tl.int32)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    tl.assume(n_here > 0)
    for i in range(0, n_here, BLOCK_K):
        more = (i + tl.arange(0, BLOCK_K) < n_here)[:, None]
        g_mask = more if EVEN_M else more & (m < n_outer)[None, :]
        g = tl.load(g_ptr + (g_offset[:, None] + g_columns[None, :]), mask=g_mask, other=0.0)
        inside = more & (j < n_columns)[None, :]
        if PADDED:
            inside = inside & (((v * v_stride)[:, None] + below[None, :]).to(tl.uint32) < x_size[0])
            inside = inside & (((u * u_stride)[:, None] + right[None, :]).to(tl.uint32) < x_size[1])
        x = tl.load(x_ptr + (x_offset[:, None] + x_columns[None, :]), mask=inside, other=0.0)
        acc = tl.dot(_wide(g, WIDE).T, _wide(x, WIDE), acc, input_precision=PRECISION)
        u += u_step
        over = u >= width
        u -= tl.where(over, width, 0)
        v += v_step + over.to(tl.int32)
        g_offset += g_step + tl.where(over, g_over_u, 0)
        x_offset += x_step + tl.where(over, x_over_u, 0)
        over = v >= height
        v -= tl.where(over, height, 0)
        g_offset += tl.where(over, g_over_v, 0)
        x_offset += tl.where(over, x_over_v, 0)
    part = parts_ptr + ((piece * groups + group) * n_outer + m)[:, None] * n_columns + j[None, :]
    tl.store(part, acc, mask=(m < n_outer)[:, None] & (j < n_columns)[None, :])


@triton.jit
def masked_conv2d_weight_finish_kernel(
    parts_ptr, w_ptr, y_ptr, sums_ptr, t_ptr, a_ptr, l_ptr, n, n_parts, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """y = a G, 0 where not learnable, G being the sum of the parts in their order; of each block sum(G * sparse)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    parts = tl.zeros([PARTS, BLOCK], tl.float32)
    for start in range(0, n_parts, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < n_parts)[:, None] & inside[None, :]
        parts += tl.load(parts_ptr + (part.to(tl.int64)[:, None] * n + i[None, :]), mask=mask, other=0.0)
    y = tl.sum(parts, 0)
    w = tl.load(w_ptr + i, mask=inside, other=0.0).to(tl.float32)
    kept = tl.where(tl.abs(w) < tl.load(t_ptr).to(tl.float32), 0.0, w)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(inside, y * kept, 0.0)))
    if a_ptr is not None:
        y *= tl.load(a_ptr).to(tl.float32)
    if l_ptr is not None:
        y = tl.where(tl.abs(w) < tl.load(l_ptr).to(tl.float32), 0.0, y)
    tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=inside)


def masked_conv2d_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    attention: Tensor | None,
    learnable: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`aswl_kernels.reference.masked_conv2d_weight_gradient`; the gradient lies as the weight does."""
    if not (x.numel() and grad.numel()):
        dw = torch.zeros_like(weight)
        return dw, dw.new_zeros((), dtype=torch.float32)
    together = weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if together else torch.contiguous_format
    dw = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device, memory_format=layout)
    both, n_pixels = axes(weight.shape, stride, padding, dilation), len(grad) * grad.shape[2:].numel()
    if is_single(both):
        grad, x = in_one_row(grad, x)
    outputs, inputs = len(weight) // groups, weight.shape[1]
    is_depthwise = inputs == 1 and groups > 1
    if is_depthwise:
        blocks, at_once, warps = *depthwise.blocks(x, weight), depthwise.WARPS
    else:
        tile = _choose(grad, x, inputs, outputs, dw[0].numel())
        blocks = triton.cdiv(outputs, tile.m) * triton.cdiv(dw[0].numel(), tile.n) * groups
        at_once, warps = tile.k, tile.warps
    per_slice = _steps_of_a_slice(blocks, triton.cdiv(n_pixels, at_once), PROCESSORS * 8 // warps) * at_once
    parts = torch.empty(triton.cdiv(n_pixels, per_slice), dw.numel(), dtype=torch.float32, device=x.device)
    sums = torch.empty(triton.cdiv(dw.numel(), FINISH[1]), dtype=torch.float32, device=x.device)
    with on(x):
        if is_depthwise:
            depthwise.launch_weight_gradient(grad, x, dw, parts, n_pixels, per_slice, both)
        else:
            masked_conv2d_weight_gradient_kernel[(blocks * len(parts),)](
                grad, x, parts, n_pixels, per_slice, tuple(x.shape[2:]), tuple(grad.shape[2:]), x.stride(),
                grad.stride(), *map(tuple, both), inputs, outputs, groups, dw[0].numel(), together, max(padding) > 0,
                outputs % tile.m == 0, max(map(span, (grad, x))) > COUNT, precision(FULL),
                interpreting() and x.dtype == torch.bfloat16, tile.m, tile.n, tile.k,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
        masked_conv2d_weight_finish_kernel[sums.shape](
            parts, ordered(weight, dw), dw, sums, threshold, attention, learnable, dw.numel(), len(parts), *FINISH
        )
    return dw, sums.sum()


@functools.cache
def _steps_of_a_slice(blocks: int, steps: int, programs: int) -> int:
    """With which ``blocks`` of columns take the least time, ``programs`` at once; the same on every GPU, as the sums."""

    def time(slices: int) -> float:
        return triton.cdiv(blocks * slices, programs) * triton.cdiv(steps, slices) + PART * blocks * slices

    return triton.cdiv(steps, min(range(1, max(steps // LEAST, 1) + 1), key=time))


def _choose(grad: Tensor, x: Tensor, inputs: int, outputs: int, columns: int) -> Tile:
    if x.itemsize == 4 and precision(FULL) == FULL:
        return FULL_TILE
    if not has_wgmma():
        return OTHER_TILES[outputs <= 64]
    if not (x.stride(1) == grad.stride(1) == 1 and inputs % 16 == outputs % 16 == 0):
        return GATHERS
    # least columns in vain, each with its share of what a step costs beside
    return min(TILES[x.itemsize, outputs > 64], key=lambda t: triton.cdiv(columns, t.n) * (t.n + 32))
