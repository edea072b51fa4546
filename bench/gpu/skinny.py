"""Products of a few rows with a gap-coded weight, against cuBLAS: the bytes of the weight are all that counts."""

from functools import partial

import torch
from torch.nn import functional as F

from aswl_kernels import gap_linear, pack_gaps
from bench.gpu.run import Run, check, needs, poisoned, ratio

SHAPE = 28672, 8192
BATCHES = (1, 2, 4, 8, 16)
SPARSITIES = (50, 70, 90)  # %


def measure(run: Run) -> None:
    for percent in SPARSITIES:
        with run.case(f"{percent}% zeros", f"skinny {percent}"):
            products(run, percent)


@torch.no_grad()
def products(run: Run, percent: int) -> None:
    needs("gap_linear")
    dense = run.randn(*run.pick(SHAPE, (70, 96)), dtype=torch.bfloat16)
    dense.masked_fill_(torch.rand(dense.shape, device=run.device) < percent / 100, 0)
    packed = pack_gaps(dense)
    size = sum(t.nbytes for t in (packed.values, *packed.indices))
    for batch in run.pick(BATCHES, (2,)):
        x, name, goal = (
            run.randn(batch, dense.shape[1], dtype=torch.bfloat16),
            f"{percent}%, batch {batch}",
            f"skinny {percent}",
        )
        with run.case(name, goal):
            with poisoned():
                got = gap_linear(x, packed)
            exact = F.linear(x.double(), dense.double())
            check(name, got, F.linear(x, dense), exact, run.pick(1e-5, 1e-2))
            del exact
            variants = {"ours": partial(gap_linear, x, packed), "cuBLAS": partial(F.linear, x, dense)}
            times = run.times(variants, seconds=0.5)
            goals = {goal: ratio(times, "cuBLAS", "ours")}
            run.row(name, times, "ours", "cuBLAS", bytes={"ours": size, "cuBLAS": dense.nbytes}, goals=goals)
    run.note(f"{percent}% zeros", f"{size / dense.numel() * 8:.2f} bits per weight")
