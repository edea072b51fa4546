"""The fused optimizers on a GPU: one launch steps all weights of a dtype, a small one adds up what its programs summed."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from aswl_kernels._fused import parted
from aswl_kernels._integers import integers
from aswl_kernels._programs import TYPES, owner
from aswl_kernels._triton import on, ordered, same_order

WARPS = 8
BLOCKS = 8  # of a program at most: 8,192 fp32 weights, so that finding its layer costs it little
PROGRAMS = 1024  # of few weights, fewer blocks each: an H200 runs 660 at a time
SUMMED = 1024  # partial sums that a program of the second launch adds at once


class Variant(NamedTuple):
    """What makes another kernel: which states and copies there are, and options of the step."""

    states: int
    copied: bool
    scaled: bool
    maximize: bool
    decays: bool
    first: bool = False
    nesterov: bool = False


@triton.jit(do_not_specialize=["layers", "programs"])
def fused_kernel(
    table_ptr,  # int64 [rows, layers]: first program, size, place; addresses of weight, threshold, states, copy, step
    grads_ptr,  # int64 [layers], addresses
    sums_ptr,  # fp32 [3, programs]
    layers,
    programs,
    grad_scale_ptr,
    pruned_gradient,
    pruned_gradient_ptr,
    lr,
    lr_ptr,
    low,
    high,
    step,
    numbers,
    PREPARE: tl.constexpr,
    UPDATE: tl.constexpr,
    VARIANT: tl.constexpr,
    WEIGHT: tl.constexpr,
    THRESHOLD: tl.constexpr,
    COPY: tl.constexpr,
    STEP: tl.constexpr,
    ALIGNED: tl.constexpr,
    LAYERS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Steps BLOCKS blocks of one layer; dtypes are those of what is behind the addresses."""
    program = tl.program_id(0).to(tl.int64)
    layer, begin = owner(table_ptr, program, layers, LAYERS)
    entry, begin = table_ptr + layer, begin * (BLOCKS * BLOCK)
    size = tl.minimum(tl.load(entry + layers) - begin, BLOCKS * BLOCK).to(tl.int32)
    w_ptr = _pointer(entry + 3 * layers, begin, WEIGHT, ALIGNED)
    g_ptr = _pointer(grads_ptr + layer, begin, WEIGHT, ALIGNED)
    t = tl.load(_pointer(entry + 4 * layers, 0, THRESHOLD, False)).to(tl.float32)
    m_ptr = _pointer(entry + 5 * layers, begin, WEIGHT, ALIGNED) if VARIANT.states > 0 else w_ptr
    v_ptr = _pointer(entry + 6 * layers, begin, WEIGHT, ALIGNED) if VARIANT.states > 1 else w_ptr
    entry += (5 + VARIANT.states) * layers
    copy_ptr = _pointer(entry, begin, COPY, ALIGNED) if VARIANT.copied else w_ptr
    if STEP is not None:
        step = tl.load(_pointer(entry + layers if VARIANT.copied else entry, 0, STEP, False)).to(tl.float32)
    pointers = (w_ptr, g_ptr, m_ptr, v_ptr, copy_ptr)
    mask = (t, low * t, high * t, _number(pruned_gradient, pruned_gradient_ptr), _number(1.0, grad_scale_ptr))
    constants = PREPARE(_number(lr, lr_ptr), step, numbers)
    none = tl.zeros([BLOCK // 4], tl.float32)
    sums = (none, none, none)
    whole = size // BLOCK * BLOCK
    for i in range(0, whole, BLOCK):  # without a mask, accesses are 16 bytes wide
        sums = _advance(pointers, i, size, mask, constants, sums, UPDATE, VARIANT, False, BLOCK)
    if whole < size:
        sums = _advance(pointers, whole, size, mask, constants, sums, UPDATE, VARIANT, True, BLOCK)
    for k in tl.static_range(3):
        tl.store(sums_ptr + k * programs + program, tl.sum(sums[k]))


@triton.jit
def _advance(
    pointers,
    begin,
    size,
    mask,
    constants,
    sums,
    UPDATE: tl.constexpr,
    VARIANT: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block: the sums of what there is, the step, and the copy."""
    w_ptr, g_ptr, m_ptr, v_ptr, copy_ptr = pointers
    threshold, low, high, pruned_gradient, grad_scale = mask
    i = begin + tl.max_contiguous(tl.multiple_of(tl.arange(0, BLOCK), 16), 16)
    w, g = _load(w_ptr, i, size, MASKED), _load(g_ptr, i, size, MASKED)
    m = _load(m_ptr, i, size, MASKED) if VARIANT.states > 0 else w
    v = _load(v_ptr, i, size, MASKED) if VARIANT.states > 1 else w
    if VARIANT.scaled:
        g = tl.div_rn(g, grad_scale)
    magnitude = tl.abs(w)
    pruned = magnitude < threshold
    near = (magnitude >= low) & (magnitude <= high)
    kept, product = tl.where(pruned, 0.0, w) * g, w * g
    if MASKED:  # 0 is near a threshold of 0, and 0 over a scale of 0 is NaN
        near, kept = near & (i < size), tl.where(i < size, kept, 0.0)
    sums = (
        sums[0] + _by_fours(kept),
        sums[1] + _by_fours(tl.where(near, product, 0.0)),
        sums[2] + _by_fours(tl.where(near, 1.0, 0.0)),
    )
    g = tl.where(pruned, g * pruned_gradient, g)
    g = -g if VARIANT.maximize else g
    w, m, v = UPDATE(w, g, m, v, pruned, constants, VARIANT)
    w = w.to(w_ptr.dtype.element_ty)
    _store(w_ptr, i, w, size, MASKED)
    if VARIANT.states > 0:
        _store(m_ptr, i, m, size, MASKED)
    if VARIANT.states > 1:
        _store(v_ptr, i, v, size, MASKED)
    if VARIANT.copied:
        w = w.to(tl.float32)
        _store(copy_ptr, i, tl.where(tl.abs(w) < threshold, 0.0, w), size, MASKED)
    return sums


@triton.jit
def _by_fours(x):
    """Sums of neighbours, which one thread holds: sums of single elements would take four times the registers."""
    return tl.sum(tl.reshape(x, [x.shape[0] // 4, 4]), 1)


@triton.jit
def _load(ptr, i, size, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(ptr + i, mask=i < size, other=0.0).to(tl.float32)
    else:
        return tl.load(ptr + i).to(tl.float32)


@triton.jit
def _store(ptr, i, value, size, MASKED: tl.constexpr):
    tl.store(ptr + i, value.to(ptr.dtype.element_ty), mask=i < size if MASKED else None)


@triton.jit
def _number(number, ptr):
    if ptr is None:
        return number
    else:
        return tl.load(ptr).to(tl.float32)


@triton.jit
def _pointer(entry, offset, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """``offset`` elements behind the address that the table has at ``entry``, which may be known to divide by 16."""
    address = tl.load(entry).to(tl.pointer_type(TYPE))
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address + offset


@triton.jit(do_not_specialize=["layers", "programs"])
def fused_sums_kernel(table_ptr, sums_ptr, y_ptr, layers, programs, BLOCK: tl.constexpr):
    """One layer's total of one of the three sums, in fp64."""
    layer, k = tl.program_id(0), tl.program_id(1).to(tl.int64)
    end = programs.to(tl.int64)
    if layer + 1 < layers:
        end = tl.load(table_ptr + layer + 1)
    total = tl.zeros([BLOCK], tl.float64)
    for begin in range(tl.load(table_ptr + layer), end, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + k * programs + i, mask=i < end, other=0.0).to(tl.float64)
    tl.store(y_ptr + 3 * tl.load(table_ptr + 2 * layers + layer) + k, tl.sum(total))


class Rule(NamedTuple):
    """An optimizer: ``prepare(lr, step, numbers)`` gives a layer's constants, by which ``update`` steps its weights."""

    prepare: Any
    update: Any
    numbers: NamedTuple
    variant: Variant


class _Layer(NamedTuple):
    place: int
    weight: Tensor
    threshold: Tensor
    states: list[Tensor]
    copy: list[Tensor]
    step: float | Tensor
    grad: Tensor

    def kind(self) -> tuple:
        """Equal for those that one launch can take; first whether all accesses can be of 16 bytes."""
        aligned = not any(t.data_ptr() % 16 for t in (self.weight, self.grad, *self.states, *self.copy))
        step = self.step.dtype if isinstance(self.step, Tensor) else self.step
        return aligned, self.threshold.dtype, step, *(t.dtype for t in self.copy)


def launch(
    rule: Rule,
    weights: list[Tensor],
    grads: list[Tensor],
    states: list[list[Tensor]],
    thresholds: list[Tensor],
    copies: list[Tensor],
    steps: list[float | Tensor],
    grad_scale: Tensor | None,
    lr: float | Tensor,
    pruned_gradient: float | Tensor,
    band: float,
) -> Tensor:
    """Step all layers and return their sums, fp64 [L, 3]: two launches for those alike in dtypes, alignment and step.

    A layer goes through contiguous stand-ins where its tensors have gaps or differ in their order in memory.
    """
    y = torch.empty(len(weights), 3, dtype=torch.float64, device=weights[0].device if weights else None)
    kinds: dict[tuple, list[_Layer]] = {}
    written = []
    for i, weight in enumerate(weights):
        given = [weight, *(state[i] for state in states), *copies[i : i + 1]]
        used, grad, last = given, grads[i], 1 + len(states)
        if not same_order([grad, *given]):
            used = given if same_order(given) else [tensor.contiguous() for tensor in given]
            grad = ordered(grad, used[0])
            written += [(tensor, stand_in) for tensor, stand_in in zip(given, used) if tensor is not stand_in]
        layer = _Layer(i, used[0], thresholds[i], used[1:last], used[last:], steps[i], grad)
        kinds.setdefault(layer.kind(), []).append(layer)
    numbers = (grad_scale, *parted(pruned_gradient), *parted(lr), 1 - band, 1 + band)
    with on(y):  # all memory is there before anything is launched: without, nothing has changed
        for start in [_planned(rule, layers, numbers, aligned, y) for (aligned, *_), layers in kinds.items()]:
            start()
    for tensor, stand_in in written:
        tensor.copy_(stand_in)
    return y


def _planned(rule: Rule, layers: list[_Layer], numbers: tuple, aligned: bool, y: Tensor) -> Callable[[], None]:
    """The launches for layers of one kind, which write their rows of ``y``."""
    one = layers[0]
    block = 32 * WARPS * 16 // max(t.itemsize for t in (one.weight, *one.copy))
    sizes = [layer.weight.numel() for layer in layers]
    blocks = min(BLOCKS, triton.next_power_of_2(triton.cdiv(max(sum(sizes), 1), PROGRAMS * block)))
    first = [0, *accumulate(-(-size // (blocks * block)) for size in sizes)]
    programs = first.pop()
    in_table = [[layer.weight, layer.threshold, *layer.states, *layer.copy] for layer in layers]
    step, step_type = one.step, None
    if isinstance(step, Tensor):
        step, step_type = 0.0, TYPES[step.dtype]
        in_table = [[*tensors, layer.step] for tensors, layer in zip(in_table, layers)]
    addresses = [tensor.data_ptr() for row in zip(*in_table) for tensor in row]
    table = integers([*first, *sizes, *(layer.place for layer in layers), *addresses], y.device)
    grads = integers([layer.grad.data_ptr() for layer in layers], y.device)
    sums = torch.empty(3, programs, dtype=torch.float32, device=y.device)
    options = {
        "PREPARE": rule.prepare,
        "UPDATE": rule.update,
        "VARIANT": rule.variant,
        "WEIGHT": TYPES[one.weight.dtype],
        "THRESHOLD": TYPES[one.threshold.dtype],
        "COPY": TYPES[one.copy[0].dtype] if one.copy else None,
        "STEP": step_type,
        "ALIGNED": aligned,
        "LAYERS": triton.next_power_of_2(len(layers)),
        "BLOCKS": blocks,
        "BLOCK": block,
    }

    def start() -> None:
        if programs:
            args = (table, grads, sums, len(layers), programs, *numbers, step, rule.numbers)
            fused_kernel[(programs,)](*args, **options, num_warps=WARPS, num_stages=1)
        fused_sums_kernel[(len(layers), 3)](table, sums, y, len(layers), programs, BLOCK=SUMMED, num_warps=4)

    return start


def either(number: float, tensor: Tensor | None, weights: list[Tensor]) -> float | Tensor:
    """The tensor where there is one beside the weights; one on the CPU is read, for which no GPU is waited."""
    if tensor is None or not weights:
        return number
    return tensor if tensor.device == weights[0].device else tensor.item()
