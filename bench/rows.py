"""Result rows: what was measured, where, with which versions, at which commit."""

import json
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aswl_kernels.backends import cpu_name

RESULTS = Path(__file__).parent / "results"


def append(claim: str, rows: list[dict[str, Any]]) -> Path:
    """Append ``rows`` to ``bench/results/<claim>.jsonl``, each with machine, versions, commit and date."""
    git = ["git", "-C", str(RESULTS.parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno", ":/", ":(exclude)results"], capture_output=True, text=True, check=False
    )
    context = {
        "machine": cpu_name(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": commit.stdout.strip() + ("+" if changed.stdout.strip() else ""),
        "date": date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{claim}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row | context) + "\n" for row in rows)
    return path


def read(claim: str) -> list[dict[str, Any]]:
    """All rows of a claim, oldest first; none where it was never measured."""
    path = RESULTS / f"{claim}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
