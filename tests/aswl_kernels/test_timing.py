"""Timing in turns, on a CPU, and on a GPU by a stand-in that tells what was asked of it."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from aswl_kernels import timing
from aswl_kernels.timing import interleaved


def test_variants_take_turns_on_a_cpu():
    order = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
    assert [len(series) for series in times.values()] == [3, 3] and order[0] == "a" and order[-1] == "b"
    few = interleaved({"a": lambda: torch.ones(200_000).sort()}, rounds=10_000, seconds=0.05)
    assert 5 <= len(few["a"]) < 10_000


@pytest.fixture
def asked(monkeypatch):
    """What a GPU was asked for, in order; its clock ticks once for each."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")
            self.at = len(log)

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return end.at - self.at

    cuda = SimpleNamespace(
        Event=Event,
        device=nullcontext,
        synchronize=lambda: log.append("idle"),
        _sleep=lambda cycles: log.append("sleep"),
        get_device_properties=lambda: SimpleNamespace(L2_cache_size=100),
    )
    zeros = lambda size, device: SimpleNamespace(sum=lambda: log.append(f"read {size}"))
    monkeypatch.setattr(timing, "torch", SimpleNamespace(cuda=cuda, zeros=zeros, device=torch.device))
    monkeypatch.setattr(timing, "WARM", 0)
    return log


def test_on_a_gpu_each_call_stands_alone_between_two_events(asked):
    variants = {"a": lambda: asked.append("a"), "b": lambda: asked.extend("bb")}
    times = interleaved(variants, rounds=2, device="cuda")
    assert times == {"a": [2, 2], "b": [3, 3]}
    turns = [["read 100", "sleep", "record", *calls, "record", "wait"] for calls in ("a", "bb")]
    warm = [[*(3 * ["idle", name]), "idle"] for name in ("a",)] + [[*(3 * ["idle", "b", "b"]), "idle"]]
    assert asked == [word for part in (*warm, *turns, *turns) for word in part]


def test_on_a_gpu_steps_follow_each_other(asked):
    times = interleaved({"a": lambda: asked.append("a")}, rounds=1, device="cuda:1", alone=False)
    assert times == {"a": [2]} and asked[-4:] == ["record", "a", "record", "wait"]
    assert "sleep" not in asked and not any(word.startswith("read") for word in asked)
