"""Accuracy: presets beside published numbers, and methods beside each other."""

from typing import Any

from bench import rows
from bench.accuracy import report
from bench.accuracy.suites import SUITES

PUBLISHED = {  # test accuracy % at % of weights left, as their sources print it
    "mnist": "98.01 Sparse Momentum [1], 97.6 SNIP [2], 98.0 at 1.8% DNS [2]",
    "mnist-1": "97.64 Sparse Momentum [1], 96.8 LC [2]",
    "mnist-paper": "-",
    "mnist-lenet5": "99.24 Sparse Momentum [1], 99.2 SNIP [2]",
    "mnist-lenet5-1": "99.17 Sparse Momentum [1], 98.9 SNIP [2]",
}
SOURCES = (
    "[1] TimDettmers/sparse_learning, `results/MNIST_compression_comparison_*.csv`; [2] SNIP (arXiv 1810.02340), table 1. "
    "Methods count layers and budgets of training in their own ways; ours counts every weight matrix. The digits' recipe was "
    "chosen on their test images: a demonstration, not a held-out number."
)


def newest_presets() -> list[dict[str, Any]]:
    """The newest row of each preset."""
    return list({row["preset"]: row for row in rows.read("presets")}.values())


def presets(measured: list[dict[str, Any]]) -> list[str]:
    """Ours beside published numbers."""
    lines = [
        "| test accuracy, % | weights left | ours, mean ± std | seeds | seconds a run (threads) | published |",
        "|---|---|---|---|---|---|",
    ]
    for row in measured:
        left = " to ".join(
            f"{percent:.2f}%" for percent in sorted({round(100 * k / row["size"], 2) for k in row["kept"]})
        )
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        dense = f" (dense twin {sum(row['dense']) / len(row['dense']):.2f})" if "dense" in row else ""
        ours = f"{row['mean']:.2f}{spread}{dense}"
        setting = f"`{row['command']}`, {row['model']}, {row['epochs']} epochs"
        cost = f"{row['seconds']} ({row['threads']})"
        published = PUBLISHED.get(row["preset"], "-")
        lines.append(f"| {setting} | {left} | {ours} | {len(row['seeds'])} | {cost} | {published} |")
    return lines if measured else []


def best() -> list[str]:
    """Ours beside the best peer and the dense twin, for every grid that has rows of both."""
    lines = []
    for suite, members in SUITES.items():
        for grid in members:
            found = report.cells(report.finished(grid, "test", "accuracy"))
            dense = [cell for cell in found if cell.density == 1]
            for density in grid.densities:
                here = [cell for cell in found if cell.density == density]
                ours = [cell for cell in here if cell.method == "aswl"]
                peers = [cell for cell in here if cell.method != "aswl"]
                if ours and peers:
                    what = f"`bench.accuracy --suite {suite}`: {grid.model}, {grid.recipe.epochs} epochs"
                    peer = f"{report.score(peers[0])} ({peers[0].method}, best of {len(peers)})"
                    twin = report.score(dense[0]) if dense else "-"
                    lines.append(f"| {what} | {density:.1%} | {report.score(ours[0])} | {peer} | {twin} |")
    head = (
        "| the same training for all, test accuracy, % | weights left | ours, mean ± std (seeds) | best peer | dense |"
    )
    return [head, "|---|---|---|---|---|", *lines] if lines else []


def grids() -> list[str]:
    """All methods of every grid that has rows, each with the command that runs it."""
    parts = []
    for suite, members in SUITES.items():
        for grid in members:
            if found := report.cells(report.finished(grid, "test", "accuracy")):
                command = f"python -m bench.accuracy --suite {suite} --models {grid.model} --threads 1"
                parts.append(f"## {suite}: {grid.model}\n\n`{command}`\n\n{report.table(grid, found)}")
    return parts
