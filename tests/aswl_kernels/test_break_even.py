"""The break-even density: found from the times, measured once, remembered across processes, and no file can hurt it."""

import importlib
import json

import pytest
import torch
import torch.utils.checkpoint
from torch.utils.flop_counter import FlopCounterMode

from aswl_kernels import masked_conv2d, masked_linear, native

module = importlib.import_module("aswl_kernels.break_even")
X, W = torch.ones(32, 8), torch.ones(4, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASWL_CACHE", str(tmp_path / "cache"))
    module.known.cache_clear()
    yield tmp_path / "cache" / "break_even.json"
    module.known.cache_clear()


@pytest.fixture
def measured(monkeypatch):
    """What was measured, every answer 0.25."""
    calls = []
    monkeypatch.setattr(module, "_measure", lambda op, x, *rest: (calls.append(tuple(x.shape)), 0.25)[1])
    return calls


def test_measures_once_per_shape_layout_gradient_and_threads(measured):
    variants = [
        lambda: module.break_even(masked_linear, X, W),
        lambda: module.break_even(masked_linear, X[:16], W),
        lambda: module.break_even(masked_linear, X, W.clone().requires_grad_()),
        lambda: module.break_even(masked_conv2d, torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3), 1, 1, 1, 1),
        lambda: module.break_even(masked_conv2d, torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3), 1, 0, 1, 1),
        lambda: module.break_even(
            masked_conv2d,
            torch.ones(2, 3, 8, 8).contiguous(memory_format=torch.channels_last),
            torch.ones(4, 3, 3, 3),
            *(1, 1, 1, 1),
        ),
    ]
    for count, variant in enumerate(variants, 1):
        assert variant() == variant() == 0.25
        assert len(measured) == count
    torch.set_num_threads(3)
    variants[0]()
    assert len(measured) == len(variants) + 1


def test_batches_up_to_a_power_of_two_are_one(measured):
    for batch in (32, 17, 31):
        module.break_even(masked_linear, torch.ones(batch, 8), W)
    module.break_even(masked_linear, torch.ones(4, 8, 8), W)
    assert measured == [(32, 8)]
    module.break_even(masked_linear, torch.ones(33, 8), W)
    assert len(measured) == 2


def test_images_up_to_a_power_of_two_are_one(measured):
    weight = torch.ones(4, 3, 3, 3)
    for height, width in ((32, 32), (17, 32), (31, 25)):
        module.break_even(masked_conv2d, torch.ones(2, 3, height, width), weight, 1, 1, 1, 1)
    assert len(measured) == 1
    for shape in ((2, 3, 16, 32), (2, 3, 32, 33), (3, 32, 32)):
        module.break_even(masked_conv2d, torch.ones(shape), weight, 1, 1, 1, 1)
    assert len(measured) == 4


def test_the_next_process_reads_the_file(measured, cache):
    module.break_even(masked_linear, X, W)
    module.known.cache_clear()  # as a new process
    assert module.break_even(masked_linear, X, W) == 0.25 and len(measured) == 1
    (key,) = json.loads(cache.read_text())
    assert "masked_linear [32, 8] by [4, 8]" in key and f"torch {torch.__version__}" in key and native.DETAIL in key
    assert [path.name for path in cache.parent.iterdir()] == ["break_even.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "b"}', '{"a": null}', "\0\xff"])
def test_a_damaged_file_is_measured_again_and_replaced(measured, cache, content):
    cache.parent.mkdir()
    cache.write_bytes(content.encode("latin-1"))
    assert module.break_even(masked_linear, X, W) == 0.25
    assert list(json.loads(cache.read_text()).values()) == [0.25]


def test_a_folder_that_cannot_be_written_costs_nothing_else(measured, cache):
    cache.parent.write_text("a file in the folder's place")
    assert module.break_even(masked_linear, X, W) == module.break_even(masked_linear, X, W) == 0.25
    assert len(measured) == 1


@pytest.mark.parametrize(
    "dense, fixed, per_density, want",
    [
        (10.0, 1.0, 50.0, 0.17),  # 9.5 = 1 + 50 d
        (10.0, 9.0, 1.0, 0.5),  # always below: as high as is tried
        (10.0, 20.0, 50.0, 0.0),  # never below
        (10.0, 9.9, 0.0, 0.0),  # not by enough
        (10.0, 5.0, 0.0, 0.5),
    ],
)
def test_finds_where_the_times_cross(monkeypatch, dense, fixed, per_density, want):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def op(x, weight, threshold, attention, bias, products):
        clock[0] += dense if products == "dense" else fixed + per_density * (1 - threshold.item())
        return x

    assert module._measure(op, X, W, (), [False, False]) == pytest.approx(want, abs=1e-3)


@pytest.mark.skipif(not native.AVAILABLE, reason="nothing to measure")
def test_really_measures_and_disturbs_nothing():
    x = torch.randn(64, 256, requires_grad=True)
    weight = torch.randn(256, 256, requires_grad=True)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert 0 <= module.break_even(masked_linear, x, weight) <= 0.5
    assert 0 <= module.break_even(masked_linear, x, weight) <= 0.5
    assert x.grad is None and weight.grad is None and len(module.known()) == 2
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not native.AVAILABLE, reason="nothing to measure")
def test_measures_under_a_checkpoint():
    calls = []

    def forward(x, weight):
        calls.append(module.break_even(masked_linear, x, weight))
        return masked_linear(x, weight, torch.tensor(0.5), products="sparse")

    x, weight = torch.randn(8, 16, requires_grad=True), torch.randn(4, 16, requires_grad=True)
    torch.utils.checkpoint.checkpoint(forward, x, weight, use_reentrant=False).sum().backward()
    assert len(calls) == 2 and calls[0] == calls[1] and weight.grad is not None


def test_what_is_eligible():
    assert module.eligible(X, torch.nn.Parameter(W)) == native.AVAILABLE
    assert not module.eligible(X.double(), W.double()) and not module.eligible(X.to("meta"), W.to("meta"))
    with torch.autocast("cpu"):
        assert not module.eligible(X, W)
    seen = []
    torch.func.vmap(lambda x: (seen.append(module.eligible(x, W)), x)[1])(X)
    torch.compile(lambda x: (seen.append(module.eligible(x, W)), x)[1], backend="eager")(X)
    with FlopCounterMode(display=False):
        seen.append(module.eligible(X, W))
    with torch.inference_mode():
        seen.append(module.eligible(X, torch.ones(4, 8)))
    assert not any(seen) and len(seen) == 4
