"""Where operators meet their Triton kernels: which serve a GPU, on which device they start, and who serves instead."""

import contextlib
import functools
import importlib
import math
import os
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from aswl_kernels._library import LIBRARY

OLDEST = (3, 6)  # Triton that has all that the kernels use
CAPABILITY = (8, 0)  # of an NVIDIA GPU: the first with bf16 products

SERVED: dict[str, Callable] = {}  # the GPU's kernel of each operator that has one in Triton


def serve(name: str, module: str, reference: Callable, wide: bool = False) -> None:
    """Let ``aswl_kernels.<module>.<name>``, imported when first called, be the kernel of ``aswl::<name>`` on GPUs.

    ``reference`` serves instead where an argument is fp64, unless the kernel is ``wide`` enough, and where
    :func:`unusable` names a reason, which is warned of once.
    """

    def kernel(*args):
        tensors = list(_tensors(args))
        too_wide = not wide and any(t.dtype == torch.float64 for t in tensors)
        if too_wide or (tensors and not _usable(tensors[0].device)):
            return reference(*args)
        return getattr(importlib.import_module(f"aswl_kernels.{module}"), name)(*args)

    SERVED[name] = kernel
    LIBRARY.impl(name, kernel, "CUDA")


def on(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Launches within go to the tensor's device, and there to the current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def ordered(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` with its elements in memory as those of ``like``, which has the same shape and no gaps: itself or a copy."""
    strides = zip(tensor.shape, tensor.stride(), like.stride())
    if not tensor.numel() or all(own == other for size, own, other in strides if size > 1):  # the rest lead nowhere
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def aligned(tensor: Tensor) -> Tensor:
    """``tensor`` without gaps, in any order, and at a multiple of 16 bytes: itself or a copy."""
    if not tensor.is_contiguous():
        tensor = ordered(tensor, torch.empty_like(tensor, device="meta"))
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def same_order(tensors: list[Tensor]) -> bool:
    """Whether all, which have one shape, are without gaps, and their elements in the same order in memory."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    dims = sorted((stride, size) for stride, size in zip(tensors[0].stride(), tensors[0].shape) if size != 1)
    dense = all(stride == math.prod(size for _, size in dims[:i]) for i, (stride, _) in enumerate(dims))
    return dense and all(tensor.stride() == tensors[0].stride() for tensor in tensors)


def unusable(device: torch.device | None = None) -> str | None:
    """Why no Triton kernel can run on ``device`` (a GPU, None meaning the current one); None where they can."""
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        return f"triton cannot be imported: {error}"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return f"triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}"
    if device is not None and device.type == "cpu":
        return None if interpreting() else "Triton's kernels run on a GPU, or with TRITON_INTERPRET=1"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability {'.'.join(map(str, CAPABILITY))}"
    try:  # a driver may be too old for the code, and a compiler for the launcher may be missing: seen only by trying
        one = torch.ones((), device=device or "cuda")
        importlib.import_module("aswl_kernels.gate_triton").gate(one, None, one)
        torch.cuda.synchronize(device)
    except Exception as error:  # noqa: BLE001 whatever it is, it is told, and the reference serves
        return f"triton {triton.__version__} cannot run a kernel here: {type(error).__name__}: {error}"
    return None


def interpreting() -> bool:
    """Whether Triton's kernels run in its interpreter, and so on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _usable(device: torch.device) -> bool:
    reason = unusable(device)
    if reason:
        warnings.warn(f"aswl: operators on {device} run on their PyTorch references: {reason}", stacklevel=2)
    return reason is None


def _tensors(args: Iterable[object]) -> Iterable[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from (t for t in arg if isinstance(t, Tensor))
