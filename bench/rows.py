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


def _commit() -> str:
    """The commit that is checked out, with a + where files differ from it; empty outside of a git repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(RESULTS.parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except FileNotFoundError:
            return ""

    changed = git("status", "--porcelain", "-uno", ":/", ":(exclude)results")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


COMMIT = _commit()  # when the process starts: another may be checked out when its rows are written


def append(claim: str, rows: list[dict[str, Any]]) -> Path:
    """Append ``rows`` to ``bench/results/<claim>.jsonl``, each with machine, versions, commit and date."""
    context = {
        "machine": cpu_name(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "commit": COMMIT,
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
