"""Which page shows which tables."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import rows
from bench.gpu.goals import newest
from bench.tables import accuracy, speed

ROOT = Path(__file__).parents[2]
MARKS = re.compile(r"(<!-- table: python -m bench\.tables -->\n).*?(<!-- end of table -->)", re.DOTALL)


def insert(page: str, tables: str) -> str:
    """The page with these tables between its marks."""
    return MARKS.sub(lambda marks: marks[1] + tables + marks[2], page)


def readme() -> str:
    """What was reached, and at what cost."""
    presets, steps = accuracy.newest_presets(), speed.newest_steps()
    products, on_gpu = speed.newest_products(), newest(rows.read("gpu"))
    head = ["", "weights left", "ours", "others", "dense"]
    lines = [
        head,
        ["---"] * len(head),
        *accuracy.headlines(presets),
        *accuracy.best(),
        *speed.headlines(steps, products),
        *speed.gpu_headlines(on_gpu),
    ]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return _text([table], f"{accuracy.SOURCES} {_machines([*presets, *steps, *products, *on_gpu])}")


def accuracies() -> str:
    """All presets, and all methods of every grid of ``bench.accuracy``."""
    return "\n" + "\n".join([accuracy.presets(accuracy.newest_presets()), *accuracy.grids()])


def speeds() -> str:
    """Every training step and every product on a CPU that was measured, and what a GPU was asked for."""
    steps, products, on_gpu = speed.newest_steps(), speed.newest_products(), newest(rows.read("gpu"))
    parts = [speed.steps(steps), speed.kernels(products), speed.gpu(on_gpu)]
    return _text(parts, _machines([*steps, *products, *on_gpu]))


PAGES = {ROOT / "README.md": readme, ROOT / "docs" / "accuracy.md": accuracies, ROOT / "docs" / "speed.md": speeds}


def _text(parts: Iterable[list[str]], end: str) -> str:
    return "\n\n".join("\n".join(lines) for lines in [*filter(None, parts), [end]]) + "\n"


def _machines(measured: list[dict[str, Any]]) -> str:
    """Where rows come from."""
    machines = {
        f"{row['gpu']}, torch {row['torch']}, triton {row['triton']}"
        if "gpu" in row
        else f"{row['machine']}, torch {row['torch']}, threads: {row['threads']}"
        for row in measured
    }
    return f"Measured on: {'; '.join(sorted(machines))}. Rows: `bench/results/`."
