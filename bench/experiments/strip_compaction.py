"""Strips of rows whose empty columns are left out: dense products of what remains with gathered columns of x.

Of a random mask of density d, a strip of h rows keeps 1 - (1 - d)^h of its columns: at 98% zeros 28% with 16 rows, but 73%
with 64 and 92% with 128, which is what a tensor core's tile has.

Expected with thousands of rows of x: a gathered element of x meets h weights, and to be bound by the tensor cores and not
by the second-level cache (some 5.5 TB/s) it has to meet about 144 (790 TFLOP/s, two bytes). So strips of 16 are bound by
the gather, at a third of cuBLAS; strips of 128 have too few empty columns until about 99.4% zeros. The rule is expected to
strike everywhere; that it would not takes masks whose columns are empty together.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.experiments import main, verdict
from bench.gpu.run import Run, check

OUTPUTS, INPUTS, ROWS = 4096, 4096, 8192
HEIGHTS = (16, 128)
SPARSITIES = (0.98, 0.99, 0.995)
CHECKED = 64  # rows that are computed in fp64, too


def compact(weight: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Columns [strips, widest] and their weights [strips, height, widest]; strips with fewer have empty ones besides."""
    outputs, inputs = weight.shape
    strips = F.pad(weight, (0, 0, 0, -outputs % height)).view(-(-outputs // height), height, inputs)
    filled = (strips != 0).any(1)
    widest = int(filled.sum(1).max()) if filled.numel() else 0
    columns = filled.int().argsort(descending=True, stable=True)[:, :widest]
    return columns, strips.gather(2, columns[:, None].expand(-1, height, -1))


def restore(columns: Tensor, weights: Tensor, shape: tuple[int, int]) -> Tensor:
    """The weight again."""
    strips, height, _ = weights.shape
    whole = weights.new_zeros(strips, height, shape[1])
    return whole.scatter(2, columns[:, None].expand_as(weights), weights).flatten(0, 1)[: shape[0]]


def product(x: Tensor, columns: Tensor, weights: Tensor, outputs: int) -> Tensor:
    """x @ weight.T, strip by strip."""
    gathered = x.mT.contiguous()[columns]  # [strips, widest, rows]
    return (weights @ gathered).flatten(0, 1)[:outputs].mT


def remaining(density: float, height: int) -> float:
    """The share of columns that a strip keeps of a random mask."""
    return 1 - (1 - density) ** height


@torch.no_grad()
def measure(run: Run) -> None:
    outputs, inputs, rows = run.pick((OUTPUTS, INPUTS, ROWS), (40, 64, 8))
    for sparsity in SPARSITIES:
        weight = run.randn(outputs, inputs, dtype=run.pick(torch.bfloat16, torch.float32))
        weight = weight.where(torch.rand(outputs, inputs, device=run.device) >= sparsity, 0)
        for height in HEIGHTS:
            name = f"strips of {height}, {outputs}x{inputs}, {rows} rows, {sparsity:.1%} zeros"
            with run.case(name):
                compare(run, name, weight, height, rows)


def compare(run: Run, name: str, weight: Tensor, height: int, rows: int) -> None:
    x = run.randn(rows, weight.shape[1], dtype=weight.dtype)
    columns, weights = compact(weight, height)
    gathered = x.mT.contiguous()[columns]
    variants = {
        "strips": lambda: product(x, columns, weights, len(weight)),
        "strips, gathered before": lambda: weights @ gathered,
        "cuBLAS": lambda: F.linear(x, weight),
    }
    exact = F.linear(x[:CHECKED].double(), weight.double())
    check(name, variants["strips"]()[:CHECKED], variants["cuBLAS"]()[:CHECKED], exact, slack=1e-3)
    times = run.times(variants, seconds=0.5)
    kept = columns.shape[1] / weight.shape[1]
    run.row(name, times, "strips", "cuBLAS", columns_kept=kept, **verdict(times, "strips"))


if __name__ == "__main__":
    main("bench.experiments.strip_compaction", measure)
