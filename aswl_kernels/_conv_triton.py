"""What the Triton kernels of convolutions share: which pixels meet which taps, in which direction, and how y lies."""

from math import gcd
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._prims_common import suggest_memory_format

from aswl_kernels._triton import interpreting

COUNT = 2**31 - 2**16  # pixels that 32 bits can count, with a block to spare


class Axis(NamedTuple):
    """One axis of a convolution, with what tells which taps a phase sees."""

    stride: int
    padding: int
    dilation: int
    taps: int
    step: int  # a phase sees every step-th tap
    inverse: int  # of dilation / gcd(stride, dilation), modulo step


def axes(shape: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> tuple[Axis, Axis]:
    """The vertical and the horizontal axis of a convolution with a weight of ``shape``."""

    def axis(stride: int, padding: int, dilation: int, taps: int) -> Axis:
        step = stride // gcd(stride, dilation)
        return Axis(stride, padding, dilation, taps, step, pow(dilation // gcd(stride, dilation), -1, step))

    return tuple(axis(*one) for one in zip(stride, padding, dilation, shape[2:]))


def turn(axis: Axis) -> Axis:
    """The axis of the convolution that gives the gradient of x, the stride being 1."""
    return axis._replace(padding=-axis.padding, dilation=-axis.dilation)


def reached(axis: Axis) -> bool:
    """Whether each phase sees a tap: elsewhere x has pixels that nothing depends on."""
    return axis.step == axis.stride and axis.taps >= axis.step


def output_size(size: list[int], vertical: Axis, horizontal: Axis) -> list[int]:
    """Height and width of y from those of x."""
    return [
        (s + 2 * a.padding - a.dilation * (a.taps - 1) - 1) // a.stride + 1
        for s, a in zip(size, (vertical, horizontal))
    ]


def is_single(both: tuple[Axis, Axis]) -> bool:
    """Whether each pixel of y comes from the same pixel of x."""
    return all((a.taps, a.stride, a.padding) == (1, 1, 0) for a in both)


def in_one_row(*tensors: Tensor) -> list[Tensor]:
    """The same pixels in images of one row, or all of them in one image, where all tensors lie so."""
    if all(t.stride(2) == t.shape[3] * t.stride(3) for t in tensors):
        tensors = [t.flatten(2).unsqueeze(2) for t in tensors]
        if all(t.stride(0) == t.shape[3] * t.stride(3) and t[:, 0].numel() < COUNT for t in tensors):
            tensors = [t.transpose(0, 1).flatten(1)[None, :, None] for t in tensors]
    return list(tensors)


def rows_are_pixels(t: Tensor) -> bool:
    """Whether ``t`` is a matrix of channels and pixels, and what comes of it lies the same way."""
    dense = t.is_contiguous(memory_format=torch.channels_last)
    return dense and (suggest_memory_format(t) == torch.channels_last or t.shape[2:].numel() == 1)


def empty(shape: list[int], x: Tensor, weight: Tensor) -> Tensor:
    """A result of ``shape`` that lies as PyTorch's would: channels_last where one of both operands is."""
    last = torch.channels_last in map(suggest_memory_format, (x, weight))
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def span(t: Tensor) -> int:
    """Elements from the first to the last one in memory; at least its pixels, where it has any."""
    return sum((size - 1) * stride for size, stride in zip(t.shape, t.stride())) + t.numel()


def precision(full: str) -> str:
    """Of fp32 products, as PyTorch's settings for convolutions allow."""
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else full


def has_wgmma() -> bool:
    """Whether tiles may have the sizes that wgmma wants; in the interpreter, to try them."""
    if interpreting():
        return True
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch == 90


@triton.jit
def integer(n, TYPE: tl.constexpr):
    """A number as a scalar of at least this type, also where it became a constant of the kernel."""
    return tl.zeros([], TYPE) + n


@triton.jit
def steps(channel, v_tap, row, u_tap, column):
    """How far apart channels, taps of a column and taps of a row are, in 64 bits."""
    return integer(channel, tl.int64), integer(v_tap, tl.int64) * row, integer(u_tap, tl.int64) * column


@triton.jit
def source(axis, phase, PHASED: tl.constexpr):
    """Along one axis: where the first tap of pixel 0 lies in the source, how far pixels and how far taps are apart
    there, and the phase's first tap, the step to its next one, and their number.
    """
    stride, padding, dilation, taps, step, inverse = axis
    if PHASED:  # pixel i stride + phase meets tap r where stride divides i stride + phase + padding - r dilation
        common = stride // step
        reach = phase + padding
        first = tl.where(reach % common == 0, reach // common * inverse % step, taps)
        number = (tl.maximum(taps - first, 0) + step - 1) // step
        return (reach - first * dilation) // stride, 1, -(dilation // common), first, step, number
    else:
        return -padding, stride, dilation, 0, 1, taps


@triton.jit
def place(pixel, size, vertical, horizontal, PHASED: tl.constexpr):
    """Image, row and column of pixels that are counted through a batch; in a phase, by its own pixels."""
    height, width = size
    if PHASED:
        height, width = (height + vertical[0] - 1) // vertical[0], (width + horizontal[0] - 1) // horizontal[0]
    rows = pixel // width
    return rows // height, (rows % height).to(tl.int32), (pixel % width).to(tl.int32)


@triton.jit
def destination(pixel, n_pixels, phase, size, strides, vertical, horizontal, PHASED: tl.constexpr):
    """Offsets of pixels in a batch of ``size``, and whether they are in it."""
    image, v, u = place(pixel, size, vertical, horizontal, PHASED)
    inside = pixel < n_pixels
    if PHASED:
        v = v * vertical[0] + phase // horizontal[0]
        u = u * horizontal[0] + phase % horizontal[0]
        inside &= (v < size[0]) & (u < size[1])
    offset = image.to(tl.int64) * strides[0] + v.to(tl.int64) * strides[2] + u.to(tl.int64) * strides[3]
    return offset, inside
