"""What machine this is: the GPU as it is found, versions, and what the operators find there."""

import subprocess

import torch

from aswl import cli
from bench.gpu.run import Run

FIELDS = "name,driver_version,memory.total,memory.used,utilization.gpu,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.limit,ecc.mode.current"
COMMANDS = (["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv"], ["nvcc", "--version"], ["c++", "--version"])


def measure(run: Run) -> None:
    with run.case("machine"):
        said = [output(command) for command in COMMANDS]
        print("\n".join(said))
        cli.main(["info"])
        details = {"nvidia_smi": said[0].strip()}
        if run.device.type == "cuda":
            device = torch.cuda.get_device_properties(run.device)
            details |= {"level_2": device.L2_cache_size, "units": device.multi_processor_count}
            details |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        run.note("machine", f"torch {torch.__version__}, {details}", **details)


def output(command: list[str]) -> str:
    """What a command prints; a word where it does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return done.stdout + done.stderr
