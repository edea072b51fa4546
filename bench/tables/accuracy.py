"""Accuracy: presets beside published numbers, and methods beside each other."""

from typing import Any

from bench import rows
from bench.accuracy import report
from bench.accuracy.suites import SUITES

PUBLISHED = {  # test accuracy % at % of weights left, as their sources print it
    "mnist": "98.01 Sparse Momentum [1], 97.6 SNIP [2]; 98.08 at 1.5% Sparse VD [3], 98.0 at 1.8% DNS [2]",
    "mnist-1": "97.64 Sparse Momentum [1], 96.8 LC [2]",
    "mnist-lenet5": "99.24 Sparse Momentum [1], 99.2 SNIP [2], 99.11 at 1.64% DST [4]",
    "mnist-lenet5-1": "99.17 Sparse Momentum [1], 98.9 SNIP [2], 98.9 LC [2]; 99.1 at 0.9% DNS [2], 99.25 at 0.36% Sparse VD [3]",
}
SOURCES = (
    "[1] TimDettmers/sparse_learning, `results/MNIST_compression_comparison_*.csv`; [2] SNIP (arXiv 1810.02340), table 1; "
    "[3] ars-ashuha/variational-dropout-sparsifies-dnn, README; [4] DST (arXiv 2005.06870), table 1. Published methods count "
    "layers and budgets of training in their own ways; ours counts every weight matrix."
)
DATA = {"mnist": "MNIST", "cifar10_jpeg": "CIFAR-10 (JPEG)"}
FEW_PEERS = ("collapse",)  # suites that only docs/accuracy.md shows


def newest_presets() -> list[dict[str, Any]]:
    """The newest row of each preset as it comes."""
    usual = [row for row in rows.read("presets") if row["command"] == f"aswl train {row['preset']}"]
    return list({row["preset"]: row for row in usual}.values())


def headlines(measured: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of the README: presets beside published numbers, and beside the dense twin of the same recipe."""
    named = {row["preset"]: row for row in measured if row["preset"] in PUBLISHED}
    twins = {(row["model"], row["epochs"]): _score(row["dense"]) for row in named.values() if "dense" in row}
    lines = []
    for preset, published in PUBLISHED.items():
        if row := named.get(preset):
            what = f"{row['model']}, MNIST, {row['epochs']} epochs: `{row['command']}`"
            twin = twins.get((row["model"], row["epochs"]), "")
            lines.append([what, _left(row), _score(row["accuracy"]), f"published: {published}", twin])
    return lines


def best() -> list[list[str]]:
    """Cells of the README: ours beside the best peer and the dense twin, for every grid that has rows of both."""
    lines = []
    for suite, members in SUITES.items():
        for grid in members if suite not in FEW_PEERS else ():
            found = report.cells(report.finished(grid, "test", "accuracy"))
            dense = [cell for cell in found if cell.density == 1]
            for density in grid.densities:
                here = [cell for cell in found if cell.density == density]
                ours = [cell for cell in here if cell.method == "aswl"]
                peers = [cell for cell in here if cell.method != "aswl"]
                if ours and peers:
                    images, epochs = DATA.get(grid.data, grid.data), grid.recipe.epochs
                    what = f"{grid.model}, {images}, {epochs} epochs, the same for all: suite `{suite}`"
                    peer = _best_peer(peers, len(grid.methods) - 1)
                    twin = report.score(dense[0]) if dense else "-"
                    lines.append([what, f"{density:.1%}", report.score(ours[0]), peer, twin])
    return lines


def presets(measured: list[dict[str, Any]]) -> str:
    """All presets that were measured."""
    lines = [
        "| preset | weights left | accuracy, % (seeds) | dense twin | seconds a run (threads) |",
        "|---|---|---|---|---|",
    ]
    for row in measured:
        setting = f"`{row['command']}`: {row['model']}, {row['epochs']} epochs"
        twin = _score(row["dense"]) if "dense" in row else "-"
        cost = f"{row['seconds']} ({row['threads']})"
        lines.append(f"| {setting} | {_left(row)} | {_score(row['accuracy'])} | {twin} | {cost} |")
    return "\n".join(["## Presets\n", *lines]) + "\n"


def grids() -> list[str]:
    """All methods of every grid that has rows, each with the command that runs it."""
    parts = []
    for suite, members in SUITES.items():
        for grid in members:
            if found := report.cells(report.finished(grid, "test", "accuracy")):
                command = f"python -m bench.accuracy --suite {suite} --models {grid.model} --threads 1"
                parts.append(f"## {suite}: {grid.model}\n\n`{command}`\n\n{report.table(grid, found)}")
    return parts


def _left(row: dict[str, Any]) -> str:
    """The density that a preset's runs ended at, as % of the weights."""
    return " to ".join(f"{percent:.2f}%" for percent in sorted({round(100 * k / row["size"], 2) for k in row["kept"]}))


def _score(accuracies: list[float]) -> str:
    """Mean ± standard deviation (seeds)."""
    return f"{report.average(accuracies)} ({len(accuracies)})"


def _best_peer(peers: list[report.Cell], asked: int) -> str:
    """The best peer's accuracy, of how many it is the best, and how many failed or were not run."""
    failed = sum(not peer.accuracies for peer in peers)
    notes = [f"best of {len(peers) - failed}"]
    notes += [f"{failed} failed"] * bool(failed) + [f"{asked - len(peers)} not run"] * (asked > len(peers))
    return f"{report.score(peers[0])} {peers[0].method}, {', '.join(notes)}"
