"""Exact thresholds of layers that lie on several processes in parts."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from aswl_kernels._checks import FLOATING, want
from aswl_kernels.magnitude_histogram import magnitude_histogram


def sharded_magnitude_threshold(shards: list[Tensor], keep: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """:func:`magnitude_threshold` of layers of which every process of ``group`` holds a part; the same bits on each.

    ``shards``: this process's part of each of the L layers, floating, any shape, possibly empty, of the same dtypes on
    every process; ``keep``: int64 [L], how many of the whole layer, the same on every process. Returns fp32 [L], on
    every process what :func:`magnitude_threshold` would of the shards put together. Up to four reads of the shards, each
    with an all-reduce of 2 KiB per layer (NCCL, gloo); no copy to the host. Not differentiable. Raises ``ValueError`` on
    another dtype, shape or device.
    """
    shards = list(shards)
    fits = keep.dtype == torch.int64 and keep.shape == (len(shards),)
    want(fits, "sharded_magnitude_threshold", f"keep int64[{len(shards)}], one count per shard", keep)
    strangers = [shard for shard in shards if shard.dtype not in FLOATING or shard.device != keep.device]
    wanted = f"floating shards on {keep.device}, keep's device"
    want(not strangers, "sharded_magnitude_threshold", wanted, *strangers[:1])

    def histogram(prefix: Tensor, shift: int) -> Tensor:
        counts = magnitude_histogram(shards, prefix, shift)
        dist.all_reduce(counts, group=group)
        return counts

    if not shards:
        return keep.new_empty(0, dtype=torch.float32)
    narrow = [shard.dtype in (torch.bfloat16, torch.float16) for shard in shards]
    bits, none = select(histogram, keep, 2 if all(narrow) else 4)
    thresholds = bits.view(torch.float32).clone()
    for i, shard in enumerate(shards):
        if shard.dtype == torch.float16:
            thresholds[i] = (bits[i : i + 1] >> 16).to(torch.int16).view(torch.float16)[0]
    return thresholds.masked_fill(none, float("inf"))


def select(histogram: Callable[[Tensor, int], Tensor], keep: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The first ``steps`` bytes, then zeros, of the keep-th largest magnitudes' bits, and where there is none.

    ``histogram(prefix, shift)`` is :func:`magnitude_histogram` of the whole layers.
    """
    prefix, rank = torch.zeros_like(keep, dtype=torch.int32), keep[:, None]
    for step in range(steps):
        counts = histogram(prefix, 24 - 8 * step)
        reaching = counts.flip(1).cumsum(1).flip(1)  # how many have this byte or a larger one
        if step == 0:
            none = (keep < 1) | (reaching[:, 0] == 0)
            rank = rank.minimum(reaching[:, :1])
        byte = ((reaching >= rank).sum(1, keepdim=True) - 1).clamp(min=0)
        rank = rank - (reaching - counts).gather(1, byte)
        prefix = prefix * 256 + byte[:, 0].to(torch.int32)
    return prefix << 8 * (4 - steps), none
