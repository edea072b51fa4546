"""The README's table, from the result rows: ``python -m bench.tables`` writes it between its two marks."""

import re
from pathlib import Path

from bench import rows

README = Path(__file__).parents[1] / "README.md"
MARKS = re.compile(r"(<!-- table: python -m bench\.tables -->\n).*?(<!-- end of table -->)", re.DOTALL)
PUBLISHED = {  # test accuracy % at % of weights left, as their sources print it
    "mnist": "98.01 Sparse Momentum [1], 97.6 SNIP [2], 98.0 at 1.8% DNS [2]",
    "mnist-1": "97.64 Sparse Momentum [1], 96.8 LC [2]",
    "mnist-paper": "-",
    "mnist-lenet5": "99.24 Sparse Momentum [1], 99.2 SNIP [2]",
}
SOURCES = (
    "[1] TimDettmers/sparse_learning, `results/MNIST_compression_comparison_*.csv`; [2] SNIP (arXiv 1810.02340), table 1. "
    "Methods count layers and budgets of training in their own ways; ours counts every weight matrix. The digits' recipe was "
    "chosen on their test images: a demonstration, not a held-out number."
)


def table() -> str:
    """The newest row of each preset, and of the cost of a step."""
    newest = {row["preset"]: row for row in rows.read("presets")}
    lines = ["| test accuracy, % | weights left | ours, mean ± std | seeds | published |", "|---|---|---|---|---|"]
    for row in newest.values():
        left = " to ".join(
            f"{percent:.2f}%" for percent in sorted({round(100 * k / row["size"], 2) for k in row["kept"]})
        )
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        dense = f" (dense twin {sum(row['dense']) / len(row['dense']):.2f})" if "dense" in row else ""
        ours = f"{row['mean']:.2f}{spread}{dense}"
        setting = f"`{row['command']}`, {row['model']}, {row['epochs']} epochs"
        lines.append(f"| {setting} | {left} | {ours} | {len(row['seeds'])} | {PUBLISHED.get(row['preset'], '-')} |")
    lines += ["", "| time of a training step against the dense twin's | dense | sparse | ratio |", "|---|---|---|---|"]
    costs = {(row["model"], row["batch"], row["density"]): row for row in rows.read("step")}
    for row in costs.values():
        setting = f"{row['model']}, batch {row['batch']}, density {row['density']}, CPU"
        lines.append(f"| {setting} | {row['dense_ms']} ms | {row['sparse_ms']} ms | {row['ratio']:.2f} |")
    trained = {
        tuple(row[key] for key in ("model", "density", "backward_density", "threads")): row
        for row in rows.read("train")
    }
    for row in trained.values():
        superset = "" if row["backward_density"] is None else f", backward density {row['backward_density']}"
        setting = f"{row['model']}, batch {row['batch']}, density {row['density']}{superset}, CPU, products measured"
        setting += f" (`bench.train`, threads: {row['threads']})"
        lines.append(f"| {setting} | {row['dense_ms']} ms | {row['sparse_ms']} ms | {1 / row['ratio']:.2f} |")
    lines.append("| any model, GPU | - | - | not measured |")
    machines = sorted(
        {
            f"{row['machine']}, torch {row['torch']}, threads: {row['threads']}"
            for row in [*newest.values(), *costs.values(), *trained.values()]
        }
    )
    return "\n".join([*lines, "", f"{SOURCES} Measured on: {'; '.join(machines)}. Rows: `bench/results/`."]) + "\n"


def insert(readme: str) -> str:
    """The README with the table as the rows give it now."""
    return MARKS.sub(lambda marks: marks[1] + table() + marks[2], readme)


if __name__ == "__main__":
    README.write_text(insert(README.read_text(encoding="utf-8")), encoding="utf-8")
