"""Accuracy of presets over seeds, through ``aswl train`` itself; what is finished is not run again.

python -m bench.presets mnist mnist-1 mnist-paper --seeds 0 1 2 [--output runs/presets] [--save] [options of aswl train]
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from aswl.training.config import load_preset
from bench import rows

FREE = ("seed", "data", "output", "device", "threads", "resume", "tensorboard", "twin")  # none changes the recipe


def run(preset: str, seed: int, folder: Path, options: list[str]) -> dict:
    """The report of one run, which is started, or resumed, unless it is there."""
    report = folder / "report.json"
    if not report.exists():
        command = [
            sys.executable,
            "-m",
            "aswl",
            "train",
            preset,
            "--seed",
            str(seed),
            "--output",
            str(folder),
            *options,
        ]
        subprocess.run([*command, "--resume"] if folder.exists() else command, check=True)
    return json.loads(report.read_text(encoding="utf-8"))


def command(preset: str, config: dict) -> str:
    """The command that trains as a report's config says, but for seed, machine, place, and a dense twin beside it."""
    usual = json.loads(json.dumps(asdict(load_preset(preset)), default=str))
    changed = {name: value for name, value in config.items() if name not in FREE and value != usual[name]}
    return " ".join(
        [f"aswl train {preset}", *(f"--{name.replace('_', '-')}={value}" for name, value in changed.items())]
    )


def row_of(preset: str, reports: list[dict]) -> dict:
    """The row of a preset: one accuracy (%) per seed, and one of the dense twin where there is one."""
    config = reports[0]["config"]
    sparse = [report["networks"]["sparse"] for report in reports]
    row = {
        "preset": preset,
        "command": command(preset, config),
        "model": config["model"],
        "epochs": config["epochs"],
        "seeds": [report["config"]["seed"] for report in reports],
        "accuracy": _percent(sparse),
        "kept": [result["kept"] for result in sparse],
        "size": sparse[0]["size"],
        "threads": reports[0]["threads"],
        "seconds": round(statistics.mean(result["seconds"] for result in sparse)),
    }
    if "dense" in reports[0]["networks"]:
        row["dense"] = _percent([report["networks"]["dense"] for report in reports])
    return row


def _percent(results: list[dict]) -> list[float]:
    return [round(100 * result["accuracy"], 2) for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs") / "presets")
    parser.add_argument("--save", action="store_true", help="append rows to bench/results/presets.jsonl")
    args, options = parser.parse_known_args()
    for preset in args.presets:
        reports = [run(preset, seed, args.output / f"{preset}-{seed}", options) for seed in args.seeds]
        row = row_of(preset, reports)
        print(json.dumps(row))
        if args.save:
            rows.append("presets", [row])


if __name__ == "__main__":
    main()
