"""The masked linear product on a GPU, in one pass: mask, product, bias and attention in one kernel, and its gradients.

The weight is the first operand of each product, which wgmma takes from registers: a tile of it goes from shared memory
to the registers that the product reads, and is masked there. So the products are turned: y.T = sparse @ x.T.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from aswl_kernels import reference
from aswl_kernels._triton import interpreting, on


class Tile(NamedTuple):
    """What a program computes (m, n) and in one step (k), by how many warps, and how many steps ahead it loads."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


# by bytes per element of the first and the second operand; from 128x256 on, level 2 delivers what tensor cores eat.
# On sm_90 none of them spills, and wgmma takes its first operand from registers while the next one is masked
TILES = {
    (2, 2): (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 4), Tile(64, 64, 64, 4, 4)),
    (4, 2): (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 3)),
    (4, 4): (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3)),
}
# without TMA, within 64 KB (fp32: 80) and the registers left by pointers; the last where those are one per element
POINTER_TILES = (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 8, 3))
PROCESSORS = 132  # multiprocessors of a GPU that is not there (an H200's)
GROUP = 16  # rows of tiles that are computed together, so that what they read stays in level 2
FULL = "ieee"  # of fp32 where PyTorch's settings do not allow TF32; "tf32x3" comes close to it on tensor cores


