"""What is compiled ahead of time: launches of every Triton kernel, by name, with the arguments that training has."""

from collections.abc import Callable
from functools import partial

import torch

from aswl_kernels import gate_triton, share_budget_triton

Launch = Callable[[], object]
FP32, BF16 = torch.float32, torch.bfloat16


def _gate() -> dict[str, Launch]:
    weight, one = torch.empty(1 << 20), torch.ones(1)
    gradient = partial(gate_triton.attention_gradient, weight=weight, attention=one, threshold=one)
    return {
        "gate, fp32": partial(gate_triton.gate, weight, one, one),
        "gate, fp32 to bf16, attention 1": partial(gate_triton.gate, weight, None, one, BF16),
        "gate, bf16": partial(gate_triton.gate, weight.to(BF16), one, one),
        "attention_gradient, fp32": partial(gradient, weight),
        "attention_gradient, bf16 over fp32": partial(gradient, weight.to(BF16)),
    }


def _share_budget() -> dict[str, Launch]:
    density, sizes = torch.ones(54, dtype=torch.float64), torch.ones(54, dtype=torch.int64)
    return {"share_budget, 54 layers": partial(share_budget_triton.share_budget, density, sizes, sizes[0], 1)}


def launches() -> dict[str, Launch]:
    """Every launch to compile, by a name that begins with the operator's."""
    return {**_gate(), **_share_budget()}
