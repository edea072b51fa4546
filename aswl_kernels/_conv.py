"""Convolution geometry shared by the convolutions: argument forms, checks, 'same' and 'valid' padding."""

import torch.nn.functional as F
from torch import Tensor

from aswl_kernels._checks import want

Size = int | tuple[int, ...] | list[int]


def pair(op: str, name: str, value: Size, minimum: int) -> list[int]:
    """``value`` as [vertical, horizontal]; ``ValueError`` unless it is one or two ints >= ``minimum``."""
    both = list(value) if isinstance(value, (tuple, list)) else [value]
    both = both * 2 if len(both) == 1 else both
    fits = len(both) == 2 and all(isinstance(v, int) and v >= minimum for v in both)
    want(fits, op, f"{name} one or two ints >= {minimum}", value)
    return both


def prepare(
    op: str, x: Tensor, shape: list[int], stride: Size, padding: Size | str, dilation: Size, groups: int
) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Check ``x`` [N, C, H, W] or [C, H, W] against a weight of ``shape``; return (4-d x, stride, padding, dilation).

    String padding becomes numbers; where 'same' is lopsided, ``x`` comes back padded.
    """
    stride, dilation = pair(op, "stride", stride, 1), pair(op, "dilation", dilation, 1)
    whole = len(shape) == 4 and min(shape[0], *shape[2:]) >= 1
    want(whole, op, "weight [out, in/groups, height, width], of these only in/groups may be 0", list(shape))
    fits = isinstance(groups, int) and groups >= 1 and shape[0] % groups == 0
    want(fits, op, f"groups that divide the {shape[0]} output channels", groups)
    channels = shape[1] * groups
    fits = x.dim() in (3, 4) and x.shape[-3] == channels and min(x.shape[-2:]) >= 1
    want(fits, op, f"x [N, {channels}, H, W] or [{channels}, H, W], H and W not 0", x)
    x = x.unsqueeze(0) if x.dim() == 3 else x
    if padding == "valid":
        padding = [0, 0]
    elif padding == "same":
        want(stride == [1, 1], op, "stride 1 with padding='same'", stride)
        total = [d * (k - 1) for d, k in zip(dilation, shape[2:])]
        padding = [t // 2 for t in total]
        x = F.pad(x, (0, total[1] % 2, 0, total[0] % 2)) if any(t % 2 for t in total) else x
    else:
        want(not isinstance(padding, str), op, "padding 'same', 'valid' or ints", padding)
        padding = pair(op, "padding", padding, 0)
    span = [s + 2 * p - d * (k - 1) for s, p, d, k in zip(x.shape[2:], padding, dilation, shape[2:])]
    large = f"x at least as large as the dilated kernel {list(shape[2:])} after padding {padding}"
    want(min(span) >= 1, op, large, x)
    return x, stride, padding, dilation
