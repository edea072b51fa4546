"""The tables of README.md and docs/accuracy.md, from the result rows: ``python -m bench.tables`` writes them between marks."""

import re
from pathlib import Path

from bench import rows
from bench.accuracy import report
from bench.accuracy.suites import SUITES
from bench.gpu.goals import newest, verdicts

ROOT = Path(__file__).parents[1]
MARKS = re.compile(r"(<!-- table: python -m bench\.tables -->\n).*?(<!-- end of table -->)", re.DOTALL)
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


KERNEL_PEERS = ("dense", "torch CSR", "SparseProp")


def product(row: dict) -> str:
    """What a row of ``bench.cpu`` multiplies."""
    if row["op"] == "sparse_linear":
        what = f"`sparse_linear` {row['outputs']}x{row['inputs']}, batch {row['batch']}"
    else:
        kernel, size = row["kernel"], row["size"]
        what = f"`sparse_conv2d` {kernel}x{kernel}, {row['inputs']} to {row['outputs']}, {size}x{size}, batch {row['batch']}"
    return what + ", forward and backward" * row["backward"] + f", {row['threads']} threads"


def faster(row: dict) -> str:
    """How many times faster ours is than each peer, all in their best layouts; below 1 we lose."""

    def times(kind: str) -> list[float]:
        return [ratio for name, ratio in row["ratio"].items() if name.partition(",")[0] == kind]

    ours = min([1.0, *times("ours")])
    return " / ".join(f"{min(times(peer)) / ours:.1f}" if times(peer) else "-" for peer in KERNEL_PEERS)


def kernels(measured: list[dict]) -> list[str]:
    """The products on a CPU, a line per shape and a column per sparsity."""
    latest = {(product(row), row["sparsity"]): faster(row) for row in measured}
    sparsities = sorted({sparsity for _, sparsity in latest})
    head = [
        f"CPU kernels, times faster than {' / '.join(KERNEL_PEERS)} (-: not measured)",
        *(f"{s:.0%} zeros" for s in sparsities),
    ]
    lines = [head, ["---"] * len(head)]
    for name in dict.fromkeys(name for name, _ in latest):
        lines.append([name, *(latest.get((name, sparsity), "-") for sparsity in sparsities)])
    return ["", *(f"| {' | '.join(cells)} |" for cells in lines)] if latest else []


def accuracy() -> list[str]:
    """Ours beside the best peer and the dense twin, for every grid of ``bench.accuracy`` that has rows."""
    lines = []
    for suite, grids in SUITES.items():
        for grid in grids:
            found = report.cells(report.finished(grid, "test", "accuracy"))
            dense = [cell for cell in found if cell.density == 1]
            for density in grid.densities:
                here = [cell for cell in found if cell.density == density]
                ours = [cell for cell in here if cell.method == "aswl"]
                peers = [cell for cell in here if cell.method != "aswl"]
                if ours and peers:
                    what = f"`bench.accuracy --suite {suite}`: {grid.model}, {grid.recipe.epochs} epochs"
                    best = f"{report.score(peers[0])} ({peers[0].method}, best of {len(peers)})"
                    twin = report.score(dense[0]) if dense else "-"
                    lines.append(f"| {what} | {density:.1%} | {report.score(ours[0])} | {best} | {twin} |")
    head = (
        "| the same training for all, test accuracy, % | weights left | ours, mean ± std (seeds) | best peer | dense |"
    )
    return ["", head, "|---|---|---|---|---|", *lines] if lines else []


def gpu(measured: list[dict]) -> list[str]:
    """What a GPU is asked for and what it gave (``bash bench/gpu.sh``, whose rows.jsonl is kept in results/gpu.jsonl)."""
    head = "| GPU | against | floor | goal | got, at worst | |"
    lines = [
        f"| {what} | {baseline} | {floor} | {goal} | {got} | {verdict} |"
        for what, baseline, floor, goal, got, _, verdict in list(verdicts(measured))[1:]
    ]
    return ["", head, "|---|---|---|---|---|---|", *lines] if measured else []


def table() -> str:
    """The newest row of each preset, of the cost of a step, and of each product on a CPU."""
    presets = {row["preset"]: row for row in rows.read("presets")}
    lines = ["| test accuracy, % | weights left | ours, mean ± std | seeds | published |", "|---|---|---|---|---|"]
    for row in presets.values():
        left = " to ".join(
            f"{percent:.2f}%" for percent in sorted({round(100 * k / row["size"], 2) for k in row["kept"]})
        )
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        dense = f" (dense twin {sum(row['dense']) / len(row['dense']):.2f})" if "dense" in row else ""
        ours = f"{row['mean']:.2f}{spread}{dense}"
        setting = f"`{row['command']}`, {row['model']}, {row['epochs']} epochs"
        lines.append(f"| {setting} | {left} | {ours} | {len(row['seeds'])} | {PUBLISHED.get(row['preset'], '-')} |")
    lines += accuracy()
    lines += [
        "",
        "| time of a whole training step (`bench.step`) against the dense twin's | dense | sparse | ratio |",
        "|---|---|---|---|",
    ]
    setting = ("model", "batch", "density", "products", "backward_density", "threads")
    costs = {tuple(row[key] for key in setting): row for row in rows.read("step")}
    for row in costs.values():
        superset = "" if row["backward_density"] is None else f", backward density {row['backward_density']}"
        products = "measured" if row["products"] == "auto" else row["products"]
        what = f"{row['model']}, batch {row['batch']}, density {row['density']}{superset}, {products} products"
        lines.append(
            f"| {what}, CPU, {row['threads']} threads | {row['dense_ms']} ms | {row['sparse_ms']} ms | {row['ratio']:.2f} |"
        )
    on_gpu = newest(rows.read("gpu"))
    lines += gpu(on_gpu) or ["| any model, GPU | - | - | not measured |"]
    measured = [row for row in rows.read("cpu") if row["op"] in ("sparse_linear", "sparse_conv2d")]
    lines += kernels(measured)
    machines = sorted(
        {
            f"{row['machine']}, torch {row['torch']}, threads: {row['threads']}"
            for row in [*presets.values(), *costs.values(), *measured]
        }
        | {f"{row['gpu']}, torch {row['torch']}, triton {row['triton']}" for row in on_gpu}
    )
    return "\n".join([*lines, "", f"{SOURCES} Measured on: {'; '.join(machines)}. Rows: `bench/results/`."]) + "\n"


def grids() -> str:
    """All methods of every grid of ``bench.accuracy`` that has rows, each with the command that runs it."""
    parts = []
    for suite, members in SUITES.items():
        for grid in members:
            if found := report.cells(report.finished(grid, "test", "accuracy")):
                command = f"python -m bench.accuracy --suite {suite} --models {grid.model} --threads 1"
                parts.append(f"## {grid.model}\n\n`{command}`\n\n{report.table(grid, found)}")
    return "\n" + "\n".join(parts)


PAGES = {ROOT / "README.md": table, ROOT / "docs" / "accuracy.md": grids}


def insert(page: str, table: str) -> str:
    """The page with this table between its marks."""
    return MARKS.sub(lambda marks: marks[1] + table + marks[2], page)


if __name__ == "__main__":
    for path, table_of in PAGES.items():
        path.write_text(insert(path.read_text(encoding="utf-8"), table_of()), encoding="utf-8")
