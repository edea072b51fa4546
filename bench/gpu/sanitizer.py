"""compute-sanitizer over the smallest tests, where the tool is there and runs."""

import shutil
import subprocess
import sys

from bench.gpu.__main__ import ROOT
from bench.gpu.run import Missing, Run

TESTS = ["tests/aswl_kernels/test_gate_triton.py"]


def measure(run: Run) -> None:
    with run.case("memcheck"):
        tool = shutil.which("compute-sanitizer")
        if run.smoke or not tool:
            raise Missing("no compute-sanitizer")
        command = [tool, "--tool", "memcheck", "--error-exitcode", "86", "--target-processes", "all"]
        command += [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default"]
        command += ["-o", "addopts=--import-mode=importlib --strict-markers", *TESTS]
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise RuntimeError(
                "found errors: see the log" if done.returncode == 86 else f"ended with {done.returncode}"
            )
        run.note("memcheck", "nothing found")
