"""What the suites of the operators share: the check before the timing, and one pytest-benchmark test per variant.

A module ``bench_<op>.py`` has ``SETTINGS``, a list of keyword arguments; ``VARIANTS``, the names; and ``variants``, which
gives, for one setting, functions by name whose values it has checked. ``python -m bench.cpu`` makes a table of them.
"""

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
Variants = dict[str, Callable]


def sparse(shape: tuple[int, ...], sparsity: float) -> Tensor:
    """A normal weight with that share of zeros."""
    return torch.randn(shape).where(torch.rand(shape) >= sparsity, 0)


def exact(got: Tensor, want: Tensor) -> None:
    """Refuse to time what does not give the same bits."""
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def near(got: Tensor, want: Tensor) -> None:
    """Refuse to time what is off by more than a thousandth of the largest exact value."""
    error, scale = (got - want).abs().max().item(), want.abs().max().item()
    assert error <= 1e-3 * scale, f"never time a wrong answer: error {error}, largest value {scale}"


def outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def check(variants: Variants, reference: Tensor | tuple[Tensor, ...]) -> Variants:
    """``variants``, after a look at each: ours has at most twice the error of PyTorch's dense product, peers 1e-3."""

    def errors(f: Callable) -> list[float]:
        return [(got - want).abs().max().item() for got, want in zip(outputs(f()), outputs(reference))]

    scales = [want.abs().max().item() for want in outputs(reference)]
    dense = [max(several) for several in zip(*(errors(f) for name, f in variants.items() if name.startswith("dense")))]
    for name, f in variants.items():
        ours = name.startswith("ours")
        bounds = [2 * error + 1e-6 * s if ours else 1e-3 * s for error, s in zip(dense, scales)]
        wrong = [(e, b) for e, b in zip(errors(f), bounds) if not e <= b]
        assert not wrong, f"never time a wrong answer: {name} has (error, bound) {wrong}"
    return variants


def gradients(f: Callable, x: Tensor, weight: Tensor, grad: Tensor) -> Callable:
    """The forward and the backward of ``f(x)``: both gradients, in one call."""
    return lambda: torch.autograd.grad(f(x), (x, weight), grad)


def suite(settings: list[dict], names: tuple[str, ...], variants: Callable[..., Variants]) -> Callable:
    """A pytest-benchmark test per setting and variant; those that do not exist here (a peer not installed) skip."""
    made = lru_cache(maxsize=1)(lambda i: variants(**settings[i]))
    table = [(i, name) for i in range(len(settings)) for name in names]
    ids = [f"{name}-{' '.join(map(str, settings[i].values()))}" for i, name in table]

    @pytest.mark.parametrize("setting, name", table, ids=ids)
    def test(benchmark, setting, name):
        benchmark.group = str(settings[setting])
        f = made(setting).get(name) or pytest.skip(f"no {name} here")
        benchmark(f)

    return test
