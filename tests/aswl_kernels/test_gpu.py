"""What only a GPU shows: streams, devices, graphs, and memory that runs out; some of it by a stand-in on a CPU."""

import contextlib
import importlib
import pkgutil
from types import SimpleNamespace

import pytest
import torch
from harness import operands

import aswl_kernels
from aswl_kernels import _triton, fused_adamw_, fused_sgd_, gate, magnitude_threshold, masked_conv2d, masked_linear

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def linear(device, products="fused"):
    x, weight, threshold, attention, bias = operands((48, 64), (40, 64), (torch.float32, torch.float32), device)
    return lambda: masked_linear(x, weight, threshold, attention, bias, products=products)


def convolution(device, products="fused"):
    x, weight, threshold, attention, bias = operands((2, 8, 9, 9), (16, 8, 3, 3), (torch.float32,) * 2, device)
    return lambda: masked_conv2d(x, weight, threshold, attention, bias, padding=1, products=products)


def gating(device):
    _, weight, threshold, attention, _ = operands((4, 50), (300, 50), (torch.float32,) * 2, device)
    return lambda: gate(weight, attention, threshold)


def thresholds(device):
    largest = 300_000 if device.startswith("cuda") else 3_000  # the interpreter is slow
    weights = [torch.randn(n, device=device) for n in (largest, 7, 2_000)]
    keep = torch.tensor([900, 3, 1], device=device)
    return lambda: magnitude_threshold(weights, keep)


def sgd(device):
    """The step's sums and the new weights; the same whenever it is called."""
    first = [torch.randn(n, device=device) for n in (5_000, 33)]
    grads, thresholds = [torch.randn_like(w) for w in first], [torch.tensor(0.5, device=device) for _ in first]

    def step():
        weights, momenta = [w.clone() for w in first], [torch.ones_like(w) for w in first]
        sums = fused_sgd_(weights, grads, momenta, thresholds, lr=0.1, momentum=0.9)
        return torch.cat([sums.flatten().float(), *weights, *momenta])

    return step


OPERATORS = {
    "masked_linear": linear,
    "masked_conv2d": convolution,
    "gate": gating,
    "magnitude_threshold": thresholds,
    "fused_sgd_": sgd,
}
each = pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS.keys())


@gpu
@needs_gpu
@each
def test_a_captured_graph_gives_the_same_bits(make):
    f = make("cuda")
    want = f()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        f()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = f()
    for _ in range(2):
        got.fill_(float("nan"))
        graph.replay()
        assert torch.equal(got, want)


@gpu
@needs_gpu
@each
def test_work_goes_to_the_current_stream(make):
    """On a stream that is kept busy first: a launch elsewhere would read what is not there yet."""
    f = make("cuda")
    want, side = f(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # about 0.1 s
        begin = torch.cuda.Event()
        begin.record()
        got = f()
        assert not begin.query(), "the host waited, or the stream was idle"
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(got, want)


@gpu
@needs_gpu
@each
def test_streams_at_once_do_not_disturb_each_other(make):
    functions = [make("cuda") for _ in range(4)]
    want = [f() for f in functions]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in functions]
    for _ in range(3):
        got = []
        for f, stream in zip(functions, streams):
            with torch.cuda.stream(stream):
                got.append(f())
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(got, want))


@gpu
@several
@each
def test_launches_go_to_the_inputs_device(make):
    f = make("cuda:1")
    want = make("cuda:1")  # made with the other device current
    assert torch.cuda.current_device() == 0
    got = f()
    assert got.device == torch.device("cuda", 1) and torch.cuda.current_device() == 0
    with torch.cuda.device(1):
        assert got.isfinite().all() and torch.equal(f(), got) and want().shape == got.shape


def test_on_enters_the_inputs_device(monkeypatch):
    entered = []

    @contextlib.contextmanager
    def device(which):
        entered.append(which)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    with _triton.on(SimpleNamespace(is_cuda=True, device=torch.device("cuda", 3))):
        assert entered == [torch.device("cuda", 3)]
    with _triton.on(torch.ones(1)):
        assert len(entered) == 1


@pytest.mark.parametrize("name", OPERATORS)
def test_every_launcher_enters_the_inputs_device(name, triton_device, monkeypatch):
    if name not in _triton.SERVED:
        pytest.skip("no Triton kernel")
    f, entered = OPERATORS[name](triton_device), []

    def on(tensor):
        entered.append(tensor.device.type)
        return contextlib.nullcontext()

    for found in pkgutil.iter_modules(aswl_kernels.__path__):
        module = importlib.import_module(f"aswl_kernels.{found.name}") if "triton" in found.name else SimpleNamespace()
        if hasattr(module, "on"):
            monkeypatch.setattr(module, "on", on)
    f()
    assert set(entered) == {triton_device}


@pytest.mark.parametrize("op", ["sgd", "adamw"])
def test_out_of_memory_leaves_the_state_unchanged(op, triton_device, monkeypatch):
    """Whichever allocation of a fused step fails, nothing has been written by then."""
    shapes, device = (5_000, 33), triton_device
    weights, grads, first, second = ([torch.rand(n, device=device) for n in shapes] for _ in range(4))
    copies = [w.bfloat16() for w in weights]
    limits = [torch.tensor(0.5, device=device) for _ in shapes]

    def step():
        if op == "sgd":
            return fused_sgd_(weights, grads, first, limits, lr=0.1, momentum=0.9, copies=copies)
        return fused_adamw_(weights, grads, first, second, [1, 1], limits, lr=0.1, copies=copies)

    state = [*weights, *grads, *first, *second, *copies]
    before, allowed = [t.clone() for t in state], 0

    def failing(make):
        def allocate(*args, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise torch.OutOfMemoryError("no memory left")
            return make(*args, **options)

        return allocate

    for allowed in range(50):
        left = allowed
        with monkeypatch.context() as patch:
            for name in ("empty", "empty_like", "zeros", "zeros_like", "tensor", "full"):
                patch.setattr(torch, name, failing(getattr(torch, name)))
            try:
                step()
                break
            except torch.OutOfMemoryError:
                assert all(torch.equal(now, then) for now, then in zip(state, before)), f"after {allowed} allocations"
    assert allowed < 49 and not torch.equal(weights[0], before[0])
