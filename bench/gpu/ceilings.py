"""The two ceilings of this GPU: bytes per second of a large copy, operations per second of a large bf16 product."""

import torch

from bench.gpu.run import Run


def measure(run: Run) -> None:
    with run.case("copy"):
        copy(run)
    with run.case("matmul"):
        n = run.pick(8192, 32)
        a, b = (run.randn(n, n, dtype=torch.bfloat16) for _ in range(2))
        keep(run, "matmul", run.times({"matmul": lambda: a @ b}, seconds=1.5), 2 * n**3)


def copy(run: Run) -> None:
    source = run.randn(run.pick(1 << 30, 64))
    target = torch.empty_like(source)
    times = run.times({"copy": lambda: target.copy_(source)}, seconds=1)
    assert torch.equal(target, source)
    keep(run, "copy", times, 2 * source.nbytes)


def keep(run: Run, name: str, times: dict, amount: float) -> None:
    """The amount, bytes or operations, per second of the median."""
    ms = sorted(times[name])[len(times[name]) // 2]
    run.row(name, times, name, name, per_second=amount / ms * 1e3)
