"""``masked_linear``: one pass, and a masked copy for cuBLAS, against eager masking and cuBLAS on weights masked before."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from aswl_kernels import masked_linear
from bench.gpu.run import Run, check, needs, poisoned, ratio

FP32, BF16 = torch.float32, torch.bfloat16
SHAPES = ((8192, 4096, 4096), *((n, n, n) for n in (2048, 4096, 8192, 16384)))  # batch, inputs, outputs
CHECKED = 512  # rows that are computed in fp64, too
DENSITY = 0.1


def measure(run: Run) -> None:
    for batch, inputs, outputs in SHAPES if not run.smoke else ((48, 32, 40),):
        square = batch == inputs
        for dtype in (BF16, FP32):  # of the weight: fp32 masters, too
            name = f"{batch}x{inputs}x{outputs} bf16{' over fp32' if dtype == FP32 else ''}"
            goal = ("linear",) if square else ("linear", "linear whole")
            with run.case(name, *goal * (dtype == BF16)):
                forward(run, name, Case(run, (batch, inputs, outputs), BF16, dtype), dtype == BF16, square)
            if batch in (8192, 48):
                with run.case(f"{name}, with backward"):
                    backward(run, f"{name}, with backward", Case(run, (batch, inputs, outputs), BF16, dtype))
    n = run.pick(4096, 32)
    for name, allowed in (("fp32", False), ("tf32", True)):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        with run.case(f"{n}x{n}x{n} {name}"):
            forward(run, f"{n}x{n}x{n} {name}", Case(run, (n, n, n), FP32, FP32), False, True)
    torch.backends.cuda.matmul.allow_tf32 = False


class Case:
    """Operands with 90% of the weights pruned, and the ways to multiply them."""

    def __init__(self, run: Run, shape: tuple[int, int, int], x_dtype: torch.dtype, dtype: torch.dtype) -> None:
        needs("masked_linear")
        batch, inputs, outputs = shape
        self.shape, self.x = shape, run.randn(batch, inputs, dtype=x_dtype)
        self.weight, self.bias = run.randn(outputs, inputs, dtype=dtype), run.randn(outputs, dtype=dtype)
        self.attention = torch.tensor([0.7], device=run.device)
        # of normal values, so that 90% are below
        self.threshold = torch.tensor(2.0**0.5, device=run.device) * torch.erfinv(torch.tensor(1 - DENSITY)).item()
        self.grad = run.randn(batch, outputs, dtype=x_dtype)
        with torch.no_grad():
            masked = self.attention * self.weight.float().where(self.weight.abs().float() >= self.threshold, 0)
            self.folded = masked.to(x_dtype), (self.attention * self.bias).to(x_dtype)

    def ours(self, products: str) -> Tensor:
        return masked_linear(self.x, self.weight, self.threshold, self.attention, self.bias, products=products)

    def eager(self) -> Tensor:
        """As one writes it."""
        mask = self.weight.abs() >= self.threshold
        weight, bias = self.attention * (self.weight * mask), self.attention * self.bias
        return F.linear(self.x, weight.to(self.x.dtype), bias.to(self.x.dtype))

    def library(self) -> Tensor:
        return F.linear(self.x, *self.folded)

    def forwards(self) -> dict[str, Callable[[], Tensor]]:
        copied, one_pass = (partial(self.ours, products) for products in ("dense", "fused"))
        return {"one pass": one_pass, "masked copy": copied, "eager": self.eager, "cuBLAS": self.library}

    def check(self, slack: float) -> None:
        """Some rows against fp64, all of them against cuBLAS."""
        with poisoned():
            got = {name: f() for name, f in self.forwards().items()}
        exact = F.linear(self.x[:CHECKED].double(), *(t.double() for t in self.folded))
        for name in ("one pass", "masked copy"):
            check(name, got[name][:CHECKED], got["cuBLAS"][:CHECKED], exact, slack)
            check(name, got[name], got["cuBLAS"], got["cuBLAS"], 1e-2)

    @property
    def bytes(self) -> int:
        return self.x.nbytes + self.weight.nbytes + self.grad.nbytes

    @property
    def flops(self) -> int:
        batch, inputs, outputs = self.shape
        return 2 * batch * inputs * outputs


@torch.no_grad()
def forward(run: Run, name: str, case: Case, counts: bool, square: bool) -> None:
    case.check(run.pick(1e-5, 1e-2))
    times = run.times(case.forwards(), seconds=1.0)
    goals = {}
    if counts:
        goals["linear"] = ratio(times, "cuBLAS", "one pass")
        if not square:
            goals["linear whole"] = max(ratio(times, "eager", kind) for kind in ("one pass", "masked copy"))
    flops = case.flops if case.x.dtype == BF16 else None  # the ceiling is that of bf16
    run.row(name, times, "one pass", "cuBLAS", bytes=case.bytes, flops=flops, goals=goals)


def backward(run: Run, name: str, case: Case) -> None:
    """Forward and all gradients; cuBLAS's is that of the masked weight, without the attention's."""
    leaves = [case.x, case.weight, case.bias, case.attention]
    folded = [t.requires_grad_() for t in case.folded]
    for leaf in leaves:
        leaf.requires_grad_()

    def both(f: Callable[[], Tensor], wrt: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(f(), wrt, case.grad)

    wanted = {"one pass": leaves, "masked copy": leaves, "eager": leaves, "cuBLAS": [case.x, *folded]}
    variants = {kind: partial(both, f, wanted[kind]) for kind, f in case.forwards().items()}
    with poisoned():
        got = {kind: f() for kind, f in variants.items()}
    for kind in ("one pass", "masked copy"):
        check(f"{kind}, dx", got[kind][0], got["cuBLAS"][0], got["cuBLAS"][0], 1e-2)
        straight = case.attention.detach() * got["cuBLAS"][1]  # dw = a G, for kept and pruned weights
        check(f"{kind}, dw", got[kind][1], straight, straight, 1e-2)
    del got
    run.row(name, run.times(variants, seconds=1.0), "one pass", "cuBLAS", flops=3 * case.flops)
