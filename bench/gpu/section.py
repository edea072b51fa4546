"""One section in a process of its own: python -m bench.gpu.section NAME OUTDIR [--warm]."""

import importlib
import signal
import sys
from pathlib import Path

from bench.gpu.run import Run


def run(name: str, out: Path, smoke: bool, warm: bool = False) -> int:
    """Measure the section; how many of its cases failed. ``warm``: only compile, for another process that measures."""
    it = Run(name, out, smoke, warm)
    importlib.import_module(f"bench.gpu.{name}").measure(it)
    return it.failures


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
    sys.exit(min(run(sys.argv[1], Path(sys.argv[2]), smoke=False, warm="--warm" in sys.argv), 100))
