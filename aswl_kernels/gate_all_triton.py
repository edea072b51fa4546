"""The masks of many weights in one launch: small layers cost a launch each, and more than their bytes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels._integers import integers
from aswl_kernels._programs import TYPES, owner
from aswl_kernels._triton import aligned, on
from aswl_kernels.gate_all import begins
from aswl_kernels.gate_triton import gated

BLOCK = 1024  # elements of a program, in 128 threads: 16 layers of ResNet-20 are 260 programs for 132 multiprocessors
WARPS = 4


@triton.jit(do_not_specialize=["layers"])
def gate_all_kernel(
    table_ptr,  # int64 [5, layers]: first program, size, where the result begins, addresses of weight and threshold
    y_ptr,
    layers,
    WEIGHT: tl.constexpr,
    THRESHOLD: tl.constexpr,
    LAYERS: tl.constexpr,
    FIRM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    layer, block = owner(table_ptr, tl.program_id(0).to(tl.int64), layers, LAYERS)
    entry, begin = table_ptr + layer, block * BLOCK
    size = tl.load(entry + layers)
    i = begin + tl.max_contiguous(tl.multiple_of(tl.arange(0, BLOCK), 16), 16)
    y_ptr += tl.multiple_of(tl.load(entry + 2 * layers), 16)
    w_ptr = tl.multiple_of(tl.load(entry + 3 * layers).to(tl.pointer_type(WEIGHT)), 16)
    t = tl.load(tl.load(entry + 4 * layers).to(tl.pointer_type(THRESHOLD))).to(tl.float32)
    if begin + BLOCK <= size:  # without a mask, the accesses are 16 bytes wide
        tl.store(y_ptr + i, gated(tl.load(w_ptr + i), 1.0, t, False, FIRM).to(y_ptr.dtype.element_ty))
    else:
        w = tl.load(w_ptr + i, mask=i < size, other=0.0)
        tl.store(y_ptr + i, gated(w, 1.0, t, False, FIRM).to(y_ptr.dtype.element_ty), mask=i < size)


def gate_all(
    weights: list[Tensor], thresholds: list[Tensor], dtype: torch.dtype | None = None, firm: bool = False
) -> Tensor:
    """See :func:`aswl_kernels.gate_all`; weights with gaps or at odd addresses go through copies."""
    memory, begin = weights[0].new_empty(begins(weights)[-1], dtype=dtype or weights[0].dtype), begins(weights)
    kinds: dict[torch.dtype, list[int]] = {}
    for i, threshold in enumerate(thresholds):
        kinds.setdefault(threshold.dtype, []).append(i)
    dense = [aligned(weight) for weight in weights]
    for kind, layers in kinds.items():
        programs = [0]
        for i in layers:
            programs.append(programs[-1] + triton.cdiv(weights[i].numel(), BLOCK))
        rows = (
            programs[:-1],
            [weights[i].numel() for i in layers],
            [begin[i] for i in layers],
            [dense[i].data_ptr() for i in layers],
            [thresholds[i].data_ptr() for i in layers],
        )
        if programs[-1]:
            types = {"WEIGHT": TYPES[weights[0].dtype], "THRESHOLD": TYPES[kind]}
            with on(memory):
                table = integers([value for row in rows for value in row], memory.device)
                wide = triton.next_power_of_2(len(layers))
                grid = (programs[-1],)
                constants = {**types, "LAYERS": wide, "FIRM": firm, "BLOCK": BLOCK}
                gate_all_kernel[grid](table, memory, len(layers), **constants, num_warps=WARPS)
    return memory
