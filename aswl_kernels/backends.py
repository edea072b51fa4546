"""What this machine offers to the operators."""

import functools
import importlib.util
import platform
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from aswl_kernels import native
from aswl_kernels._triton import interpreting, unusable


class Backend(NamedTuple):
    """``available``, and ``detail``: a version or device name, or the reason why it is missing."""

    available: bool
    detail: str


def backends() -> dict[str, Backend]:
    """Triton, its interpreter, CUDA and the C++ library (and its instruction set): each available or missing, and why.

    Nothing here is required: an operator without a kernel for the device runs on its PyTorch reference.
    """
    return {"reference": Backend(True, f"torch {torch.__version__}")} | {
        "cuda": _cuda(),
        "triton": _triton(),
        "interpreter": _interpreter(),
        "native": _native(),
    }


@functools.cache
def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cuda() -> Backend:
    if torch.version.cuda is None:
        return Backend(False, f"torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        return Backend(False, f"torch was built for CUDA {torch.version.cuda}, but no device is visible")
    return Backend(True, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")


def _native() -> Backend:
    stale = native.AVAILABLE and native.is_stale(Path(native.__file__).parent)
    return Backend(
        native.AVAILABLE, native.DETAIL + ", but built from other sources than csrc/: build it again" * stale
    )


def _triton() -> Backend:
    if importlib.util.find_spec("triton") is None:
        return Backend(False, "the package triton is not installed")
    if not torch.cuda.is_available():
        return Backend(False, f"triton {version('triton')} is installed, but there is no GPU to run it on")
    reason = unusable()
    return Backend(reason is None, reason or f"triton {version('triton')}")


def _interpreter() -> Backend:
    if importlib.util.find_spec("triton") is None:
        return Backend(False, "the package triton is not installed")
    if not interpreting():
        return Backend(False, "TRITON_INTERPRET=1 is not set")
    return Backend(True, "TRITON_INTERPRET=1")
