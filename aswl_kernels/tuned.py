"""Which products of a masked operator were measured to be the fastest on a GPU, shape by shape.

``tuned.json`` is one object. A key names a product, as in "NVIDIA H200: masked_conv2d [256, 64, 56, 56] by [64, 64, 3, 3]
[(1, 1), (1, 1), (1, 1), 1] channels_last, gradients xw, bfloat16 by float32": device, operator, x and weight, geometry,
layout, who needs a gradient, dtypes. A value is {"products": "fused", "ms": {"dense": 0.2, "fused": 0.1}, "versions": "torch
2.11.0, triton 3.6.0"}: the fastest, the medians of all, and what they were measured with.
"""

import contextlib
import functools
import math
import statistics
import sys
import warnings
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple

import torch
from torch import Tensor

from aswl_kernels import _remembered
from aswl_kernels._checks import compute_dtype
from aswl_kernels.break_even import eligible
from aswl_kernels.timing import interleaved

PRODUCTS = ("dense", "fused")  # what a GPU can choose from; dense is taken where nothing is known
ROUNDS, SECONDS = 50, 0.4  # of the variants in turns
AGREE = {torch.float32: 2e-3}  # relative difference of two right answers (fp32: tf32 is one); others 1e-2
FILE = "tuned.json"


class Measured(NamedTuple):
    """The products that were the fastest; the milliseconds of all that were measured; the versions it was done with."""

    products: str
    ms: dict[str, float]
    versions: str


def decides(x: Tensor) -> bool:
    """Whether products of x are looked up here; on a CPU they depend on the density (:mod:`aswl_kernels.break_even`)."""
    return x.device.type != "cpu"


def products(op: str, x: Tensor, weight: Tensor, *geometry: object) -> str:
    """The ``products`` with which ``op(x, weight, ..., *geometry)`` was measured to be the fastest on this device.

    ``op``: "masked_linear" or "masked_conv2d"; ``geometry``: the operator's arguments after the bias. Known are what this
    package ships in ``tuned.json`` and, above that, what :func:`tune` has stored: keys name the device, the dtypes, the
    shapes (batches up to the next power of two are one), geometry, layout and set of gradients. "dense" for all else,
    and where a compiler keeps a size open. A lookup: measures nothing, launches nothing and waits for nothing.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import has_static_value

        if not all(has_static_value(size) for size in x.shape):
            return "dense"
    return _chosen(*facts(op, x, weight, geometry))


def facts(op: str, x: Tensor, weight: Tensor, geometry: tuple) -> tuple:
    """What a key of the table names: device, dtype of the product and of the weight, and :func:`_remembered.facts`."""
    return x.device.type, x.device.index, compute_dtype(x), weight.dtype, *_remembered.facts(op, x, weight, geometry)


@torch.compiler.assume_constant_result
def _chosen(*key: object) -> str:
    return _look_up(key)


@functools.cache
def _look_up(key: tuple) -> str:
    entry = known().get(_text(*key))
    return entry.products if entry else "dense"


@functools.cache
def known() -> dict[str, Measured]:
    """The table of this process: what the package ships, and over it this user's own."""
    return _remembered.read(lambda: files("aswl_kernels") / FILE, _entry) | _own()


def tune(op: Callable[..., Tensor], x: Tensor, weight: Tensor, *geometry: object) -> Measured:
    """Measure ``op(x, weight, ..., *geometry)`` with each of the :data:`PRODUCTS` and remember which was the fastest.

    Forward, and backward as far as ``x`` and ``weight`` require gradients, on their device; in this process, and in
    ``tuned.json`` under $ASWL_CACHE (~/.cache/aswl) where it can be written.
    """
    times = {name: series for name, series in compare(op, x, weight, *geometry).items() if name in PRODUCTS}
    ms = {name: round(statistics.median(series), 5) for name, series in times.items()}
    triton = getattr(sys.modules.get("triton"), "__version__", "not loaded")
    entry = Measured(min(ms, key=ms.get), ms, f"torch {torch.__version__}, triton {triton}")
    key = _text(*facts(op.__name__, x, weight, geometry))
    known()[key] = entry
    _look_up.cache_clear()
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home
        table = {name: each._asdict() for name, each in (_own() | {key: entry}).items()}
        _remembered.store(_remembered.own(FILE), table)
    return entry


def compare(
    op: Callable[..., Tensor], x: Tensor, weight: Tensor, *geometry: object, threshold: Tensor | None = None
) -> dict[str, list[float]]:
    """Milliseconds of ``op``, as in :func:`tune`, with each kind of products that x's device has, in turns.

    ``threshold``: by default the mean magnitude. Products that the operator refuses here are left out, and so are, with
    a warning, those that fail and those whose results differ from the dense ones.
    """
    x, weight = (t.detach().requires_grad_(t.requires_grad and torch.is_grad_enabled()) for t in (x, weight))
    threshold = weight.detach().abs().float().mean() if threshold is None else threshold
    leaves = [t for t in (x, weight) if t.requires_grad]

    def run(products: str, grad: Tensor | None = None) -> tuple[Tensor, ...]:
        y = op(x, weight, threshold, None, None, *geometry, products=products)
        return (y.detach(), *torch.autograd.grad(y, leaves, y.detach() if grad is None else grad)) if leaves else (y,)

    want = run("dense")
    variants = {"dense": functools.partial(run, "dense", torch.randn_like(want[0]))}
    for name in _others(x, weight):
        try:
            worst = max(_difference(got, same) for got, same in zip(run(name), want))
            problem = None if worst <= AGREE.get(want[0].dtype, 1e-2) else f"are off by {worst:.2g}"
        except ValueError:  # the operator says so: no such products for these arguments
            continue
        except Exception as error:  # noqa: BLE001 a kernel that this device cannot run is no choice, and is told
            problem = f"fail: {type(error).__name__}: {error}"
        if problem:
            shapes = f"{list(x.shape)} by {list(weight.shape)}"
            warnings.warn(f"{op.__name__} {shapes}: {name} products {problem}", stacklevel=2)
        else:
            variants[name] = functools.partial(run, name, variants["dense"].args[1])
    del want
    return interleaved(variants, ROUNDS, x.device, SECONDS)


def _others(x: Tensor, weight: Tensor) -> tuple[str, ...]:
    """The kinds of products beside the dense ones that exist on this device."""
    if x.is_cuda:
        return PRODUCTS[1:]
    return ("sparse",) if eligible(x, weight) else ()


def _difference(got: Tensor, want: Tensor) -> float:
    """The norm of the difference, relative; infinite where it is not a number."""
    norm, scale = (t.double().norm().item() for t in (got.double() - want.double(), want))
    return norm / max(scale, 1e-30) if math.isfinite(norm) else float("inf")


def _text(kind: str, index: int | None, x_dtype: torch.dtype, weight_dtype: torch.dtype, *facts: object) -> str:
    device = torch.cuda.get_device_name(index) if kind == "cuda" else kind
    dtypes = f"{x_dtype} by {weight_dtype}".replace("torch.", "")
    return f"{device}: {_remembered.name(*facts)}, {dtypes}"


def _entry(value: dict) -> Measured:
    entry = Measured(str(value["products"]), {str(k): float(v) for k, v in value["ms"].items()}, str(value["versions"]))
    if entry.products not in PRODUCTS:
        raise ValueError(f"products: want one of {PRODUCTS}; got {entry.products!r}")
    return entry


def _own() -> dict[str, Measured]:
    return _remembered.read(lambda: _remembered.own(FILE), _entry)
