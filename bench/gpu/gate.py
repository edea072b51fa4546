"""``gate`` and the attention's gradient against PyTorch's operators, eager and compiled."""

import torch

from aswl_kernels import gate, reference
from aswl_kernels.gate import attention_gradient
from bench.gpu.run import Run, check, poisoned

FP32, BF16 = torch.float32, torch.bfloat16


def measure(run: Run) -> None:
    n = run.pick(100_000_000, 5_000)
    for source, target, firm in ((FP32, FP32, False), (FP32, BF16, False), (BF16, BF16, False), (FP32, BF16, True)):
        name = "1e8 " + " to ".join(str(dtype).removeprefix("torch.") for dtype in (source, target)) + ", firm" * firm
        with run.case(name):
            masked(run, name, n, source, target, firm)
    with run.case("attention_gradient, 1e8"):
        gradient(run, n)


@torch.no_grad()
def masked(run: Run, name: str, n: int, source: torch.dtype, target: torch.dtype, firm: bool) -> None:
    weight, attention = run.randn(n, dtype=source), torch.tensor([0.7], device=run.device)
    args = weight, attention, torch.tensor(0.7, device=run.device), target
    with poisoned():
        got = gate(*args, firm=firm)
    want = reference.gate(*args, firm=firm)
    exact = reference.gate(weight.double(), *args[1:3], firm=firm)
    check(name, got, want, exact, slack=run.pick(1e-6, 1e-2))
    compiled = torch.compile(reference.gate, backend=run.pick("inductor", "eager"))
    variants = {
        "ours": lambda: gate(*args, firm=firm),
        "eager": lambda: reference.gate(*args, firm=firm),
        "compiled": lambda: compiled(*args, firm=firm),
    }
    run.row(name, run.times(variants), "ours", "compiled", bytes=dict.fromkeys(variants, weight.nbytes + want.nbytes))


@torch.no_grad()
def gradient(run: Run, n: int) -> None:
    weight, grad = run.randn(n), run.randn(n)
    args = grad, weight, torch.tensor([0.7], device=run.device), torch.tensor(0.7, device=run.device)
    want, theirs = reference.attention_gradient(*(t.double() for t in args)), reference.attention_gradient(*args)
    scale = (grad.double() * weight.double()).abs().sum()  # the sum itself may be next to 0
    got = attention_gradient(*args)
    assert (got - want).abs() <= 2 * (theirs - want).abs() + 1e-6 * scale, "never time a wrong answer"
    variants = {"ours": lambda: attention_gradient(*args), "eager": lambda: reference.attention_gradient(*args)}
    run.row("attention_gradient, 1e8", run.times(variants), "ours", "eager", bytes=weight.nbytes + grad.nbytes)
