"""The report of a run: report.json as Markdown, and as tables on a terminal."""

import json
import sys
from pathlib import Path
from typing import Any

from aswl.summary import LayerSummary, Summary

Rows = list[tuple[str, ...]]  # of cells, header first


def read(run: Path) -> dict[str, Any]:
    """The numbers of a finished run; raises ``ValueError`` for a folder without them or a damaged file."""
    path = run / "report.json"
    if not path.exists():
        raise ValueError(f"report: want the folder of a finished run; {run} holds no report.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from error


def networks(report: dict[str, Any]) -> Rows:
    """One row per network, the dense twin first where there is one, and one for the difference."""
    rows: Rows = [("network", "accuracy", "density", "weights", "time", "images/s")]
    for name, result in report["networks"].items():
        size = sum(LayerSummary(**layer).size for layer in report["layers"])
        kept = result.get("kept", size)
        rows.append(
            (
                f"{name} twin" if name == "dense" else name,
                f"{result['accuracy']:.2%}",
                f"{kept / size:.4f}",
                f"{kept:,} of {size:,}",
                f"{result['seconds']:.1f} s",
                f"{result['images_per_s']:,.0f}",
            )
        )
    if "dense" in report["networks"]:
        points = 100 * (report["networks"]["sparse"]["accuracy"] - report["networks"]["dense"]["accuracy"])
        rows.append(("difference", f"{points:+.2f} points", "", "", "", ""))
    return rows


def layers(report: dict[str, Any]) -> Rows:
    """One row per pruned layer, and the total."""
    return Summary(tuple(LayerSummary(**layer) for layer in report["layers"])).rows()


def markdown(report: dict[str, Any]) -> str:
    """The report as a document."""
    config, versions = report["config"], report["versions"]
    aim = f"density {config['density']}" if config["gamma"] is None else f"gamma {config['gamma']}"
    recipe = f"{config['epochs']} epochs, batch {config['batch_size']}, {config['optimizer']}, seed {config['seed']}"
    place = f"{report['device']}, processes: {report['processes']}, threads: {report['threads']}"
    parts = [
        f"# {config['model']} on {config['data']}, {aim}",
        f"{recipe}; {place}; aswl {versions['aswl']}, torch {versions['torch']}.",
        _table(networks(report)),
        "## Layers",
        _table(layers(report)),
        "## Options",
        _table([("option", "value"), *((name, str(value)) for name, value in config.items())]),
    ]
    return "\n\n".join(parts) + "\n"


def write(run: Path) -> Path:
    """Write report.md beside the run's report.json and return its path; raises what :func:`read` raises."""
    path = run / "report.md"
    path.write_text(markdown(read(run)), encoding="utf-8")
    return path


def show(run: Path) -> None:
    """Print the run's two tables: drawn on a terminal, plain elsewhere; raises what :func:`read` raises."""
    report = read(run)
    for rows in (networks(report), layers(report)):
        if sys.stdout.isatty():
            _draw(rows)
        else:
            print(_table(rows), end="\n\n")


def _table(rows: Rows) -> str:
    """Markdown, padded so that it reads as plain text too; all columns but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]

    def line(row: tuple[str, ...]) -> str:
        cells = (c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths)))
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths))
    return "\n".join([line(rows[0]), f"|{rule}|", *map(line, rows[1:])])


def _draw(rows: Rows) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    header, *body = rows
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for i, title in enumerate(header):
        table.add_column(title, justify="right" if i else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    Console().print(table)
