"""The C++ operators against PyTorch's and the peers' on the CPU: one table, values checked first, variants in turns.

python -m bench.cpu [--only sparse_linear] [--threads 2] [--rounds 9] [--save]
"""

import argparse
import os
import statistics
import warnings

import torch

from aswl_kernels import backends
from aswl_kernels.timing import interleaved
from bench import bench_gate, bench_magnitude_threshold, bench_pack, bench_sparse_conv2d, bench_sparse_linear, rows
from bench.peers import SPARSEPROP

SUITES = {
    "magnitude_threshold": bench_magnitude_threshold,
    "gate": bench_gate,
    "pack": bench_pack,
    "sparse_linear": bench_sparse_linear,
    "sparse_conv2d": bench_sparse_conv2d,
}


def row_of(op: str, setting: dict, times: dict[str, list[float]]) -> dict:
    """Medians in ms, the least (which a busy machine leaves readable), and the median of how many times ours is faster."""
    ms, best = ({n: round(f(series), 4) for n, series in times.items()} for f in (statistics.median, min))
    turns = {n: [t / ours for t, ours in zip(series, times["ours"])] for n, series in times.items() if n != "ours"}
    ratio = {name: round(statistics.median(series), 2) for name, series in turns.items()}
    return {"op": op, **setting, "ms": ms, "best_ms": best, "ratio": ratio}


def line(row: dict) -> str:
    """One line of the table: each implementation in its best layout, and how many times faster ours is."""
    best = {}
    for name, ratio in row["ratio"].items():
        kind = name.partition(",")[0]
        best[kind] = min(best.get(kind, ratio), ratio) if kind != "ours" else ratio
    setting = " ".join(
        f"{k}={v}" for k, v in row.items() if k not in ("op", "ms", "best_ms", "ratio") and v is not False
    )
    peers = "  ".join(f"{kind} {ratio:.2f}x" for kind, ratio in best.items() if kind != "ours")
    other = [f"{name} {row['ms'][name]:.3f}" for name in row["ratio"] if name.startswith("ours")]
    ours = " / ".join([f"ours {row['ms']['ours']:.3f} ms", *other])
    return f"{row['op']:20}{setting:66} {ours}  {peers}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SUITES, action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="append rows to bench/results/cpu.jsonl")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # SparseProp's, which brings an OpenMP of its own
    native = backends()["native"]
    print(
        f"C++ library: {native.detail}; {args.threads} threads; in turns with ours, median of {args.rounds}: x = ours faster"
    )
    print("SparseProp: " + ("installed" if SPARSEPROP else "not installed, left out (pip install 'aswl[bench]')"))
    for op in args.only or SUITES:
        results = []
        for setting in SUITES[op].SETTINGS:
            with torch.set_grad_enabled(setting.get("backward", False)):
                times = interleaved(SUITES[op].variants(**setting), args.rounds)
            row = row_of(op, setting, times)
            print(line(row), flush=True)
            machine = {"threads": args.threads, "isa": native.detail, "rounds": args.rounds}
            results.append(row | machine)
        if args.save:
            print(rows.append("cpu", results))


if __name__ == "__main__":
    main()
