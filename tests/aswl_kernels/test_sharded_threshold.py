"""Thresholds of layers in parts: the same bits as of the whole, however it is parted."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from aswl_kernels import (
    magnitude_histogram,
    magnitude_threshold,
    reference,
    sharded_magnitude_threshold,
    sharded_threshold,
)

NAN, INF = float("nan"), float("inf")
SCRIPT = """
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from aswl_kernels import reference, sharded_magnitude_threshold

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
ties = torch.randint(-2, 3, (700,)).float()
whole = [torch.randn(999), ties, torch.randn(64, 9).bfloat16(), torch.randn(50).half(), torch.empty(0), torch.ones(3)]
keep = torch.tensor([100, 350, 600, 7, 2, 0])
want = reference.magnitude_threshold(whole, keep)
for cuts in ([0] * (world - 1), [1] * (world - 1), [30 * i for i in range(1, world)]):
    shards = [w.flatten().tensor_split(cuts)[rank] for w in whole]
    assert torch.equal(sharded_magnitude_threshold(shards, keep), want)
halves = [w for w in whole if w.dtype == torch.bfloat16]
for options in ({}, {"group": dist.group.WORLD}):
    got = sharded_magnitude_threshold([w.flatten()[rank::world] for w in halves], keep[2:3], **options)
    assert torch.equal(got, want[2:3])
if rank == 0:
    Path(sys.argv[1]).write_text(json.dumps(world))
options.clear()  # a group that somebody holds ends with the interpreter, whose end its threads would abort
dist.barrier()
dist.destroy_process_group()
time.sleep(0.1)  # the threads let go of their last tensors
"""


@pytest.mark.parametrize("processes", [2, 3])
def test_on_several_processes(processes, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), str(tmp_path / "done")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "done").read_text()) == processes


def by_parts(ranks, keep):
    """What the first process computes, where an all-reduce adds up the histograms of all."""

    def histogram(shards, prefix, shift):
        return sum(magnitude_histogram(shards, prefix, shift) for shards in ranks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", lambda counts, group: None)
        patch.setattr(sharded_threshold, "magnitude_histogram", histogram)
        return sharded_magnitude_threshold(ranks[0], keep)


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@given(data=st.data())
def test_any_parts_of_any_layers(data):
    value = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, NAN, INF])
    dtypes = data.draw(
        st.lists(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), min_size=1, max_size=3)
    )
    layers = [torch.tensor(data.draw(st.lists(value, max_size=30))).to(dtype) for dtype in dtypes]
    keep = torch.tensor([data.draw(st.integers(-1, len(layer) + 2)) for layer in layers])
    owners = [torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(w), max_size=len(w)))) for w in layers]
    ranks = [[layer[owner.long() == rank] for layer, owner in zip(layers, owners)] for rank in range(4)]
    want = reference.magnitude_threshold(layers, keep)
    assert_same(by_parts(ranks, keep), want)
    assert_same(magnitude_threshold(layers, keep), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_two_bytes_are_all_of_a_narrow_weight(dtype, monkeypatch):
    calls = []
    monkeypatch.setattr(dist, "all_reduce", lambda counts, group: calls.append(counts))
    weight, keep = torch.randn(500).to(dtype), torch.tensor([77])
    assert_same(sharded_magnitude_threshold([weight], keep), reference.magnitude_threshold([weight], keep))
    assert len(calls) == 2
    assert sharded_magnitude_threshold([], keep[:0]).shape == (0,) and len(calls) == 2


def test_kernels_find_the_same(triton_device, monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda counts, group: None)
    weights = [torch.randn(40, device=triton_device), torch.randn(9, 5, device=triton_device).bfloat16()]
    keep = torch.tensor([7, 20], device=triton_device)
    assert_same(sharded_magnitude_threshold(weights, keep), reference.magnitude_threshold(weights, keep))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: sharded_magnitude_threshold([torch.ones(2)], torch.tensor([1.0])), "want keep int64[1]"),
        (lambda: sharded_magnitude_threshold([torch.ones(2).long()], torch.tensor([1])), "want floating shards on cpu"),
        (lambda: magnitude_histogram([torch.ones(2)], torch.tensor([1]), 0), "want prefix int32[1], one per weight"),
        (lambda: magnitude_histogram([torch.ones(2).long()], torch.tensor([1]).int(), 0), "want floating weights"),
        (lambda: magnitude_histogram([torch.ones(2)], torch.tensor([1]).int(), 4), "want shift 24, 16, 8 or 0; got 4"),
        (
            lambda: magnitude_threshold([torch.ones(2)], torch.tensor([1]), torch.ones(2)),
            "want guess floating[1] on cpu, like keep; got float32[2]",
        ),
    ],
)
def test_refuses(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
