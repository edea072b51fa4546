"""What the sections share: the device, sizes that fit it, checks before timing, and rows that are kept at once."""

import contextlib
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor

from aswl_kernels._triton import SERVED
from aswl_kernels.timing import Times, interleaved

T = TypeVar("T")


class Missing(Exception):
    """What a case would measure does not exist (yet)."""


def needs(op: str) -> None:
    """The operator has a Triton kernel; otherwise its reference would be measured."""
    if op not in SERVED:
        raise Missing(f"no Triton kernel of {op}")


class Run:
    """One section's measurements. ``smoke``: tiny sizes on a CPU, to see that the code runs; no times worth keeping.
    ``warm``: everything is called and nothing kept, so that what is compiled on the way is on the disk afterwards.
    """

    def __init__(self, section: str, out: Path, smoke: bool, warm: bool = False) -> None:
        self.section, self.out, self.smoke, self.warm = section, out, smoke, warm
        self.device = torch.device("cpu" if smoke else "cuda", None if smoke else 0)
        self.failures = 0
        self._gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None  # asked before it can be lost
        torch.manual_seed(0)

    def pick(self, real: T, tiny: T) -> T:
        """The size for a GPU, or the one for a smoke run."""
        return tiny if self.smoke else real

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal values: zeros would make products faster."""
        return torch.randn(shape, device=self.device, dtype=dtype)

    @contextlib.contextmanager
    def case(self, name: str, *goals: str) -> Iterator[None]:
        """What happens within is one case: its failure is a row and a traceback in the log, and the next case goes on."""
        try:
            yield
        except Missing as missing:
            self._append(name, {"missing": str(missing)}, dict.fromkeys(goals))
        except Exception as error:  # noqa: BLE001 a case's failure is told, and the next one goes on
            traceback.print_exc()
            self.failures += 1
            self._append(
                name, {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}, dict.fromkeys(goals)
            )
        finally:
            if self.device.type == "cuda":
                with contextlib.suppress(RuntimeError):  # the device is lost
                    torch.cuda.empty_cache()

    def times(
        self, variants: dict[str, Callable], seconds: float = 1.0, rounds: int = 100, alone: bool = True
    ) -> Times:
        """Milliseconds of the variants in turns; where they do not matter, those of one call."""
        if self.warm or self.smoke:
            return {name: [_milliseconds(f)] for name, f in variants.items()}
        return interleaved(variants, rounds, self.device, seconds, alone)

    def row(
        self,
        name: str,
        times: Times,
        ours: str,
        baseline: str,
        *,
        bytes: dict[str, float] | float | None = None,
        flops: float | None = None,
        goals: dict[str, float] | None = None,
        **more: Any,
    ) -> dict[str, float]:
        """Keep a case; its medians. ``bytes``: moved at least, by each variant or by ours; ``flops``: done by all."""
        ms = {variant: statistics.median(series) for variant, series in times.items()}
        quartiles = {variant: [percentile(series, q) for q in (0.25, 0.75)] for variant, series in times.items()}
        moved = bytes if isinstance(bytes, dict) else {} if bytes is None else {ours: bytes}
        rates = {variant: size / ms[variant] * 1e3 for variant, size in moved.items()}
        of_ceiling = {v: rate / self.ceilings["copy"] for v, rate in rates.items()} if self.ceilings.get("copy") else {}
        if flops is not None and self.ceilings.get("matmul"):
            of_ceiling = {
                v: max(of_ceiling.get(v, 0), flops / t * 1e3 / self.ceilings["matmul"]) for v, t in ms.items()
            }
        row = {"ms": _rounded(ms), "quartiles": {v: [_rounded(q) for q in qs] for v, qs in quartiles.items()}}
        row |= {"n": min(map(len, times.values())), "ours": ours, "baseline": baseline}
        row |= {"ratio": _rounded(ratio(times, baseline, ours)), "bytes": moved, "flops": flops}
        row |= {"of_ceiling": _rounded(of_ceiling)} | more
        self._append(name, row, _rounded(goals or {}))
        return ms

    def note(self, name: str, text: str, **more: Any) -> None:
        """Keep a case that is no comparison."""
        self._append(name, {"note": text} | more, {})

    @functools.cached_property
    def ceilings(self) -> dict[str, float]:
        """Bytes per second of a copy and operations per second of a bf16 product, where they were measured."""
        from bench.gpu.goals import read

        rows = [row for row in read(self.out / "rows.jsonl") if row["section"] == "ceilings"]
        return {row["case"]: row["per_second"] for row in rows if "per_second" in row}

    @functools.cached_property
    def _context(self) -> dict[str, Any]:
        triton = version("triton") if find_spec("triton") else None
        context = {"gpu": self._gpu, "python": platform.python_version(), "torch": torch.__version__, "triton": triton}
        return context | {"commit": commit(), "date": date.today().isoformat(), "smoke": self.smoke}

    def _append(self, name: str, row: dict[str, Any], goals: dict[str, float | None]) -> None:
        if self.warm:
            return
        row = {"section": self.section, "case": name, "goals": goals} | row | self._context
        print(json.dumps(row), flush=True)
        with (self.out / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def ratio(times: Times, baseline: str, ours: str) -> float:
    """The median, over the rounds, of how many times faster ours is."""
    return statistics.median(theirs / mine for theirs, mine in zip(times[baseline], times[ours]))


def percentile(series: list[float], share: float) -> float:
    return sorted(series)[min(int(share * len(series)), len(series) - 1)]


def error(got: Tensor, want: Tensor) -> float:
    """The norm of the difference, relative; infinite where it is not a number."""
    norm = ((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-300)).item()
    return norm if math.isfinite(norm) else math.inf


def check(name: str, got: Tensor, theirs: Tensor, want: Tensor, slack: float = 1e-6) -> None:
    """Refuse to time what has more than twice the error of PyTorch's own, both against the exact result."""
    mine, own = error(got, want), error(theirs, want)
    assert mine <= 2 * own + slack, f"never time a wrong answer: {name} is off by {mine:.3g}, PyTorch by {own:.3g}"


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody has written yet is NaN."""

    def poison(make: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        tensor = make(*args, **options)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    with contextlib.ExitStack() as stack:
        for name in ("empty", "empty_like"):
            stack.enter_context(mock.patch.object(torch, name, functools.partial(poison, getattr(torch, name))))
        yield


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """On a CPU the operators are their Triton kernels, in Triton's interpreter."""
    library = torch.library.Library("aswl", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # of the kernels that step back
        for name, kernel in SERVED.items():
            library.impl(name, kernel, "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()


def commit() -> str:
    """The commit that was measured: git's, or $ASWL_COMMIT where only the files are."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False)
    except OSError:
        done = None
    return (done.stdout.strip() if done else "") or os.environ.get("ASWL_COMMIT", "")


def _milliseconds(f: Callable) -> float:
    begin = time.perf_counter()
    f()
    return 1e3 * (time.perf_counter() - begin)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return value if value is None else float(f"{value:.5g}")
