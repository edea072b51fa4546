"""Tables of what was measured, in JSON: named by the product that was asked for, kept from one process to the next."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

Entry = TypeVar("Entry")


def facts(op: str, x: Tensor, weight: Tensor, geometry: tuple) -> tuple:
    """What the time of ``op(x, weight, ..., *geometry)`` depends on, the dtypes aside: the arguments of :func:`name`."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    grads = torch.is_grad_enabled()
    return (
        op,
        tuple(x.shape),
        tuple(weight.shape),
        geometry,
        last,
        grads and x.requires_grad,
        grads and weight.requires_grad,
    )


def name(
    op: str, x: tuple[int, ...], weight: tuple[int, ...], geometry: tuple, last: bool, needs_x: bool, needs_weight: bool
) -> str:
    """The product in words; batches up to the next power of two are one."""
    shape = list(x) if op == "masked_conv2d" and len(x) == 4 else [torch.Size(x[:-1]).numel(), x[-1]]
    shape[0] = power_of_two(shape[0])
    needs = "x" * needs_x + "w" * needs_weight
    layout = " channels_last" if last else ""
    return f"{op} {shape} by {list(weight)} {list(geometry)}{layout}, gradients {needs or 'none'}"


def power_of_two(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def own(file: str) -> Path:
    """Where this user's table is: under $ASWL_CACHE (~/.cache/aswl). Raises ``RuntimeError`` where there is no home."""
    return Path(os.environ.get("ASWL_CACHE") or Path.home() / ".cache" / "aswl") / file


def read(path: Callable[[], Path], entry: Callable[[object], Entry]) -> dict[str, Entry]:
    """The table at ``path()``, each value as ``entry`` reads it; empty where it is absent, damaged or another's."""
    try:
        table = json.loads(path().read_text(encoding="utf-8"))
        return {str(key): entry(value) for key, value in table.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError):
        return {}


def store(path: Path, table: dict[str, object]) -> None:
    """Replace the file as a whole. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as file:
        json.dump(table, file, indent=1)
    os.replace(file.name, path)
