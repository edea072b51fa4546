"""Integers of the host for kernels that serve many tensors at once: addresses, sizes, where each begins in the grid."""

import torch
from torch import Tensor

Key = tuple[tuple[int, ...], torch.device]
MANY = 64  # tables that are kept: of weights, whose addresses stay, and of gradients, whose addresses come again

_kept: dict[tuple[Key, int], Tensor] = {}  # by what they hold and the stream that sent them, the oldest first
_captured: list[Tensor] = []  # what graphs read for as long as there may be graphs


def integers(values: list[int], device: torch.device) -> Tensor:
    """int64 [len(values)] on ``device``, for what its current stream does next.

    They travel as arguments of kernels: a copy from the host would wait for the stream, or need memory of the host that
    outlives a captured graph. What was sent is kept and found again. A capture takes what any stream has sent before it,
    as ``torch.cuda.graph`` waits for the device first; what is new it holds itself, and sends at each replay.
    """
    key, stream = (tuple(values), device), _stream(device)
    if _capturing(device):
        tables = [table for (other, _), table in _kept.items() if other == key]
        _captured.extend(tables[:1])
        return tables[0] if tables else _sent(*key)
    table = _kept.pop((key, stream), None)
    _kept[key, stream] = _sent(*key) if table is None else table
    if len(_kept) > MANY:
        del _kept[next(iter(_kept))]
    return _kept[key, stream]


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _sent(values: tuple[int, ...], device: torch.device) -> Tensor:
    sent = torch.zeros(len(values), dtype=torch.int64, device=device)
    torch._foreach_add_(list(sent.unbind()), values)
    return sent
