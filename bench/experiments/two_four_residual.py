"""An unstructured weight as a 2:4 part, for the sparse tensor cores, and the rest, for a product of few nonzeros.

Of each four weights of a row the two largest make the 2:4 part, which costs 9 bits per bf16 element to read and half of
the operations; what is left of a random mask of density d has density d^3 - d^4 / 2: 9.4% at 50% zeros, 2.3% at 70%, 0.1%
at 90%. The rest takes ``gap_linear`` where x has few rows, else PyTorch's CSR product.

Expected from bytes and instructions, at 28672x8192: one row 1.4x at 50% (the rest adds 2 bits to the 9), 1.7x from 70% on,
always behind ``gap_linear`` of the whole weight; 8 and 16 rows, where that is bound by instructions, 1.15x and 0.95x at 50%,
1.5x and 1.4x at 70%, if cuSPARSELt reads at full bandwidth. With thousands of rows the rest alone (each nonzero reads a
row of x from the cache) costs more than cuBLAS until its density is about 0.2%, so nothing survives below 87% zeros.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from aswl_kernels import gap_linear, pack_gaps
from bench.experiments import main, verdict
from bench.gpu.run import Run, check

CASES = (((28672, 8192), (1, 8, 16)), ((4096, 4096), (8192,)))  # [out, in], rows of x
SPARSITIES = (0.5, 0.7, 0.9)
FEW = 16  # rows that gap_linear takes itself
CHECKED = 64  # rows that are computed in fp64, too


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(2:4 part, rest) of a weight [out, in], in a multiple of 4: no element is in both, so that their sum is exact."""
    fours = weight.unflatten(1, (-1, 4))
    largest = fours.abs().float().nan_to_num(nan=torch.inf).topk(2).indices
    taken = torch.zeros_like(fours, dtype=torch.bool).scatter(-1, largest, True)
    return fours.where(taken, 0).flatten(1), fours.where(~taken, 0).flatten(1)


def density_of_rest(density: float) -> float:
    """Of a random mask: of four, one too many with probability 4 d^3 (1 - d), two with d^4."""
    return (4 * density**3 * (1 - density) + 2 * density**4) / 4


@torch.no_grad()
def measure(run: Run) -> None:
    for shape, batches in CASES if not run.smoke else (((32, 64), (1, 8)), ((32, 64), (24,))):
        for sparsity in SPARSITIES:
            weight = run.randn(*shape, dtype=run.pick(torch.bfloat16, torch.float32))
            weight = weight.where(weight.abs() >= weight.abs().float().flatten()[: 1 << 20].quantile(sparsity), 0)
            for rows in batches:
                name = f"2:4 + rest, {shape[0]}x{shape[1]}, {rows} rows, {sparsity:.0%} zeros"
                with run.case(name):
                    compare(run, name, weight, rows)


def compare(run: Run, name: str, weight: Tensor, rows: int) -> None:
    x = run.randn(rows, weight.shape[1], dtype=weight.dtype)
    part, rest = split(weight)
    half = part if run.smoke else torch.sparse.to_sparse_semi_structured(part)
    if rows <= FEW:
        packed, whole = pack_gaps(rest), pack_gaps(weight)
        variants = {
            "2:4 + rest": lambda: F.linear(x, half) + gap_linear(x, packed),
            "gaps": lambda: gap_linear(x, whole),
        }
    else:
        csr = rest.to_sparse_csr()
        variants = {"2:4 + rest": lambda: F.linear(x, half) + (csr @ x.mT).mT}
    variants |= {"2:4 alone": lambda: F.linear(x, half), "cuBLAS": lambda: F.linear(x, weight)}
    exact = F.linear(x[:CHECKED].double(), weight.double())
    for ours in ("2:4 + rest", "gaps"):
        if ours in variants:  # three roundings to bf16, not one
            check(name, variants[ours]()[:CHECKED], variants["cuBLAS"]()[:CHECKED], exact, slack=1e-3)
    times = run.times(variants, seconds=0.5)
    run.row(
        name,
        times,
        "2:4 + rest",
        "cuBLAS",
        density_of_rest=rest.count_nonzero().item() / rest.numel(),
        **verdict(times, "2:4 + rest"),
    )


if __name__ == "__main__":
    main("bench.experiments.two_four_residual", measure)
