"""Accuracy of sparse training, ours and its peers', on a declared grid; what is finished is not run again.

python -m bench.accuracy --suite mnist [--methods aswl rigl] [--densities 0.05] [--seeds 0 1 2] [--split validation] [--shard 0/2]
    [--threads 1] [--device cpu] [--data DIR] [--results accuracy] [--output runs/accuracy] [--again] [--report]
    [--options '{"pruned_decay": 10}'] [--recipe '{"epochs": 6}']
"""

import argparse
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from bench import rows
from bench.accuracy import report
from bench.accuracy.suites import SUITES
from bench.accuracy.train import Recipe, Run, train
from bench.baselines import METHODS


def run_grid(runs: list[Run], data: Path, device: torch.device, results: str, again: bool = False) -> None:
    """Run what has no row yet, or everything ``again``; each row is written when it is known."""
    for run in runs:
        if not again and report.key_text(run.key()) in {report.key_text(row["run"]) for row in rows.read(results)}:
            continue
        row = {"run": run.key()} | train(run, data / run.data, device)
        rows.append(results, [row])
        print(
            f"{run.model} {run.density:.1%} {run.method} seed {run.seed}: {row['accuracy']} in {row['seconds']} s",
            flush=True,
        )
        if row["failed"]:
            print(f"  failed: {row['failed']}", flush=True)


def _object(text: str) -> dict[str, Any]:
    """The JSON object of an argument."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"want JSON; got {text!r}: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"want a JSON object; got {text!r}")
    return value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="only these")
    parser.add_argument("--models", nargs="+", help="only these of the suite")
    parser.add_argument("--densities", type=float, nargs="+", help="only these of the suite")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these of the suite")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--shard", default="0/1", help="I/N: every Nth run from the Ith, for N processes side by side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("ASWL_DATA", "../shared/data")))
    parser.add_argument("--results", default="accuracy", help="rows go to bench/results/NAME.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs") / "accuracy", help="folder of the plots")
    parser.add_argument(
        "--options", type=_object, default={}, help="JSON, over the suite's; such rows are kept, but not reported"
    )
    parser.add_argument("--recipe", type=_object, default={}, help="JSON, over the suite's")
    parser.add_argument("--again", action="store_true", help="run what has a row, too; the newest row counts")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    shard, shards = map(int, args.shard.split("/"))
    if not 0 <= shard < shards:
        parser.error(f"--shard: want I/N with 0 <= I < N; got {args.shard}")
    if unknown := args.recipe.keys() - {field.name for field in fields(Recipe)}:
        parser.error(f"--recipe: want fields of bench.accuracy.train.Recipe; got {sorted(unknown)}")
    grids = [
        replace(grid, recipe=replace(grid.recipe, **args.recipe))
        for grid in SUITES[args.suite]
        if not args.models or grid.model in args.models
    ]
    runs = [run for grid in grids for run in grid.runs(args.split)]
    runs = [run for run in runs if not args.methods or run.method in args.methods]
    runs = [run for run in runs if not args.densities or run.density in args.densities]
    runs = [run for run in runs if not args.seeds or run.seed in args.seeds]
    if args.options and len(args.methods or ()) != 1:
        parser.error("--options: want --methods with the one that they belong to")
    runs = [replace(run, options={**run.options, **args.options}) for run in runs]
    if not runs:
        parser.error(f"no run of {args.suite} has these models, methods, densities and seeds")
    if not args.report:
        run_grid(runs[shard::shards], args.data, torch.device(args.device), args.results, args.again)
    args.output.mkdir(parents=True, exist_ok=True)
    for grid in grids:
        found = report.cells(report.finished(grid, args.split, args.results))
        print(f"\n{report.table(grid, found)}")
        if report.plotted(found):
            path = args.output / f"{args.suite}-{grid.model}.svg"
            report.plot(grid, found, path)
            print(path)


if __name__ == "__main__":
    main()
