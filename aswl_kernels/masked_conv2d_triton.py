"""The masked convolution on a GPU, in one pass: implicit products whose first operand is masked on the way to registers.

y [out, pixels] = sparse [out, in x taps] @ x [in x taps, pixels] for each group, x gathered where it lies. The gradient
of x is the same product over the turned weight: with stride s, the pixels of each of the s residues (a phase) see every
s-th tap only, and are a convolution of stride 1 of their own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels import masked_conv2d_depthwise_triton as depthwise
from aswl_kernels import masked_linear_triton, reference
from aswl_kernels._conv_triton import (
    COUNT,
    Axis,
    axes,
    destination,
    empty,
    has_wgmma,
    in_one_row,
    integer,
    is_single,
    output_size,
    place,
    precision,
    reached,
    rows_are_pixels,
    source,
    steps,
    turn,
)
from aswl_kernels._triton import interpreting, on
from aswl_kernels.masked_linear_triton import FULL, PROCESSORS, Tile, _sparse, _wide

# by bytes per element of x, the largest first; on sm_90 none spills and none is serialised. The mask of an element
# takes three instructions, which 256 pixels share; with 128, two programs fit a multiprocessor
TILES = {
    2: (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(64, 256, 32, 4, 4), Tile(64, 64, 32, 4, 3)),
    4: (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3)),
}
ALONE, TERMS = 2**15, 768  # a tile of so many sums has a multiprocessor for itself: it hides loads only in long ones
OTHER_TILES = (Tile(128, 128, 32, 8, 2), Tile(64, 64, 32, 4, 2))  # within 64 KB of shared memory
GATHERS = Tile(64, 64, 32, 4, 2)  # where single elements are loaded and stored, each with an address of its own
FULL_TILE = Tile(64, 64, 16, 4, 2)  # without tensor cores


@triton.jit
def masked_conv2d_kernel(
    x_ptr, w_ptr, y_ptr, t_ptr, a_ptr, b_ptr, n_pixels, x_size, y_size, x_strides, w_strides, y_strides,
    vertical, horizontal, n_inner, n_outer, groups, PHASED: tl.constexpr, ORDER: tl.constexpr, DENSE: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_K: tl.constexpr, LONG: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y [n_outer, pixels] = a (sparse [n_outer, n_inner x taps] x + b) of one group and one phase.

    ``w_strides``: of groups, rows, inner channels, and the taps' both. ``ORDER`` of the sums: "blocks" of channels, tap
    by tap; or "taps" or "channels" innermost, several of both to a block.
    """
    m, pixel, group, phase = _share(tl.program_id(0), n_outer, n_pixels, groups, LONG, BLOCK_M, BLOCK_N)
    v0, v_stride, v_tap, r0, r_step, n_r = source(vertical, phase // horizontal[0], PHASED)
    u0, u_stride, u_tap, s0, s_step, n_s = source(horizontal, phase % horizontal[0], PHASED)
    if PHASED:  # noqa: SIM102 the second condition is known only when the kernel runs
        if n_r * n_s == 0:  # no product reaches these pixels, which are 0 already
            return
    image, v, u = place(pixel, y_size, vertical, horizontal, PHASED)
    row = tl.where(pixel < n_pixels, v * v_stride + v0, -(1 << 30))
    column = u * u_stride + u0
    x_base = image.to(tl.int64) * x_strides[0] + row.to(tl.int64) * x_strides[2] + column.to(tl.int64) * x_strides[3]
    x_base += group * n_inner * x_strides[1]
    w_base = m.to(tl.int64) * w_strides[1] + group * w_strides[0]
    w_base += integer(r0, tl.int64) * w_strides[3] + integer(s0, tl.int64) * w_strides[4]
    t = tl.load(t_ptr + tl.zeros([1, 1], tl.int32)).to(tl.float32)  # a tile: a scalar would keep the mask off registers
    x_steps = steps(x_strides[1], v_tap, x_strides[2], u_tap, x_strides[3])
    w_steps = steps(w_strides[2], r_step, w_strides[3], s_step, w_strides[4])
    if ORDER == "blocks":
        acc, zero = _by_blocks(
            x_ptr + x_base[None, :], w_ptr + w_base[:, None], t, row, column, v_tap, u_tap, x_size, x_steps, w_steps,
            m < n_outer, n_inner, n_r, n_s, EVEN_M, EVEN_K, PRECISION, WIDE, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        acc, zero = _by_elements(
            x_ptr + x_base[None, :], w_ptr + w_base[:, None], t, row, column, v_tap, u_tap, x_size, x_steps, w_steps,
            m < n_outer, n_inner, n_r, n_s, ORDER, DENSE, PRECISION, WIDE, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    # no compiler knows that zero is 0: it makes these again here, instead of holding them in registers all along
    m, pixel, group, phase = _share(tl.program_id(0) + zero, n_outer, n_pixels, groups, LONG, BLOCK_M, BLOCK_N)
    if b_ptr is not None:
        acc += tl.load(b_ptr + group * n_outer + m, mask=m < n_outer, other=0.0).to(tl.float32)[:, None]
    if a_ptr is not None:
        acc *= tl.load(a_ptr).to(tl.float32)
    offset, inside = destination(pixel, n_pixels, phase, y_size, y_strides, vertical, horizontal, PHASED)
    offset = offset[None, :] + (group * n_outer + m)[:, None] * y_strides[1]
    tl.store(y_ptr + offset, acc.to(y_ptr.dtype.element_ty), mask=inside[None, :] & (m < n_outer)[:, None])


@triton.jit
def _share(program, n_outer, n_pixels, groups, LONG: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The rows and the pixels, the group and the phase of a program."""
    m_blocks, p_blocks = tl.cdiv(n_outer, BLOCK_M), tl.cdiv(n_pixels, BLOCK_N)
    m = program % m_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    pixel = (program // m_blocks % p_blocks).to(tl.int64 if LONG else tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    program = program // m_blocks // p_blocks
    return m, pixel, (program % groups).to(tl.int64), program // groups


@triton.jit
def _by_blocks(
    x, w, t, row, column, v_tap, u_tap, x_size, x_steps, w_steps, m_inside, n_inner, n_r, n_s,
    EVEN_M: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sums, block of channels by block, tap by tap: offsets move by scalars only, without a division."""
    k = tl.arange(0, BLOCK_K)
    x += k.to(tl.int64)[:, None] * x_steps[0]
    w += k.to(tl.int64)[None, :] * w_steps[0]
    blocks = tl.cdiv(n_inner, BLOCK_K)
    padded = integer(blocks, tl.int64) * BLOCK_K
    x_next, x_return = x_steps[2] - padded * x_steps[0], x_steps[1] - n_s * x_steps[2]
    w_next, w_return = w_steps[2] - padded * w_steps[0], w_steps[1] - n_s * w_steps[2]
    x_offset, w_offset = padded * 0, padded * 0
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    c, s = 0, 0
    # at least one, so that there is no way around the loop: ptxas would wait for every wgmma (warning C7515)
    for _ in range(tl.maximum(n_r * n_s * blocks, 1)):
        inside = ((row.to(tl.uint32) < x_size[0]) & (column.to(tl.uint32) < x_size[1]))[None, :]
        if not EVEN_K:
            inside = inside & (c + k < n_inner)[:, None]
        x_tile = tl.load(x + x_offset, mask=inside, other=0.0)
        if EVEN_M and EVEN_K:
            w_tile = tl.load(w + w_offset)
        else:
            w_tile = tl.load(w + w_offset, mask=m_inside[:, None] & (c + k < n_inner)[None, :], other=0.0)
        kept = _sparse(w_tile, t, WIDE).to(x_tile.dtype)
        acc = tl.dot(_wide(kept, WIDE), _wide(x_tile, WIDE), acc, input_precision=PRECISION)
        c += BLOCK_K
        x_offset += BLOCK_K * x_steps[0]
        w_offset += BLOCK_K * w_steps[0]
        done = c >= n_inner  # with this tap
        c = tl.where(done, 0, c)
        s += done.to(tl.int32)
        column += tl.where(done, u_tap, 0)
        x_offset += tl.where(done, x_next, 0)
        w_offset += tl.where(done, w_next, 0)
        done = s == n_s  # with this row of taps
        s = tl.where(done, 0, s)
        row += tl.where(done, v_tap, 0)
        column -= tl.where(done, n_s * u_tap, 0)
        x_offset += tl.where(done, x_return, 0)
        w_offset += tl.where(done, w_return, 0)
    return acc, s


@triton.jit
def _by_elements(
    x, w, t, row, column, v_tap, u_tap, x_size, x_steps, w_steps, m_inside, n_inner, n_r, n_s,
    ORDER: tl.constexpr, DENSE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sums where a block holds several taps: each element of a block has a tap of its own."""
    taps = n_r * n_s
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    zero = 0
    tl.assume(taps * n_inner > 0)
    for start in range(0, taps * n_inner, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if ORDER == "channels":
            c, tap = k % n_inner, k // n_inner
        else:
            c, tap = k // taps, k % taps
        r, s = tap // n_s, tap % n_s
        x_offset = c.to(tl.int64) * x_steps[0] + r.to(tl.int64) * x_steps[1] + s.to(tl.int64) * x_steps[2]
        if DENSE:  # the weight lies in this order
            w_offset = k.to(tl.int64)
        else:
            w_offset = c.to(tl.int64) * w_steps[0] + r.to(tl.int64) * w_steps[1] + s.to(tl.int64) * w_steps[2]
        inside = (row[None, :] + (r * v_tap)[:, None]).to(tl.uint32) < x_size[0]
        inside = inside & ((column[None, :] + (s * u_tap)[:, None]).to(tl.uint32) < x_size[1])
        more = k < taps * n_inner
        x_tile = tl.load(x + x_offset[:, None], mask=inside & more[:, None], other=0.0)
        w_tile = tl.load(w + w_offset[None, :], mask=m_inside[:, None] & more[None, :], other=0.0)
        kept = _sparse(w_tile, t, WIDE).to(x_tile.dtype)
        acc = tl.dot(_wide(kept, WIDE), _wide(x_tile, WIDE), acc, input_precision=PRECISION)
        zero = tl.where(zero == n_s, 1, 0)
    return acc, zero


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    threshold: Tensor,
    attention: Tensor | None,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """See :func:`aswl_kernels.masked_conv2d`; nothing is copied. A matrix whose rows are pixels is masked_linear's."""
    if not x.numel():  # of no images or no channels
        return reference.masked_conv2d(x, weight, threshold, attention, bias, stride, padding, dilation, groups)
    both = axes(weight.shape, stride, padding, dilation)
    if groups == 1 and is_single(both) and rows_are_pixels(x):
        rows = masked_linear_triton.masked_linear(x.movedim(1, -1), weight[..., 0, 0], threshold, attention, bias)
        return rows.movedim(-1, 1)
    y = empty([len(x), len(weight), *output_size(x.shape[2:], *both)], x, weight)
    _launch(x, weight, y, threshold, attention, bias if bias is None else bias.contiguous(), both, groups, False)
    return y


def masked_conv2d_input_gradient(
    grad: Tensor,
    weight: Tensor,
    threshold: Tensor,
    attention: Tensor | None,
    size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """See :func:`aswl_kernels.reference.masked_conv2d_input_gradient`; nothing is copied here either."""
    if not (grad.numel() and weight.numel()):
        return grad.new_zeros([len(grad), weight.shape[1] * groups, *size])
    both = axes(weight.shape, stride, padding, dilation)
    if groups == 1 and is_single(both) and rows_are_pixels(grad):
        rows = grad.movedim(1, -1), weight[..., 0, 0], threshold, attention
        return masked_linear_triton.masked_linear_input_gradient(*rows).movedim(-1, 1)
    x = empty([len(grad), weight.shape[1] * groups, *size], grad, weight)
    if not all(map(reached, both)):
        x.zero_()
    _launch(grad, weight, x, threshold, attention, None, both, groups, True)
    return x


def _launch(
    x: Tensor, weight: Tensor, y: Tensor, threshold: Tensor, attention: Tensor | None, bias: Tensor | None,
    both: tuple[Axis, Axis], groups: int, turned: bool,
) -> None:  # fmt: skip
    """Fill ``y``; ``turned``: the gradient of x from that of y, by the weight with rows and channels exchanged."""
    strides = both[0].stride * both[1].stride
    phased = turned and strides > 1
    if turned and not phased:
        both = tuple(map(turn, both))
    elif not phased:
        strides = 1
    if is_single(both):
        x, y = in_one_row(x, y)
    sizes = y.shape[2:]
    if phased:
        sizes = [triton.cdiv(s, a.stride) for s, a in zip(sizes, both)]
    n_pixels = len(y) * sizes[0] * sizes[1]
    if weight.shape[1] == 1 and groups > 1:
        with on(x):
            depthwise.launch(x, weight, y, threshold, attention, bias, n_pixels, both, turned, phased)
        return
    outputs, inputs = len(weight) // groups, weight.shape[1]
    n_outer, n_inner = (inputs, outputs) if turned else (outputs, inputs)
    rows, channels, *taps = weight.stride()
    w_strides = (outputs * rows, channels, rows, *taps) if turned else (outputs * rows, rows, channels, *taps)
    together = x.stride(1) == y.stride(1) == 1 and n_inner % 16 == n_outer % 16 == 0
    tile, order = _choose(x, weight, n_outer, n_inner, n_pixels * groups * strides, turned, together)
    dense = not turned and weight.is_contiguous(
        memory_format=torch.channels_last if order == "channels" else torch.contiguous_format
    )
    grid = (triton.cdiv(n_outer, tile.m) * triton.cdiv(n_pixels, tile.n) * groups * strides,)
    with on(x):
        masked_conv2d_kernel[grid](
            x, weight, y, threshold, attention, bias, n_pixels, tuple(x.shape[2:]), tuple(y.shape[2:]),
            x.stride(), w_strides, y.stride(), *map(tuple, both), n_inner, n_outer, groups,
            phased, order, dense, n_outer % tile.m == 0, n_inner % tile.k == 0, n_pixels > COUNT, precision(FULL),
            interpreting() and x.dtype == torch.bfloat16, tile.m, tile.n, tile.k,
            num_warps=tile.warps, num_stages=tile.stages, **_options(x, tile),
        )  # fmt: skip


def _options(x: Tensor, tile: Tile) -> dict[str, int]:
    """Registers for two programs of a tile on a multiprocessor, where they suffice."""
    two = has_wgmma() and x.itemsize == 2 and tile.m * tile.n < ALONE
    return {"maxnreg": min(2**16 // (64 * tile.warps), 255)} if two else {}


def _choose(
    x: Tensor, weight: Tensor, n_outer: int, n_inner: int, n_pixels: int, turned: bool, together: bool
) -> tuple[Tile, str]:
    """The tile, the largest with which programs fill a GPU, and the order of the sums; ``together``: 16 bytes of
    channels at least can be loaded and stored at once.
    """
    if x.itemsize == 4 and precision(FULL) == FULL:
        tile = FULL_TILE
    elif not has_wgmma():
        tile = OTHER_TILES[n_outer <= 64]
    elif not together:
        tile = GATHERS
    else:
        long = n_inner * weight.shape[2:].numel() >= TERMS
        tiles = [t for t in TILES[x.itemsize] if (t.m <= 64 or n_outer > 64) and (long or t.m * t.n < ALONE)]
        filling = (t for t in tiles if triton.cdiv(n_outer, t.m) * triton.cdiv(n_pixels, t.n) >= PROCESSORS)
        tile = next(filling, tiles[-1])
    few = n_inner % tile.k > 0 and n_inner < 4 * tile.k
    several = weight.shape[2:].numel() > 1
    if not (few and several):
        return tile, "blocks"
    return tile, "taps" if weight.is_contiguous() and not turned else "channels"
