"""Result rows: what was measured, where, with which versions, at which commit."""

import fcntl
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
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # others may append, too
        file.truncate(len(_lines(path)))  # a killed process may have left a torn line
        file.write("".join(json.dumps(row | context) + "\n" for row in rows).encode())
    return path


def read(claim: str) -> list[dict[str, Any]]:
    """All rows of a claim, oldest first; none where it was never measured. A torn last line is no row."""
    return [json.loads(line) for line in _lines(RESULTS / f"{claim}.jsonl").splitlines()]


def _lines(path: Path) -> bytes:
    """The file's whole lines."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]
