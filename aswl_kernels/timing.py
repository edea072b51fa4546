"""Timing of variants against each other, on machines whose speed drifts."""

import time
from collections.abc import Callable

import torch

SHORTEST = 2e-3  # seconds that a turn on a CPU takes: shorter calls are repeated
WARM = 0.03  # seconds of calls before the first turn on a GPU, whose clock wakes up late
FLUSH = 4  # times the second-level cache: what is read between two calls on a GPU
CYCLES = 2e9  # of a GPU's clock in a second, or a little more
LEAST = 5  # rounds, however long they take
Times = dict[str, list[float]]


def interleaved(
    variants: dict[str, Callable],
    rounds: int,
    device: torch.device | str = "cpu",
    seconds: float = float("inf"),
    alone: bool = True,
) -> Times:
    """Milliseconds of each variant in each round, the variants taking turns; ``rounds`` of them, or fewer (5 at least)
    where ``seconds`` have passed.

    On a CPU each turn begins with a call that is not counted (or it would pay for the caches that another variant has
    emptied), and short calls are repeated to 2 ms. On a GPU each turn is one call between two events; where it is to
    stand ``alone``, the second-level cache is filled with other memory before, and the device waits until the host has
    enqueued all of the call, so that the time is that of the kernels and not of their launches.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _on_cpu(variants, rounds, seconds)
    with torch.cuda.device(device):
        return _on_gpu(variants, rounds, seconds, alone)


def _on_cpu(variants: dict[str, Callable], rounds: int, seconds: float) -> Times:
    repeats = {}
    for name, f in variants.items():
        begin = time.perf_counter()
        f()
        repeats[name] = 1 + int(SHORTEST / (time.perf_counter() - begin))

    def turn(f: Callable, count: int) -> float:
        f()
        begin = time.perf_counter()
        for _ in range(count):
            f()
        return 1e3 * (time.perf_counter() - begin) / count

    return _in_turns({name: lambda f=f, n=repeats[name]: turn(f, n) for name, f in variants.items()}, rounds, seconds)


def _on_gpu(variants: dict[str, Callable], rounds: int, seconds: float, alone: bool) -> Times:
    ahead = {name: _seconds_to_enqueue(f) for name, f in variants.items()}
    size = FLUSH * torch.cuda.get_device_properties().L2_cache_size
    other = torch.zeros(size // 4 if alone else 0, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def turn(f: Callable, wait: float) -> float:
        if alone:
            other.sum()  # read, not written: a cache full of unwritten lines would slow the call down
            torch.cuda._sleep(int(CYCLES * wait))
        start.record()
        f()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return _in_turns({name: lambda f=f, s=ahead[name]: turn(f, s) for name, f in variants.items()}, rounds, seconds)


def _seconds_to_enqueue(f: Callable) -> float:
    """How long the host takes for a call; after calls that compile, allocate and wake the device."""
    begin, calls, taken = time.perf_counter(), 0, 0.0
    while calls < 3 or time.perf_counter() - begin < WARM:
        torch.cuda.synchronize()
        enter = time.perf_counter()
        f()
        taken = time.perf_counter() - enter
        calls += 1
    torch.cuda.synchronize()
    return min(1.5 * taken + 2e-5, 0.02)


def _in_turns(turns: dict[str, Callable[[], float]], rounds: int, seconds: float) -> Times:
    times: Times = {name: [] for name in turns}
    begin = time.perf_counter()
    for i in range(rounds):
        if i >= LEAST and time.perf_counter() - begin > seconds:
            break
        for name, turn in turns.items():
            times[name].append(turn())
    return times
