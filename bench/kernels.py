"""What the compiler makes of every Triton kernel, for GPUs that need not be there: registers, spills, instructions.

python -m bench.kernels [--targets sm_80 sm_90 sm_100 gfx942] [--only PREFIX] [--json]

The public launchers run as they do in training, but what they launch is only compiled, for each target in turn.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.jit import JITFunction

from bench.launches import launches

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED = {"sm_80": 164, "sm_90": 228, "sm_100": 228}  # KiB of a multiprocessor (CUDA C++ programming guide, table 30)
REGISTERS, WARPS, BLOCKS = 65536, 64, 32  # of a multiprocessor, the same on all three
PATTERNS = {  # in PTX, or in AMD's assembly
    "matrix": r"wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma",
    "wgmma": r"wgmma\.mma_async",
    "load16": r"ld\.global\S*\.v(?:4\.b32|2\.b64)|cp\.async\.cg\S*|cp\.async\.bulk|(?:global|buffer)_load_dwordx4",
    "load": r"ld\.global|cp\.async\.c[ag]|cp\.async\.bulk\.tensor\S*global|global_load_|buffer_load_",
    "store16": r"st\.global\S*\.v(?:4\.b32|2\.b64)|cp\.async\.bulk\.tensor\S*shared|(?:global|buffer)_store_dwordx4",
}


class _Driver:
    """In the place of Triton's driver: a device of every target, and nothing that could run."""

    def __init__(self) -> None:
        self.device = 0

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return list(TARGETS.values())[self.device]


def compiled(launch: Callable[[], object], target: str) -> list[tuple[str, Any]]:
    """Names and ``CompiledKernel`` of what ``launch()`` launches, in order, each kernel and signature once."""
    seen: dict[str, tuple[str, Any]] = {}
    run = JITFunction.run

    def compile(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        seen[kernel.hash] = self.__name__, kernel
        return kernel

    driver = _Driver()
    driver.device = list(TARGETS).index(target)  # the caches go by it
    with mock.patch.object(JITFunction, "run", compile), mock.patch.object(triton.runtime.driver, "_active", driver):
        launch()
    return list(seen.values())


def describe(kernel: Any, target: str) -> dict[str, Any]:
    """Registers, bytes of spills and of shared memory, warps in flight, and counts of instructions of one kernel."""
    warps, shared = kernel.metadata.num_warps, kernel.metadata.shared
    row = {"warps": warps, "stages": kernel.metadata.num_stages, "shared": shared}
    if target.startswith("gfx"):
        text = kernel.asm["amdgcn"]
        numbers = {name: int(value) for name, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", text)}
        row |= {"registers": numbers["vgpr_count"], "spills": 4 * numbers["vgpr_spill_count"]}
    else:
        text, log = kernel.asm["ptx"], _assemble(kernel.asm["ptx"])
        registers = int(re.search(r"Used (\d+) registers", log).group(1))
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", log))
        row |= {"registers": registers, "spills": spills, "serialized": "serialized" in log}
        row["in_flight"] = _in_flight(registers, shared, warps, SHARED[target])
    return row | {name: len(re.findall(pattern, text)) for name, pattern in PATTERNS.items()}


def _assemble(ptx: str) -> str:
    """What ``ptxas``, the one that Triton takes for it, says of a PTX program."""
    target = re.search(r"\.target (\w+)", ptx).group(1)
    tool = get_ptxas(int(re.search(r"\d+", target).group()))
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [tool.path, "-v", f"--gpu-name={target}", "--output-file=/dev/null", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _in_flight(registers: int, shared: int, warps: int, kibibytes: int) -> int:
    """How many warps of a kernel a multiprocessor holds at once."""
    by_registers = REGISTERS // (32 * -(-registers // 8) * 8 * warps)
    by_shared = kibibytes * 1024 // (shared + 1024)  # each block takes 1 KiB more
    return warps * min(by_registers, by_shared, WARPS // warps, BLOCKS)


def rows(targets: list[str], prefix: str = "") -> list[dict[str, Any]]:
    """One row for every launch whose name begins with ``prefix``, kernel in it, and target."""
    return [
        {"launch": name, "kernel": kernel_name, "target": target, **describe(kernel, target)}
        for name, launch in launches().items()
        if name.startswith(prefix)
        for target in targets
        for kernel_name, kernel in compiled(launch, target)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--only", default="", metavar="PREFIX", help="launches whose name begins so")
    parser.add_argument("--json", action="store_true", help="a JSON object per line, not a table")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("want TRITON_INTERPRET unset: the interpreter compiles nothing")
    found = rows(args.targets, args.only)
    if args.json:
        print("\n".join(json.dumps(row) for row in found))
        return
    columns = ("target", "registers", "spills", "shared", "warps", "in_flight", "matrix", "load16", "load", "store16")
    print(f"{'launch: kernel':<72}", *(f"{name:>9}" for name in columns))
    for row in found:
        print(f"{row['launch'] + ': ' + row['kernel']:<72}", *(f"{row.get(name, '-'):>9}" for name in columns), end="")
        print("  SERIALIZED" if row.get("serialized") else "")


if __name__ == "__main__":
    main()
