"""The C++ library for the CPU's operators, where a compiler is there; without it they run on their references."""

import os
import shutil
import subprocess
import sys

from bench.gpu.__main__ import ROOT
from bench.gpu.run import Missing, Run


def measure(run: Run) -> None:
    with run.case("C++ library"):
        if not shutil.which(os.environ.get("CXX", "c++")):
            raise Missing("no C++ compiler")
        command = [sys.executable, "setup.py", "-q", *run.pick(["build_ext", "--inplace"], ["--version"])]
        env = os.environ | {"ASWL_NATIVE": "1"}  # or a failure would be a warning
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        print(done.stdout[-4000:], done.stderr[-4000:])
        if done.returncode:
            raise RuntimeError(f"setup.py ended with {done.returncode}: {(done.stderr or done.stdout)[-200:]}")
        run.note("C++ library", "built")
