"""``magnitude_threshold`` against one read of the weights, ``kthvalue`` and sorting, and on all layers of ResNet-50."""

from functools import partial

import torch
from torch import Tensor, nn

from aswl.training import models
from aswl_kernels import magnitude_threshold
from bench.gpu.run import Run, needs, poisoned, ratio

DENSITIES = (0.02, 0.1, 0.5)
FP32, BF16 = torch.float32, torch.bfloat16


def measure(run: Run) -> None:
    n = run.pick(100_000_000, 5_000)
    for dtype in (FP32, BF16):
        for density in DENSITIES:
            name = f"1e8 {str(dtype).removeprefix('torch.')}, density {density}"
            with run.case(name, *["threshold"] * (dtype == FP32)):
                one(run, name, n, dtype, density)
    with run.case("1e8 float32, kthvalue and sort", "threshold kthvalue"):
        others(run, n)
    for dtype in (FP32, BF16):
        name = f"1e8 {str(dtype).removeprefix('torch.')}, with a guess"
        with run.case(name):
            guessed(run, name, n, dtype)
    with run.case("ResNet-50, all layers", "threshold resnet50"):
        layers(run)


def exact(weights: list[Tensor], keep: Tensor) -> Tensor:
    """Ours, after a look at the values: those of ``kthvalue``, bit by bit."""
    with poisoned():
        got = magnitude_threshold(weights, keep)
    ranks = [w.numel() - k + 1 for w, k in zip(weights, keep.tolist())]
    want = torch.stack([w.abs().float().flatten().kthvalue(rank).values for w, rank in zip(weights, ranks)])
    assert torch.equal(got, want), "never time a wrong answer"
    return got


def one(run: Run, name: str, n: int, dtype: torch.dtype, density: float) -> None:
    """One large weight, against its largest magnitude: one read and hardly anything else."""
    needs("magnitude_threshold")
    weight, keep = run.randn(n, dtype=dtype), torch.tensor([int(density * n)], device=run.device)
    exact([weight], keep)
    variants = {
        "ours": lambda: magnitude_threshold([weight], keep),
        "one read": lambda: torch.linalg.vector_norm(weight, torch.inf),
    }
    times = run.times(variants, seconds=1.0)
    ms = sorted(times["ours"])[len(times["ours"]) // 2]
    goals = {"threshold": 1e3 * ms} if dtype == FP32 else {}
    run.row(name, times, "ours", "one read", bytes=dict.fromkeys(times, weight.nbytes), goals=goals)


def guessed(run: Run, name: str, n: int, dtype: torch.dtype) -> None:
    """With last step's threshold, which is off by a thousandth, and with one that is far off."""
    needs("magnitude_threshold_near")
    weight, keep = run.randn(n, dtype=dtype), torch.tensor([n // 10], device=run.device)
    want = exact([weight], keep)
    guesses = {"good guess": want * 1.001, "bad guess": want * 2}
    variants = {kind: partial(magnitude_threshold, [weight], keep, guess) for kind, guess in guesses.items()}
    for kind, f in variants.items():
        assert torch.equal(f(), want), f"never time a wrong answer: {kind}"
    variants |= {"no guess": partial(magnitude_threshold, [weight], keep)}
    variants |= {"one read": partial(torch.linalg.vector_norm, weight, torch.inf)}
    run.row(name, run.times(variants), "good guess", "one read", bytes=dict.fromkeys(variants, weight.nbytes))


def others(run: Run, n: int) -> None:
    needs("magnitude_threshold")
    weight, count = run.randn(n), n // 10
    keep = torch.tensor([count], device=run.device)
    variants = {
        "ours": lambda: magnitude_threshold([weight], keep),
        "kthvalue": lambda: weight.abs().kthvalue(n - count + 1),
        "sort": lambda: weight.abs().sort(),
    }
    times = run.times(variants, seconds=2.0, rounds=10)
    name, goals = "1e8 float32, kthvalue and sort", {"threshold kthvalue": ratio(times, "kthvalue", "ours")}
    run.row(name, times, "ours", "kthvalue", goals=goals)


def layers(run: Run) -> None:
    """54 layers in one call, the device never waiting for the host nor the host for it."""
    needs("magnitude_threshold")
    network = models.build("resnet50", (3, 224, 224), 1000).to(run.device)
    weights = [m.weight.detach() for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = run.pick(weights, [w.flatten()[:300] for w in weights[:3]])
    counts = [max(1, w.numel() // 10) for w in weights]
    keep = torch.tensor(counts, device=run.device)
    exact(weights, keep)
    if run.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            magnitude_threshold(weights, keep)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    variants = {
        "ours": lambda: magnitude_threshold(weights, keep),
        "sort": lambda: [w.abs().flatten().sort(descending=True).values[k - 1] for w, k in zip(weights, counts)],
        "one read": lambda: [torch.linalg.vector_norm(w, torch.inf) for w in weights],
    }
    times = run.times(variants, seconds=1.5)
    goals, size = {"threshold resnet50": ratio(times, "sort", "ours")}, sum(w.nbytes for w in weights)
    run.row("ResNet-50, all layers", times, "ours", "sort", bytes=size, goals=goals)
