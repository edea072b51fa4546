"""The fused optimizer passes on 1e8 weights, with the method's sums and the masked copy, against torch's fused alone."""

from bench.gpu.run import Run, needs, ratio
from bench.optim import STREAMS, variants

COPY = "ours, with copy"


def measure(run: Run) -> None:
    for name in STREAMS:
        with run.case(f"{name}, 1e8 weights", *["fused", "fused bandwidth"] * (name == "sgd")):
            optimizer(run, name, run.pick(100_000_000, 8_000))


def optimizer(run: Run, name: str, count: int) -> None:
    """Bytes: fp32 weights, gradients and states, read and written, and the bf16 copy."""
    needs(f"fused_{name}_")
    made = variants(name, count, run.device)
    times = run.times(made, seconds=2)
    moved = {variant: (4 * STREAMS[name] + 2 * (variant == COPY)) * count for variant in made}
    goals = {}
    if name == "sgd":
        goals["fused"] = 1 / ratio(times, "torch", COPY)
        if "copy" in run.ceilings:
            ms = sorted(times[COPY])[len(times[COPY]) // 2]
            goals["fused bandwidth"] = moved[COPY] / ms * 1e3 / run.ceilings["copy"]
    run.row(f"{name}, 1e8 weights", times, COPY, "torch", bytes=moved, goals=goals)
