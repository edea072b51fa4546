"""Below which density the sparse products of a masked operator are faster than the dense ones: measured, remembered."""

import contextlib
import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from aswl_kernels import _remembered, native
from aswl_kernels.backends import cpu_name

CEILING = 0.5  # no density above is tried
SMALLEST = 1 << 24  # multiplications of a dense product that is worth the question
GAIN = 0.95  # of the dense product's time: what the sparse one must come below
PROBES = (0.02, 0.2)  # densities that are timed; a line through both finds the one where the products meet
ROUNDS, PATIENCE = 5, 0.5  # how often each variant is timed, and seconds after which one round is enough


def eligible(x: Tensor, weight: Tensor) -> bool:
    """Whether the C++ kernels can serve here at all: eager fp32 on a CPU, and nobody who transforms, traces or counts."""
    return (
        native.AVAILABLE
        and type(x) in (Tensor, torch.nn.Parameter)
        and type(weight) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and not weight.is_inference()  # without versions to tell thresholds apart
    )


def break_even(op: Callable[..., Tensor], x: Tensor, weight: Tensor, *geometry: object) -> float:
    """The density below which ``op(x, weight, ..., products="sparse")`` takes less time than with "dense", all in all.

    ``op``: ``masked_linear`` or ``masked_conv2d``; ``x``, ``weight``: eligible; ``geometry``: the operator's arguments
    after the bias. 0 where the sparse products never win, at most 0.5. Measured once for each operator, shape (batches,
    heights and widths up to the next power of two are one), layout, set of gradients and number of threads: packing, forward and
    backward as a training step does them, in a fraction of a second. Remembered in this process, and from one process
    to the next in ``break_even.json`` under $ASWL_CACHE (~/.cache/aswl): a file that cannot be read or written costs a
    measurement, nothing else.
    """
    operator, shape, *rest = _remembered.facts(op.__name__, x, weight, geometry)
    if operator == "masked_conv2d":
        shape = (*shape[:-2], *map(_remembered.power_of_two, shape[-2:]))
    table, key = known(), f"{_machine()}: {_remembered.name(operator, shape, *rest)}"
    if key not in table:
        table[key] = _measure(op, x, weight, geometry, tuple(rest[-2:]))
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: no home
            _remembered.store(_remembered.own("break_even.json"), _read() | {key: table[key]})
    return table[key]


@functools.cache
def known() -> dict[str, float]:
    """All break-even densities of this process, by a key that names processor, versions, threads and shapes."""
    return _read()


def _machine() -> str:
    return f"{cpu_name()}, {native.DETAIL}, torch {torch.__version__}, threads {torch.get_num_threads()}"


def _measure(
    op: Callable[..., Tensor], x: Tensor, weight: Tensor, geometry: tuple, gradients: tuple[bool, bool]
) -> float:
    generator = torch.Generator().manual_seed(0)  # training's own goes on undisturbed
    probe = torch.rand(weight.shape, generator=generator, dtype=weight.dtype)
    leaves = [t.detach().requires_grad_(needed) for t, needed in zip((x, probe), gradients)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]

    def seconds(density: float, products: str) -> float:
        threshold = torch.tensor(1 - density)
        begin = time.perf_counter()
        # saved tensors are ours alone: under a checkpoint they would be had by running the caller's forward again
        with torch.set_grad_enabled(bool(wanted)), torch.autograd.graph.saved_tensors_hooks(_same, _same):
            y = op(*leaves, threshold, None, None, *geometry, products=products)
            if wanted:
                torch.autograd.grad(y, wanted, y.detach())
        return time.perf_counter() - begin

    variants = [(PROBES[0], "dense"), *((density, "sparse") for density in PROBES)]
    best = [min(seconds(*variant) for _ in range(2)) for variant in variants]
    for _ in range(ROUNDS if sum(best) < PATIENCE else 1):
        best = [min(least, seconds(*variant)) for least, variant in zip(best, variants)]
    dense, low, high = best[0] * GAIN, *best[1:]
    slope = (high - low) / (PROBES[1] - PROBES[0])
    if slope <= 0:
        return CEILING if high < dense else 0.0
    return round(min(max(PROBES[0] + (dense - low) / slope, 0.0), CEILING), 3)


def _same(saved: Tensor) -> Tensor:
    return saved


def _read() -> dict[str, float]:
    return _remembered.read(lambda: _remembered.own("break_even.json"), float)
