"""Ideas on trial: each is measured on a GPU, and dropped where it does not beat cuBLAS by enough to be worth its code.

A module has ``measure(run)``, which ``bash bench/gpu.sh`` calls, and runs alone: python -m bench.experiments.NAME [--save]
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aswl_kernels.timing import Times
from bench import rows
from bench.gpu.goals import read
from bench.gpu.run import Run, ratio

KILL = 1.08  # times faster than cuBLAS: an idea that reaches less is written up and dropped


def verdict(times: Times, ours: str) -> dict[str, str]:
    """What the rule says of a case."""
    return {"verdict": "kept" if ratio(times, "cuBLAS", ours) >= KILL else f"dropped: below {KILL}x cuBLAS"}


def main(module: str, measure: Callable[[Run], None]) -> None:
    """Measure alone, and print a line for each case."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=sys.modules["__main__"].__doc__)
    parser.add_argument("--save", action="store_true", help="append rows to bench/results/experiments.jsonl")
    save = parser.parse_args().save
    if not torch.cuda.is_available():
        parser.error("want a CUDA GPU; got none")
    with tempfile.TemporaryDirectory() as folder:
        measure(Run(module.rpartition(".")[2], Path(folder), smoke=False))
        found = read(Path(folder) / "rows.jsonl")
    print("\n".join(map(line, found)))
    if save:
        print(rows.append("experiments", found))


def line(row: dict[str, Any]) -> str:
    if "ms" not in row:
        return f"{row['case']}: {row.get('failed') or row.get('missing')}"
    times = ", ".join(f"{name} {ms:.4g} ms" for name, ms in row["ms"].items())
    return f"{row['case']}: {row['ratio']:.3g}x cuBLAS, {row['verdict']} ({times})"
