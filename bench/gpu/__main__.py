"""Everything that a machine with a GPU can say, within nine minutes, one section after the other, most important first.

OUTDIR gets rows.jsonl (a row as soon as it is measured), log.txt, table.txt, junit.xml of the tests and tuned.json; what
was there stays, and newer rows count. A section that fails or takes too long leaves its traceback in the log. Where there
are files only and no git, $ASWL_COMMIT says what is measured. To keep what was found: append rows.jsonl to
bench/results/gpu.jsonl (``python -m bench.tables`` shows it in the README), and take tuned.json as aswl_kernels/tuned.json.
"""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
SECONDS = 525  # for all sections together
LEAST = 10  # seconds: with less left, no section is begun
SECTIONS = {  # most important first, and how many seconds each may take
    "environment": 30,
    "build": 60,
    "ceilings": 30,
    "tests": 130,
    "threshold": 40,
    "fused": 40,
    "linear": 70,
    "conv": 70,
    "skinny": 40,
    "tune": 80,
    "step": 200,
    "gate": 20,
    "experiments": 60,
    "sanitizer": 60,
}

WARMED = ("step", "tune", "conv", "linear")  # what they compile is compiled by other processes while the tests run
PATIENCE = 60  # seconds for which those are waited for when the tests are done


def isolated(name: str, arguments: list[str], limit: float, log: IO[str]) -> str | None:
    """Run a section in a process of its own; what went wrong, if something did."""
    return finish(started(name, arguments, log), limit)


def started(name: str, arguments: list[str], log: IO[str] | int) -> subprocess.Popen:
    command = [sys.executable, "-m", "bench.gpu.section", name, *arguments]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


@contextmanager
def warming(names: list[str], out: Path, until: float) -> Iterator[None]:
    """Meanwhile other processes compile, into the caches on the disk, what these sections will need."""
    processes = [started(name, [str(out), "--warm"], subprocess.DEVNULL) for name in names]
    try:
        yield
    finally:
        until = min(until, time.monotonic() + PATIENCE)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0.01))
            _end(process.pid, signal.SIGKILL)
            process.wait()


def finish(process: subprocess.Popen, limit: float) -> str | None:
    """Wait for a process that leads a session of its own; after ``limit`` seconds end all of it, asking first."""
    cut = False
    try:
        for seconds, stop in ((limit, signal.SIGINT), (5, signal.SIGKILL)):
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                cut = True
                _end(process.pid, stop)
        code = process.wait()
    finally:
        _end(process.pid, signal.SIGKILL)  # whatever it has left behind
    return "cut: took too long" if cut else f"failed with exit code {code}" if code else None


def _end(session: int, how: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, how)


def within(name: str, run: Callable[[], int], log: IO[str]) -> str | None:
    """Run a section in this process (a smoke run, where importing torch for each would be most of the time)."""
    with redirect_stdout(log), redirect_stderr(log):
        try:
            failures = run()
        except Exception as error:  # noqa: BLE001 a section's failure is told, and the next one goes on
            traceback.print_exc()
            return f"failed: {type(error).__name__}: {error}"
    return f"failed: {failures} cases" if failures else None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bash bench/gpu.sh", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on a CPU, kernels in Triton's interpreter")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all sections together")
    parser.add_argument("out", type=Path, metavar="OUTDIR")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; by default all")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.sections if name not in SECTIONS]:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined
    begin, failed = time.monotonic(), []
    with ExitStack() as stack, (out / "log.txt").open("a", encoding="utf-8") as log:
        if args.smoke:
            stack.enter_context(importlib.import_module("bench.gpu.run").interpreted())
        stack.callback(_show, out)
        wanted = args.sections or list(SECTIONS)
        for name in wanted:
            entered = time.monotonic()
            left = args.seconds - (entered - begin)
            print(f"\n===== {name} =====", file=log, flush=True)
            if left < LEAST:
                problem = "left out: no time"
            elif args.smoke:
                problem = within(
                    name, lambda n=name: importlib.import_module("bench.gpu.section").run(n, out, True), log
                )
            else:
                limit = min(SECTIONS[name], left)
                ahead = [other for other in WARMED if other in wanted] if name == "tests" else []
                with warming(ahead, out, entered + limit):
                    problem = isolated(name, [str(out)], limit, log)
            failed += [name] if problem else []
            print(f"{name}: {problem or 'done'}, {time.monotonic() - entered:.0f} s", flush=True)
            print(problem or "done", file=log, flush=True)
    print(f"sections with problems: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _show(out: Path) -> None:
    """The table, last, and in a file."""
    from bench.gpu import goals

    text = goals.report(goals.read(out / "rows.jsonl"))
    (out / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)


if __name__ == "__main__":
    for stop in (signal.SIGTERM, signal.SIGINT):  # the table comes last, even then
        signal.signal(stop, signal.default_int_handler)
    sys.exit(main())
