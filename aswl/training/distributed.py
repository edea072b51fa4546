"""The processes of one run: alone, or started by torchrun."""

import gc
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aswl_kernels import backends


class RankMismatchError(RuntimeError):
    """Processes that should hold the same network do not."""


@dataclass(frozen=True)
class World:
    """This process among all of the run; its methods are called by all of them at the same point, and none costs
    anything where there is only one.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes; any shape, on the CPU or on this process's device."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size > 1:
            tensor = torch.tensor(value)
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
            value = int(tensor)
        return value

    def share(self, value: Any) -> Any:
        """The main process's value, whatever the others pass."""
        if self.size > 1:
            box = [value]
            dist.broadcast_object_list(box, device=torch.device("cpu"))
            value = box[0]
        return value

    def share_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors by the main process's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def check_same(self, model: nn.Module, step: int) -> None:
        """Raise :class:`RankMismatchError` unless all processes hold the same parameters and thresholds, bit for bit."""
        if self.size == 1:
            return
        # 63 bits of a hash are compared, not the tensors: one small message whatever the size of the network.
        own = torch.tensor(int.from_bytes(_digest(model)[:8], "big") >> 1)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        if odd := [rank for rank, other in enumerate(every) if other != every[0]]:
            raise RankMismatchError(
                f"step {step}: the weights, attentions or thresholds of ranks {odd} are not those of rank 0"
            )


@contextmanager
def join(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, if it did.

    device: "auto" (a GPU if there is one), "cpu", "cuda", ...; plain "cuda" is one GPU per process. Raises
    ``ValueError`` for a device that this machine does not have.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    world = World(_device(device, int(os.environ.get("LOCAL_RANK", "0"))), rank, size)
    if size == 1:
        yield world
        return
    # Gloo serves what lives on the host (flags, hashes), so that agreeing never waits for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo")
    try:
        yield world
    finally:
        gc.collect()  # networks in reference cycles would hold the group's threads beyond the end of the interpreter
        dist.destroy_process_group()
        # Where there was a DDP, torch 2.13 leaves gloo's threads running all the same. One that lets go of its last tensor
        # while the interpreter ends would abort the process, and that takes it microseconds once it has a processor.
        time.sleep(0.1)


def _device(name: str, local_rank: int) -> torch.device:
    cuda = backends()["cuda"]
    if name == "auto":
        name = "cuda" if cuda.available else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: want auto, cpu, cuda or cuda:N; got {name!r}") from error
    if device.type == "cuda":
        if not cuda.available:
            raise ValueError(f"device: want one that is here; got {name!r}, but {cuda.detail}")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"device: want cuda:0 to cuda:{torch.cuda.device_count() - 1}; got {device}")
        torch.cuda.set_device(device)
    return device


def _digest(model: nn.Module) -> bytes:
    thresholds = (buffer for name, buffer in model.named_buffers() if name.endswith("threshold"))
    content = hashlib.blake2b(digest_size=8)
    for tensor in (*model.parameters(), *thresholds):
        content.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return content.digest()
