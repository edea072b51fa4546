"""``masked_conv2d`` on ResNet-50's convolutions, batch 256, channels_last, bf16, against cuDNN on weights masked before."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from aswl_kernels import masked_conv2d
from bench.gpu.run import Run, check, needs, poisoned

BODIES = (  # how many of them there are; inputs, outputs, kernel, stride, pixels of the input
    (1, 64, 64, 1, 1, 56),
    (2, 256, 64, 1, 1, 56),
    (3, 64, 64, 3, 1, 56),
    (4, 64, 256, 1, 1, 56),
    (1, 256, 128, 1, 1, 56),
    (1, 128, 128, 3, 2, 56),
    (3, 512, 128, 1, 1, 28),
    (3, 128, 128, 3, 1, 28),
    (4, 128, 512, 1, 1, 28),
    (1, 256, 512, 1, 2, 56),
    (1, 512, 256, 1, 1, 28),
    (1, 256, 256, 3, 2, 28),
    (5, 1024, 256, 1, 1, 14),
    (5, 256, 256, 3, 1, 14),
    (6, 256, 1024, 1, 1, 14),
    (1, 512, 1024, 1, 2, 28),
    (1, 1024, 512, 1, 1, 14),
    (1, 512, 512, 3, 2, 14),
    (2, 2048, 512, 1, 1, 7),
    (2, 512, 512, 3, 1, 7),
    (3, 512, 2048, 1, 1, 7),
    (1, 1024, 2048, 1, 2, 14),
)
TRAINED = {(64, 64, 3, 1, 56), (256, 256, 3, 1, 14), (256, 1024, 1, 1, 14), (8, 8, 3, 1, 5)}  # with backward, too
THRESHOLD, CHECKED = 1.645, 16  # 90% of normal values are below; images that are computed in fp64, too
KINDS = ("one pass", "masked copy", "cuDNN")


def measure(run: Run) -> None:
    torch.backends.cudnn.benchmark = True
    bodies, measured = run.pick(BODIES, ((1, 8, 8, 3, 1, 5),)), {}
    for _, *shape in bodies:
        name = "{}x{}x{}, stride {}, {} pixels".format(*shape)
        with run.case(name):
            measured[tuple(shape)] = forward(run, name, Case(run, *shape))
        if tuple(shape) in TRAINED:
            with run.case(f"{name}, with backward"):
                backward(run, f"{name}, with backward", Case(run, *shape))
    with run.case("all bodies", "conv"):
        needs("masked_conv2d")
        if lost := [shape for _, *shape in bodies if tuple(shape) not in measured]:
            raise RuntimeError(f"{len(lost)} of {len(bodies)} were not measured")
        totals = {kind: sum(count * measured[tuple(shape)][kind] for count, *shape in bodies) for kind in KINDS}
        speed = totals["cuDNN"] / totals["one pass"]
        run.row("all bodies", {kind: [ms] for kind, ms in totals.items()}, "one pass", "cuDNN", goals={"conv": speed})


class Case:
    """Operands with 90% of the weights pruned, and the ways to convolve them."""

    def __init__(self, run: Run, inputs: int, outputs: int, kernel: int, stride: int, pixels: int) -> None:
        needs("masked_conv2d")
        batch, layout = run.pick(256, 2), torch.channels_last
        self.geometry = {"stride": stride, "padding": kernel // 2}
        self.x = run.randn(batch, inputs, pixels, pixels, dtype=torch.bfloat16).contiguous(memory_format=layout)
        shape = outputs, inputs, kernel, kernel
        self.weight = run.randn(*shape, dtype=torch.bfloat16).contiguous(memory_format=layout)
        self.threshold = torch.tensor(THRESHOLD, device=run.device)
        self.masked = self.weight.where(self.weight.abs().float() >= self.threshold, 0).contiguous(memory_format=layout)

    def ours(self, products: str) -> Tensor:
        return masked_conv2d(self.x, self.weight, self.threshold, **self.geometry, products=products)

    def forwards(self) -> dict[str, Callable[[], Tensor]]:
        functions = partial(self.ours, "fused"), partial(self.ours, "dense"), self.library
        return dict(zip(KINDS, functions, strict=True))

    def library(self) -> Tensor:
        return F.conv2d(self.x, self.masked, **self.geometry)


@torch.no_grad()
def forward(run: Run, name: str, case: Case) -> dict[str, float]:
    with poisoned():
        got = {kind: f() for kind, f in case.forwards().items()}
    with torch.backends.cudnn.flags(benchmark=False):  # of fp64, once
        exact = F.conv2d(case.x[:CHECKED].double(), case.masked.double(), **case.geometry)
    for kind in KINDS[:2]:
        check(kind, got[kind][:CHECKED], got["cuDNN"][:CHECKED], exact, run.pick(1e-5, 1e-2))
        check(kind, got[kind], got["cuDNN"], got["cuDNN"], 1e-2)
    y = got["cuDNN"]
    moved, flops = case.x.nbytes + case.weight.nbytes + y.nbytes, 2 * y.numel() * case.weight[0].numel()
    return run.row(name, run.times(case.forwards(), 0.4), "one pass", "cuDNN", bytes=moved, flops=flops)


def backward(run: Run, name: str, case: Case) -> None:
    """Forward and both gradients."""
    for leaf in (case.x, case.weight, case.masked):
        leaf.requires_grad_()
    grad = torch.randn_like(case.library())

    def both(f: Callable[[], Tensor], weight: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(f(), (case.x, weight), grad)

    weights = dict(zip(KINDS, (case.weight, case.weight, case.masked), strict=True))
    variants = {kind: partial(both, f, weights[kind]) for kind, f in case.forwards().items()}
    with poisoned():
        got = {kind: f() for kind, f in variants.items()}
    for kind in KINDS[:2]:
        for what, mine, theirs in zip(("dx", "dw"), got[kind], got["cuDNN"]):
            check(f"{kind}, {what}", mine, theirs, theirs, 1e-2)
    run.row(name, run.times(variants, 0.5), "one pass", "cuDNN", flops=6 * grad.numel() * case.weight[0].numel())
