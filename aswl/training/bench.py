"""What the sparse layers of a network take with each kind of products, on this machine, and which is the fastest."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import aswl
from aswl.nn import SparseLayer
from aswl.training import models
from aswl.training.distributed import join
from aswl_kernels import tuned

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "amp": torch.float32}  # of the weights
COLUMNS = ("dense", "fused", "sparse")


@dataclass
class Product:
    """One product that layers of the network do: the operator, its operands as they come, and the layers' names."""

    op: Callable[..., Tensor]
    layer: SparseLayer
    x: Tensor
    geometry: tuple
    names: list[str] = field(default_factory=list)
    ms: dict[str, float] = field(default_factory=dict)

    @property
    def fastest(self) -> str:
        return min(self.ms, key=self.ms.get)


def bench(
    model: str,
    *,
    batch: int = 128,
    density: float = 0.1,
    dtype: str = "fp32",
    device: str = "auto",
    channels_last: bool = False,
    size: int | None = None,
    tune: bool = False,
) -> Iterator[Product]:
    """Every different product of the network's sparse layers, one by one as it is measured: median milliseconds of forward
    and backward as in training.

    ``model``: a name that :func:`aswl.training.models.build` knows; ``size``: of its images, in pixels, by default as
    published; ``dtype``: "fp32", "bf16" (weights too) or "amp" (bf16 over fp32 weights). ``tune`` remembers what was the
    fastest, so that layers with ``products="auto"`` take it: on a GPU in ``tuned.json``, on a CPU, where it depends on
    the density, in ``break_even.json``. Raises ``ValueError`` for a name, size, density or device that cannot be.
    """
    if batch < 1:
        raise ValueError(f"batch: want 1 or more; got {batch}")
    with join(device) as world:
        products = list(_products(model, batch, density, dtype, world.device, channels_last, size).values())
    for product in products:
        layer, args = product.layer, (product.op, product.x, product.layer.weight, *product.geometry)
        if tune and tuned.decides(product.x):
            product.ms = tuned.tune(*args).ms
        else:
            times = tuned.compare(*args, threshold=layer.threshold)
            product.ms = {name: statistics.median(series) for name, series in times.items()}
            if tune:
                layer(product.x)  # which measures where it is worth the question
        yield product


def table(products: list[Product]) -> str:
    """One line for each product: its layers, shapes, milliseconds by kind, and the fastest."""
    rows = [("layers", "input", "weight", *(f"{name}, ms" for name in COLUMNS), "fastest")]
    for product in products:
        more = f" + {len(product.names) - 1}" if len(product.names) > 1 else ""
        shapes = ("x".join(map(str, t.shape)) for t in (product.x, product.layer.weight))
        ms = (f"{product.ms[name]:.4f}" if name in product.ms else "-" for name in COLUMNS)
        limit = product.layer.break_even
        known = "" if limit is None else f", sparse below {limit:.3f}"
        rows.append((product.names[0] + more, *shapes, *ms, product.fastest + known))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _products(
    name: str, batch: int, density: float, dtype: str, device: torch.device, channels_last: bool, size: int | None
) -> dict[tuple, Product]:
    """The different products of one forward, by what their time depends on."""
    shape, classes = models.published_for(name)
    shape = shape if size is None else (shape[0], size, size)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = models.build(name, shape, classes).to(device, DTYPES[dtype], memory_format=layout)
    aswl.ASWL(network, density=density, schedule="constant")
    found: dict[tuple, Product] = {}
    x = torch.randn(batch, *shape, device=device, dtype=DTYPES[dtype]).contiguous(memory_format=layout)
    with _watched(network, found), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "amp"):
        network(x)
    return found


@contextmanager
def _watched(network: nn.Module, found: dict[tuple, Product]) -> Iterator[None]:
    """Every sparse layer tells which product it is about to do; all are done densely."""
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, SparseLayer)]

    def watch(name: str, layer: SparseLayer) -> Callable[..., str]:
        def choose(op: Callable[..., Tensor], x: Tensor, *geometry: object) -> str:
            key = tuned.facts(op.__name__, x, layer.weight, geometry)
            if key not in found:
                seen = x.detach().to(key[2]).requires_grad_(x.requires_grad)
                found[key] = Product(op, layer, seen, geometry)
            found[key].names.append(name)
            return "dense"

        return choose

    for name, layer in layers:
        layer._choose = watch(name, layer)
    try:
        yield
    finally:
        for _, layer in layers:
            del layer._choose
