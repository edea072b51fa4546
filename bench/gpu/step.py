"""Whole training steps of a sparse model against its dense twin's: compiled ResNet-50, and ResNet-20 in a CUDA graph."""

import os
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

import aswl
from aswl.training import models
from aswl_kernels.timing import Times
from bench.gpu import eager
from bench.gpu.run import Run, ratio

DENSITY = 0.1
SETTLE = 12, 2  # steps, on a GPU and in a smoke run, until the density is the one asked for, and everything is compiled
Step = Callable[[], torch.Tensor]


class Setting(NamedTuple):
    """A network, and what it is trained on."""

    model: str
    batch: int
    shape: tuple[int, int, int]
    classes: int
    bf16: bool  # autocast, images in channels_last
    compiled: bool


def measure(run: Run) -> None:
    torch.backends.cudnn.benchmark = True
    resnet50 = Setting("resnet50", 256, (3, 224, 224), 1000, bf16=True, compiled=True)
    resnet20 = Setting("resnet20", 128, (3, 32, 32), 10, bf16=False, compiled=False)
    small = {"model": "lenet5", "batch": 2, "shape": (1, 16, 16), "classes": 3}
    with mock.patch.dict(os.environ, ASWL_CACHE=str(run.out)):  # what has been tuned here
        with run.case("ResNet-50, batch 256, compiled", "step resnet50"):
            compiled(run, "ResNet-50, batch 256, compiled", run.pick(resnet50, resnet50._replace(**small)))
        with run.case("ResNet-20, batch 128, graphed", "step resnet20", "step eager"):
            graphed(run, "ResNet-20, batch 128, graphed", run.pick(resnet20, resnet20._replace(**small)))


def compiled(run: Run, name: str, setting: Setting) -> None:
    dense, sparse = dense_step(run, setting), sparse_step(run, setting)
    settle(run, sparse, dense)
    times = steady(run, {"dense": dense, "sparse": sparse}, steps=run.pick(4, 1))
    goals = {"step resnet50": 1 / ratio(times, "dense", "sparse")}
    run.row(name, times, "sparse", "dense", goals=goals)


def graphed(run: Run, name: str, setting: Setting) -> None:
    """The eager method is not graphed: it asks the device for numbers."""
    dense, sparse = dense_step(run, setting), sparse_step(run, setting)
    steps = {"dense": capture(run, dense), "sparse": capture(run, sparse), "dense, eager": dense_step(run, setting)}
    steps["eager method"] = eager_step(run, setting)
    settle(run, steps["eager method"], steps["dense, eager"])
    times = steady(run, steps, steps=run.pick(20, 1))
    goals = {"step resnet20": 1 / ratio(times, "dense", "sparse"), "step eager": ratio(times, "eager method", "sparse")}
    run.row(name, times, "sparse", "dense", goals=goals)


def dense_step(run: Run, setting: Setting) -> Step:
    network, loss = built(run, setting)
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "fused": True}
    return step_of(torch.optim.SGD(network.parameters(), **options), loss)


def sparse_step(run: Run, setting: Setting) -> Step:
    """The whole method; a number checks that it does prune."""
    network, loss = built(run, setting)
    steps = run.pick(*SETTLE)
    sparsifier = aswl.ASWL(network, density=DENSITY, steps=steps, capturable=True)
    groups = sparsifier.param_groups(lr=0.01, weight_decay=1e-4)
    optimizer = aswl.optim.SGD(groups, momentum=0.9, fused=True)
    sparsifier.attach(optimizer)
    step = step_of(optimizer, loss)
    for _ in range(steps):
        step()
    summary = sparsifier.summary()
    wrong = summary.kept - round(DENSITY * summary.size)  # ties come on top
    assert 0 <= wrong <= 1e-4 * summary.size + 10, f"never time a wrong mask: {wrong} weights more than asked for"
    return step


def eager_step(run: Run, setting: Setting) -> Step:
    network, loss = built(run, setting)
    masks = eager.masked(network, DENSITY)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    plain = step_of(optimizer, lambda: loss() + eager.penalty(masks))

    def step() -> torch.Tensor:
        value = plain()
        eager.prune(network)
        return value

    return step


def built(run: Run, setting: Setting) -> tuple[nn.Module, Step]:
    """The network, the same each time, and its loss on a batch."""
    torch.manual_seed(0)
    layout = torch.channels_last if setting.bf16 else torch.contiguous_format
    network = models.build(setting.model, setting.shape, setting.classes).to(run.device, memory_format=layout)
    images = run.randn(setting.batch, *setting.shape).contiguous(memory_format=layout)
    labels = torch.randint(setting.classes, (setting.batch,), device=run.device)
    forward = torch.compile(network, backend=run.pick("inductor", "aot_eager")) if setting.compiled else network

    def loss() -> torch.Tensor:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=setting.bf16):
            return F.cross_entropy(forward(images), labels)

    return network, loss


def step_of(optimizer: torch.optim.Optimizer, loss: Step) -> Step:
    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def capture(run: Run, step: Step) -> Step:
    """The step as one launch."""
    if run.device.type != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return value

    settle(run, replay)
    return replay


def settle(run: Run, *steps: Step) -> None:
    """A few steps, whose losses must be numbers."""
    for step in steps:
        losses = [step() for _ in range(run.pick(3, 1))]
        assert all(loss.isfinite() for loss in losses), "never time a diverging step"


def steady(run: Run, variants: dict[str, Step], steps: int) -> Times:
    """Milliseconds per step of several in a row, as in training: nothing waits for the host but where the step does."""
    several = {name: lambda step=step: [step() for _ in range(steps)] for name, step in variants.items()}
    times = run.times(several, seconds=run.pick(6, 0), rounds=30, alone=False)
    return {name: [ms / steps for ms in series] for name, series in times.items()}
