"""The tests that need a GPU, by as many workers as compile well, without packages that the machine may lack."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.util import find_spec

from bench.gpu.__main__ import ROOT, SECTIONS
from bench.gpu.run import Run

WORKERS = 8


def measure(run: Run) -> None:
    with run.case("gpu tests"):
        report = run.out / "junit.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-o", "addopts=--import-mode=importlib --strict-markers", "-W", "default", "--tb=short"]
        command += ["--continue-on-collection-errors"]  # of tests that need a package which is not here
        if find_spec("pytest_timeout"):
            command += [f"--timeout={SECTIONS['tests'] // 2}"]
        if find_spec("xdist") and not run.smoke:
            command += ["-n", str(WORKERS), "--dist", "worksteal"]
        command += run.pick(["tests"], ["tests/aswl_kernels/test_gpu.py"])
        done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=run.smoke, check=False)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode} and no report: see the log")
        counts = counted(report)
        run.note("gpu tests", ", ".join(f"{count} {kind}" for kind, count in counts.items()), counts=counts)
        if counts["failed"]:
            raise RuntimeError(f"{counts['failed']} of {sum(counts.values())} gpu tests failed: see junit.xml")


def counted(report) -> dict[str, int]:
    """How many tests passed, failed and were skipped; what could not be collected counts as skipped."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if "failure" in kinds else "skipped" if kinds & {"skipped", "error"} else "passed"
        counts[kind] += 1
    return counts
