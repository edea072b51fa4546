"""The table and the plot of a grid, from its rows."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bench import rows
from bench.accuracy.suites import Grid, Published

Row = dict[str, Any]


class Cell(NamedTuple):
    """What a method reached at a density: accuracies (%) by seed, and how many runs failed."""

    method: str
    density: float
    accuracies: list[float]
    failed: int
    exact: bool
    seconds: float

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies) if self.accuracies else 0.0

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def cells(measured: Iterable[Row]) -> list[Cell]:
    """Rows of one grid, gathered over seeds; densities in falling order, the best mean first."""
    gathered: dict[tuple[float, str], list[Row]] = {}
    for row in measured:
        gathered.setdefault((row["run"]["density"], row["run"]["method"]), []).append(row)
    found = []
    for (density, method), members in gathered.items():
        fine = [row["accuracy"] for row in members if row["failed"] is None]
        exact = all(row["exact"] for row in members)
        seconds = statistics.mean(row["seconds"] for row in members)
        found.append(Cell(method, density, fine, len(members) - len(fine), exact, seconds))
    return sorted(found, key=lambda cell: (-cell.density, -cell.mean))


def finished(grid: Grid, split: str, results: str) -> list[Row]:
    """The newest row of every run of the grid that is done."""
    newest = {key_text(row["run"]): row for row in rows.read(results)}
    return [newest[key] for run in grid.runs(split) if (key := key_text(run.key())) in newest]


def key_text(key: dict[str, Any]) -> str:
    """The same text for the same run, wherever its key comes from."""
    return json.dumps(key, sort_keys=True)


def average(accuracies: list[float]) -> str:
    """Mean ± standard deviation, this of two and more."""
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.2f}{spread}"


def score(cell: Cell) -> str:
    """Mean ± standard deviation (seeds), of the runs that did not fail, and of how many where some did."""
    if not cell.accuracies:
        return "-"
    seeds = f"{len(cell.accuracies)}" + (f" of {len(cell.accuracies) + cell.failed}" if cell.failed else "")
    return f"{average(cell.accuracies)} ({seeds})"


def table(grid: Grid, found: list[Cell]) -> str:
    """Markdown, a line per density and method: mean ± standard deviation, seeds, failed runs, seconds, published."""
    recipe = grid.recipe
    title = f"{grid.model}, {grid.data}: {recipe.epochs} epochs, batch {recipe.batch_size}, lr {recipe.lr}, "
    title += f"weight decay {recipe.weight_decay}, augment {recipe.augment}, amp {recipe.amp}"
    lines = [title, "", "| weights left | method | accuracy, % (seeds) | failed | density exact | seconds |"]
    lines.append("|---|---|---|---|---|---|")
    for cell in found:
        exact = "yes" if cell.exact else "no"
        lines.append(
            f"| {cell.density:.1%} | {cell.method} | {score(cell)} | {cell.failed} | {exact} | {cell.seconds:.0f} |"
        )
    lines += [f"| {p.density:.2%} | {p.method}, published: {p.source} | {p.accuracy} | | | |" for p in grid.published]
    return "\n".join(lines) + "\n"


def plotted(found: list[Cell]) -> list[Cell]:
    """The cells that a plot has points for: sparse ones with an accuracy."""
    return [cell for cell in found if cell.density < 1 and cell.accuracies]


def plot(grid: Grid, found: list[Cell], path: Path) -> None:
    """Accuracy against density as an SVG: mean and standard deviation over seeds, published numbers as crosses.

    ``found`` must have something :func:`plotted`.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="weights left, %", ylabel="test accuracy, %")
    axes.set_title(f"{grid.model}, {grid.data}, {grid.recipe.epochs} epochs")
    sparse = plotted(found)
    shown = [100 * point.density for point in (*sparse, *grid.published)]
    axes.set_xlim(min(shown) / 1.3, max(shown) * 1.3)
    for i, method in enumerate(dict.fromkeys(cell.method for cell in sorted(sparse, key=_ours_first))):
        points = sorted((cell for cell in sparse if cell.method == method), key=lambda cell: cell.density)
        shift = 1 + 0.008 * i  # so that bars do not hide each other
        axes.errorbar(
            [100 * cell.density * shift for cell in points],
            [cell.mean for cell in points],
            [cell.spread or 0 for cell in points],
            label=method,
            marker="o" if method == "aswl" else ".",
            linewidth=2.5 if method == "aswl" else 1,
            color=f"C{i}" if i < 10 else f"{(i - 9) / 6:.2f}",
            capsize=2,
        )
    for cell in found:
        if cell.density == 1 and cell.accuracies:
            axes.axhline(cell.mean, color="black", linestyle=":", label="dense")
    _marks(axes, grid.published)
    axes.legend(fontsize="small", ncols=2)
    axes.xaxis.set_major_formatter("{x:g}")
    with rc_context({"svg.hashsalt": "aswl"}):  # the same rows, the same file
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


def _ours_first(cell: Cell) -> tuple[bool, str]:
    return cell.method != "aswl", cell.method


def _marks(axes: Any, published: tuple[Published, ...]) -> None:
    for method in dict.fromkeys(mark.method for mark in published):
        points = [mark for mark in published if mark.method == method]
        axes.plot(
            [100 * mark.density for mark in points],
            [mark.accuracy for mark in points],
            "x",
            label=f"{method}, published",
        )
