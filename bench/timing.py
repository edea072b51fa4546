"""Timing of variants against each other, on a machine whose speed drifts."""

import time
from collections.abc import Callable


def interleaved(variants: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each variant in each round, the variants taking turns, each after a call of its own that is not
    counted (or it would pay for the caches that another one has emptied); short ones are repeated to 2 ms.
    """
    repeats = {}
    for name, f in variants.items():
        begin = time.perf_counter()
        f()
        repeats[name] = 1 + int(2e-3 / (time.perf_counter() - begin))
    times = {name: [] for name in variants}
    for _ in range(rounds):
        for name, f in variants.items():
            f()
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                f()
            times[name].append(1e3 * (time.perf_counter() - begin) / repeats[name])
    return times
