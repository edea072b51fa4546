"""Tables for kernels: sent once, kept by stream, and what a captured graph reads stays where it is."""

import pytest
import torch

from aswl_kernels import _integers
from aswl_kernels._integers import integers

CPU = torch.device("cpu")
LARGE = [0, -1, 2**62 + 1, -(2**63), 2**63 - 1]


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    monkeypatch.setattr(_integers, "_kept", {})
    monkeypatch.setattr(_integers, "_captured", [])


def test_every_integer_arrives(device):
    for values in (LARGE, list(range(1000))):
        table = integers(values, torch.device(device, 0 if device == "cuda" else None))
        assert table.dtype == torch.int64 and table.device.type == device and table.tolist() == values


def test_what_was_sent_is_found_again_by_its_stream(monkeypatch):
    first, other = integers([1, 2], CPU), integers([1, 3], CPU)
    assert integers([1, 2], CPU) is first and integers([1, 3], CPU) is other
    monkeypatch.setattr(_integers, "_stream", lambda device: 7)
    assert integers([1, 2], CPU) is not first


def test_the_oldest_unused_goes(monkeypatch):
    monkeypatch.setattr(_integers, "MANY", 3)
    first, second = integers([1], CPU), integers([2], CPU)
    integers([3], CPU)
    assert integers([1], CPU) is first
    integers([4], CPU)
    assert integers([1], CPU) is first and integers([2], CPU) is not second


def test_a_capture_reads_what_was_sent_before_and_keeps_it(monkeypatch):
    before = integers([1, 2], CPU)
    monkeypatch.setattr(_integers, "_capturing", lambda device: True)
    monkeypatch.setattr(_integers, "_stream", lambda device: 7)
    assert integers([1, 2], CPU) is before
    new = integers([5], CPU)
    assert integers([5], CPU) is not new  # the graph's own memory
    monkeypatch.setattr(_integers, "_capturing", lambda device: False)
    monkeypatch.setattr(_integers, "MANY", 1)
    integers([6], CPU)
    assert [id(table) for table in _integers._captured] == [id(before)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_graph_replays_with_them():
    device = torch.device("cuda", 0)
    integers(LARGE, device)
    torch.cuda.synchronize()
    graph, got = torch.cuda.CUDAGraph(), torch.empty(5, dtype=torch.int64, device=device)
    with torch.cuda.graph(graph):
        got.copy_(integers(LARGE, device))
    _integers._kept.clear()
    junk = [torch.ones(5, dtype=torch.int64, device=device) for _ in range(100)]
    graph.replay()
    assert got.tolist() == LARGE and len(junk) == 100
