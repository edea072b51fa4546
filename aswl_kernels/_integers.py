"""Integers of the host for kernels that serve many tensors at once: addresses, sizes, where each begins in the grid."""

import functools

import torch
from torch import Tensor


def integers(values: list[int], device: torch.device) -> Tensor:
    """int64 [len(values)] on ``device``, for what its current stream does next.

    They travel as arguments of kernels: a copy from the host would wait for the stream, or need memory of the host that
    outlives a captured graph. What was sent is kept and found again, except in a capture: a graph owns its memory, and
    sends them at each replay.
    """
    if device.type != "cuda":
        return _kept(tuple(values), device, 0)
    if torch.cuda.is_current_stream_capturing():
        return _sent(tuple(values), device)
    return _kept(tuple(values), device, torch.cuda.current_stream(device).cuda_stream)


@functools.lru_cache(maxsize=64)
def _kept(values: tuple[int, ...], device: torch.device, stream: int) -> Tensor:
    return _sent(values, device)


def _sent(values: tuple[int, ...], device: torch.device) -> Tensor:
    sent = torch.zeros(len(values), dtype=torch.int64, device=device)
    torch._foreach_add_(list(sent.unbind()), values)
    return sent