@triton.jit
def masked_linear_kernel(
    w, x, y, t_ptr, a_ptr, b_ptr, M, N, K, stride_w, stride_x,
    TURNED: tl.constexpr, DESCRIPTORS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y [N, M] = a (x [N, K] sparse.T + b); the weight is [M, K], or, TURNED, [K, M]."""
    # a tile and no scalar: only through loads Triton hoists the operand's layout, so that the mask is made in registers
    t = tl.load(t_ptr + tl.zeros([1, 1], tl.int32)).to(tl.float32)
    inside = None if EVEN else K
    tl.assume(K > 0)  # or all would be compiled twice; around a lone loop over k, ptxas would serialise wgmma (C7515)
    first = tl.program_id(0)
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N) if DESCRIPTORS else first + 1
    # not flattened: there, Triton 3.6 forgets to wait for wgmma before acc is read if its first operand is in registers
    # (triton-lang/triton#8964), and ptxas would serialise (C7515)
    for tile in range(first, tiles, tl.num_programs(0) if DESCRIPTORS else 1):
        m, n = _place(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, K, BLOCK_K):
            if TURNED:
                w_tile = _load(w, k, m, inside, M, stride_w, BLOCK_K, BLOCK_M, DESCRIPTORS).T
            else:
                w_tile = _load(w, m, k, M, inside, stride_w, BLOCK_M, BLOCK_K, DESCRIPTORS)
            x_tile = _load(x, n, k, N, inside, stride_x, BLOCK_N, BLOCK_K, DESCRIPTORS)
            kept = _sparse(w_tile, t, WIDE).to(x_tile.dtype)
            acc = tl.dot(_wide(kept, WIDE), _wide(x_tile, WIDE).T, acc, input_precision=PRECISION)
        if b_ptr is not None:
            columns = m + tl.arange(0, BLOCK_M)
            acc += tl.load(b_ptr + columns, mask=columns < M, other=0.0).to(tl.float32)[:, None]
        if a_ptr is not None:
            acc *= tl.load(a_ptr).to(tl.float32)
        _store(y, acc.T, n, m, N, M, BLOCK_N, BLOCK_M, DESCRIPTORS)


@triton.jit
def masked_linear_weight_gradient_kernel(
    g, x, w_ptr, y_ptr, sums_ptr, t_ptr, a_ptr, l_ptr, M, N, K, stride_g, stride_x, stride_wm, stride_wn,
    DESCRIPTORS: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y [M, N] = a grad [K, M].T x [K, N], 0 where not learnable; of each tile the sum(grad.T x * sparse)."""
    t = tl.load(t_ptr).to(tl.float32)
    inside = None if EVEN else K
    tl.assume(K > 0)
    first = tl.program_id(0)
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N) if DESCRIPTORS else first + 1
    for tile in tl.range(first, tiles, tl.num_programs(0) if DESCRIPTORS else 1, flatten=DESCRIPTORS):
        m, n = _place(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, K, BLOCK_K):
            g_tile = _load(g, k, m, inside, M, stride_g, BLOCK_K, BLOCK_M, DESCRIPTORS)
            x_tile = _load(x, k, n, inside, N, stride_x, BLOCK_K, BLOCK_N, DESCRIPTORS)
            acc = tl.dot(_wide(g_tile, WIDE).T, _wide(x_tile, WIDE), acc, input_precision=PRECISION)
        left, right = _halves(acc, BLOCK_M, BLOCK_N)  # what follows is done by quarters, or registers would spill
        a, b = _halves(left, BLOCK_M, BLOCK_N // 2)
        c, d = _halves(right, BLOCK_M, BLOCK_N // 2)
        parts = a, b, c, d
        total = 0.0
        for quarter in tl.static_range(4):
            rows = (m + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
            columns = (n + quarter * (BLOCK_N // 4) + tl.arange(0, BLOCK_N // 4)).to(tl.int64)[None, :]
            valid = (rows < M) & (columns < N)
            w = tl.load(w_ptr + rows * stride_wm + columns * stride_wn, mask=valid, other=0.0).to(tl.float32)
            total += tl.sum(tl.where(valid, parts[quarter] * tl.where(tl.abs(w) < t, 0.0, w), 0.0))
            part = parts[quarter] if a_ptr is None else parts[quarter] * tl.load(a_ptr).to(tl.float32)
            if l_ptr is not None:
                part = tl.where(tl.abs(w) < tl.load(l_ptr).to(tl.float32), 0.0, part)
            _store(y_ptr, part, m, n + quarter * (BLOCK_N // 4), M, N, BLOCK_M, BLOCK_N // 4, False)
        tl.store(sums_ptr + tile, total)


@triton.jit
def _place(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Where the tile begins: they go through GROUP rows of tiles column by column, then through the next rows."""
    columns = tl.cdiv(N, BLOCK_N)
    first = tile // (GROUP * columns) * GROUP
    height = tl.minimum(tl.cdiv(M, BLOCK_M) - first, GROUP)
    place = tile % (GROUP * columns)
    return (first + place % height) * BLOCK_M, place // height * BLOCK_N


@triton.jit
def _load(
    source, row, column, n_rows, n_columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTOR: tl.constexpr
):
    """[ROWS, COLUMNS] of a row-major matrix from (row, column) on, 0 outside; sizes are None where it does not end."""
    if DESCRIPTOR:
        tile = source.load([row, column])
    else:
        r, c = row + tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
        if n_rows is None:
            inside = c < n_columns
        elif n_columns is None:
            inside = r < n_rows
        else:
            inside = (r < n_rows) & (c < n_columns)
        tile = tl.load(source + r.to(tl.int64) * stride + c, mask=inside, other=0.0)
    return tile


@triton.jit
def _store(
    target, tile, row, column, n_rows, n_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTOR: tl.constexpr
):
    """Write the tile [ROWS, COLUMNS] to the gapless matrix from (row, column) on, as far as it goes."""
    if DESCRIPTOR:
        target.store([row, column], tile.to(target.dtype))
    else:
        r, c = row + tl.arange(0, ROWS)[:, None], column + tl.arange(0, COLUMNS)[None, :]
        pointers = target + r.to(tl.int64) * n_columns + c
        tl.store(pointers, tile.to(target.dtype.element_ty), mask=(r < n_rows) & (c < n_columns))


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of the tile's columns."""
    return tl.split(tl.permute(tl.reshape(tile, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))


@triton.jit
def _sparse(w, t, WIDE: tl.constexpr):
    """w where abs(w) >= t [1, 1] or NaN, else 0, compared in w's dtype: with the next value that is not below t."""
    if w.dtype != tl.float32:
        narrow = t.to(w.dtype)
        bits = narrow.to(tl.int16, bitcast=True) + (narrow.to(tl.float32) < t).to(tl.int16)
        t = bits.to(w.dtype, bitcast=True)
    return tl.where(tl.abs(_wide(w, WIDE)) < _wide(t, WIDE), 0.0, _wide(w, WIDE))


@triton.jit
def _wide(tile, WIDE: tl.constexpr):
    """In fp32 for the interpreter, which takes bf16 for integers."""
    return tile.to(tl.float32) if WIDE else tile


def masked_linear(
    x: Tensor, weight: Tensor, threshold: Tensor, attention: Tensor | None, bias: Tensor | None
) -> Tensor:
    """See :func:`aswl_kernels.masked_linear`; what is no matrix of whole rows (or columns: the weight) is copied."""
    (M, K), N = weight.shape, x.shape[:-1].numel()
    if not (M and N and K):
        return reference.masked_linear(x, weight, threshold, attention, bias)
    turned = weight.stride(0) == 1 and weight.stride(1) != 1
    w, rows = _row_major(weight.mT if turned else weight), _row_major(x)
    bias = bias if bias is None else bias.contiguous()
    y = torch.empty([*x.shape[:-1], M], dtype=x.dtype, device=x.device)
    flat = y.view(N, M)
    with on(x):
        tile, descriptors, grid = _choose(M, N, w, rows, flat)
        w_block = (tile.k, tile.m) if turned else (tile.m, tile.k)
        operands = _operands(descriptors, (w, w_block), (rows, (tile.n, tile.k)), (flat, (tile.n, tile.m)))
        masked_linear_kernel[grid](
            *operands, threshold, attention, bias, M, N, K, w.stride(0), rows.stride(0),
            turned, descriptors, *_constants(tile, K, w, rows), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return y


def masked_linear_input_gradient(grad: Tensor, weight: Tensor, threshold: Tensor, attention: Tensor | None) -> Tensor:
    """See :func:`aswl_kernels.reference.masked_linear_input_gradient`: the same product with the weight turned."""
    return masked_linear(grad, weight.mT, threshold, attention, None)


def masked_linear_weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, threshold: Tensor, attention: Tensor | None, learnable: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See :func:`aswl_kernels.reference.masked_linear_weight_gradient`; the sum is that of one partial sum per tile."""
    (M, N), K = weight.shape, x.shape[:-1].numel()
    if not (M and N and K):
        return reference.masked_linear_weight_gradient(grad, x, weight, threshold, attention, learnable)
    grads, rows = _row_major(grad), _row_major(x)
    y = torch.empty(M, N, dtype=weight.dtype, device=weight.device)
    with on(x):
        tile, descriptors, grid = _choose(M, N, grads, rows, y)
        sums = torch.empty(_tiles(tile, M, N), dtype=torch.float32, device=x.device)
        operands = _operands(descriptors, (grads, (tile.k, tile.m)), (rows, (tile.k, tile.n)))
        masked_linear_weight_gradient_kernel[grid](
            *operands, weight, y, sums, threshold, attention, learnable, M, N, K, grads.stride(0), rows.stride(0),
            *weight.stride(), descriptors, *_constants(tile, K, grads, rows), num_warps=tile.warps,
            num_stages=tile.stages,
        )  # fmt: skip
    return y, sums.sum()


def _row_major(t: Tensor) -> Tensor:
    """``t`` as a matrix with its rows one after the other, each without gaps: a view, or a copy where it is none."""
    t = torch.atleast_2d(t).flatten(0, -2)
    whole = (t.shape[1] == 1 or t.stride(1) == 1) and (t.shape[0] == 1 or t.stride(0) >= t.shape[1])
    return t if whole else t.clone(memory_format=torch.contiguous_format)


def _choose(M: int, N: int, left: Tensor, right: Tensor, y: Tensor) -> tuple[Tile, bool, tuple[int]]:
    """The tile with which a multiprocessor loads the least; whether descriptors name all three matrices; the grid.

    Where they do, as many programs as run at once take tile after tile.
    """
    processors = torch.cuda.get_device_properties(y.device).multi_processor_count if y.is_cuda else PROCESSORS
    aligned = all(_describable(t) for t in (left, right, y))
    descriptors = aligned and _has_tma()
    sizes = TILES[left.itemsize, right.itemsize] if descriptors else POINTER_TILES[0 if aligned else -1 :]
    tile = min(sizes, key=lambda size: triton.cdiv(_tiles(size, M, N), processors) * (size.m + size.n))
    tiles = _tiles(tile, M, N)
    return tile, descriptors, (min(tiles, processors * 8 // tile.warps) if descriptors else tiles,)


def _has_tma() -> bool:
    """Whether one instruction loads a tile, and 227 KB hold the largest; elsewhere Triton would take descriptors apart,
    element by element, or find less shared memory.
    """
    if interpreting():
        return True
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch // 10 in (9, 10)


def _describable(t: Tensor) -> bool:
    """Whether ``t`` has the alignment, the sizes and the strides that a descriptor asks for."""
    aligned = t.data_ptr() % 16 == 0 and t.stride(0) * t.itemsize % 16 == 0
    return aligned and t.stride(0) >= t.shape[1] and max(t.shape) < 2**31


def _operands(descriptors: bool, *matrices: tuple[Tensor, tuple[int, int]]) -> list[Tensor | TensorDescriptor]:
    """Each matrix as what the kernels load and store tiles of the given shape from."""
    if not descriptors:
        return [t for t, _ in matrices]
    return [TensorDescriptor(t, list(t.shape), [t.stride(0), 1], list(block)) for t, block in matrices]


def _tiles(tile: Tile, M: int, N: int) -> int:
    return triton.cdiv(M, tile.m) * triton.cdiv(N, tile.n)


def _constants(tile: Tile, K: int, left: Tensor, right: Tensor) -> tuple[bool, str, bool, int, int, int, int]:
    """The kernels' EVEN, PRECISION, WIDE, BLOCK_M, BLOCK_N, BLOCK_K and GROUP."""
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else FULL
    wide = interpreting() and torch.bfloat16 in (left.dtype, right.dtype)
    return K % tile.k == 0, precision, wide, tile.m, tile.n, tile.k, GROUP
