"""The tests that need a GPU, by as many workers as compile well, without packages that the machine may lack."""

import signal
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
        command += files() if not run.smoke else ["tests/aswl_kernels/test_gpu.py"]
        code = within(SECTIONS["tests"] - 15, command, None if not run.smoke else subprocess.DEVNULL)
        if not report.exists():
            raise RuntimeError(f"pytest ended with {code} and no report: see the log")
        counts = counted(report)
        run.note("gpu tests", ", ".join(f"{count} {kind}" for kind, count in counts.items()), counts=counts)
        if counts["failed"]:
            raise RuntimeError(f"{counts['failed']} of {sum(counts.values())} gpu tests failed: see junit.xml")


def files() -> list[str]:
    """All files of tests, those of the GPU's own kernels first: time may run out."""
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))
    return sorted(found, key=lambda path: "gpu" not in path and "triton" not in path)


def within(limit: float, command: list[str], output: int | None) -> int:
    """Run the tests, and stop them in time for a report of what has been done by then."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        print("the tests took too long", flush=True)
        process.send_signal(signal.SIGINT)
        return process.wait(12)
    finally:
        process.kill()


def counted(report) -> dict[str, int]:
    """How many tests passed, failed and were skipped, as those that cannot be collected (a package is not here)."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag: child.get("message") for child in case}
        lost = kinds.get("error") == "collection failure"
        kind = (
            "skipped" if lost or "skipped" in kinds else "failed" if kinds.keys() & {"failure", "error"} else "passed"
        )
        counts[kind] += 1
    return counts
