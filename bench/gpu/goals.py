"""What the kernels must and should reach on an H200, and what the rows say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Goal(NamedTuple):
    """A value that must reach ``floor`` and should reach ``goal``: from below, or from above where ``lower`` is better."""

    what: str
    baseline: str
    unit: str
    floor: float
    goal: float
    lower: bool = False

    def reached(self, value: float, bar: float) -> bool:
        return value <= bar if self.lower else value >= bar


GOALS = {
    "threshold": Goal("magnitude_threshold, 1e8 fp32", "one read", "us", 190, 125, lower=True),
    "threshold kthvalue": Goal("magnitude_threshold, 1e8 fp32", "kthvalue", "x faster", 1000, 1000),
    "threshold resnet50": Goal("all layers of ResNet-50, one call", "per-layer sort", "x faster", 20, 40),
    "fused": Goal("fused SGD + copy + sums, 1e8", "torch fused alone", "x its time", 1.20, 1.10, lower=True),
    "fused bandwidth": Goal("fused SGD + copy + sums, 1e8", "copy bandwidth", "of it", 0.85, 0.85),
    "linear whole": Goal("masked linear, whole, 8192x4096x4096", "eager mask + F.linear", "x faster", 1.2, 1.28),
    "linear": Goal("one-pass masked_linear", "cuBLAS, pre-masked", "of its speed", 0.90, 1.00),
    "conv": Goal("one-pass masked_conv2d, ResNet-50", "cuDNN, pre-masked", "of its speed", 0.80, 0.97),
    "skinny 50": Goal("skinny 28672x8192, 50% zeros", "cuBLAS", "x faster", 1.3, 1.65),
    "skinny 70": Goal("skinny 28672x8192, 70% zeros", "cuBLAS", "x faster", 1.8, 2.5),
    "skinny 90": Goal("skinny 28672x8192, 90% zeros", "cuBLAS", "x faster", 3.0, 5.0),
    "step resnet50": Goal("step, ResNet-50, compiled", "dense model", "x its time", 1.05, 1.02, lower=True),
    "step resnet20": Goal("step, ResNet-20, graphed", "dense model, graphed", "x its time", 1.05, 1.02, lower=True),
    "step eager": Goal("step, ResNet-20, graphed", "eager reference method", "x faster", 3, 3),
}


def read(path: Path) -> list[Row]:
    """The rows of a file, if there is one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return newest(list(map(json.loads, lines)))


def newest(rows: list[Row]) -> list[Row]:
    """The newest row of each case, in the place of its first."""
    return list({(row["section"], row["case"]): row for row in rows}.values())


def report(rows: list[Row]) -> str:
    """Every row in a line, and then the table."""
    return "\n".join([*map(line, rows), "", *_aligned(list(verdicts(rows)))])


def line(row: Row) -> str:
    """What was measured: milliseconds of each variant, how many times faster ours is, and its share of the ceiling."""
    begin = f"{row['section']}: {row['case']}: "
    for word in ("failed", "missing", "note"):
        if word in row:
            return begin + (row[word] if word == "note" else f"{word}: {row[word]}")
    ms = ", ".join(f"{name} {value:.4g}" for name, value in row["ms"].items())
    if "per_second" in row:
        return f"{begin}{row['per_second'] / 1e12:.4g}e12 per second{' (smoke)' * row['smoke']}"
    ratio = f"; {row['ratio']:.3g}x {row['baseline']}" if row.get("ratio") else ""
    share = row.get("of_ceiling", {}).get(row.get("ours"))
    return f"{begin}{ms} ms{ratio}{f'; {share:.0%} of the ceiling' if share else ''}{' (smoke)' * row['smoke']}"


def verdicts(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """The table's cells: for each goal its worst case, as a floor is for all of them."""
    yield "", "baseline", "floor", "goal", "got", "case", ""
    for name, goal in GOALS.items():
        mine = [row for row in rows if name in row["goals"]]
        bars = [f"{bar:g} {goal.unit}" for bar in (goal.floor, goal.goal)]
        excuses = [word for word in ("failed", "missing") if any(word in row for row in mine)]
        values = {row["case"]: row["goals"][name] for row in mine if row["goals"][name] is not None}
        if not values:
            yield goal.what, goal.baseline, *bars, "-", "", excuses[0] if excuses else "not measured"
            continue
        case = (max if goal.lower else min)(values, key=values.get)
        got = next(
            (word for word, bar in (("GOAL", goal.goal), ("floor", goal.floor)) if goal.reached(values[case], bar)),
            "FAIL",
        )
        if any(row["smoke"] for row in mine):
            got = "smoke"
        yield goal.what, goal.baseline, *bars, f"{values[case]:.3g}", case, ", some ".join([got, *excuses])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
